"use strict";
// Sorts a table by the column whose head is pressed: numbers by value, texts by the alphabet; once more turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = Array.from(table.tHead.rows[0].cells);
  const value = (row, place) => row.cells[place].textContent.trim();
  const number = (text) => Number(text.replace(/[,\u00a0 %]/g, ""));
  heads.forEach((head, place) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "pick";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const rows = Array.from(body.rows), texts = rows.map((row) => value(row, place)).filter((text) => text && text !== "-");
      const numeric = texts.length > 0 && texts.every((text) => !Number.isNaN(number(text)));
      // Numbers begin with the largest, texts with the first of the alphabet.
      const before = head.getAttribute("aria-sort"), up = before ? before === "descending" : !numeric;
      const missing = (text) => !text || text === "-";
      rows.sort((a, b) => {
        const one = value(a, place), other = value(b, place);
        if (missing(one) || missing(other)) return missing(one) - missing(other);
        const order = numeric ? number(one) - number(other) : one.localeCompare(other);
        return up ? order : -order;
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.replaceChildren(...rows);
    });
  });
}
