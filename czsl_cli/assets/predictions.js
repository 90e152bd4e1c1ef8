
"use strict";
// Rows are [image, link, thumbnail, doubt, [[label places..., probability], ...]]; only the rows of one page are elements.
const PAGE = 96;
const data = JSON.parse(document.getElementById("data").textContent);
const kinds = Object.keys(data.words);
const $ = (id) => document.getElementById(id);
const labelOf = (candidate) => kinds.map((kind, i) => data.words[kind][candidate[i]]).join(" ");
const probOf = (candidate) => candidate[kinds.length];
const rows = data.rows.map(([image, link, thumb, doubt, candidates]) => (
  { image, link, thumb, doubt, candidates, name: labelOf(candidates[0]), prob: probOf(candidates[0]) }));
const text = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const orders = {
  name: (a, b) => text(a.name, b.name) || a.prob - b.prob || text(a.image, b.image),
  least: (a, b) => a.prob - b.prob || text(a.image, b.image),
  most: (a, b) => b.prob - a.prob || text(a.image, b.image),
  file: (a, b) => text(a.image, b.image),
};
const fields = ["order", ...kinds, "from", "to", "file", "page"];
let shown = [];
let byName = new Map(); // images of each name among those shown

function percent(p) {
  if (p > 0 && p < 0.01) return "<1\u00a0%";
  if (p > 0.99 && p < 1) return ">99\u00a0%";
  return Math.round(100 * p) + "\u00a0%";
}

function element(tag, content, attributes) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  for (const part of [content].flat()) if (part !== null && part !== undefined) made.append(part);
  return made;
}

function fillChoices(kind, place) {
  const count = new Array(data.words[kind].length).fill(0);
  for (const row of rows) count[row.candidates[0][place]] += 1;
  const names = data.words[kind].map((name, i) => [name, count[i]]).filter((choice) => choice[1]);
  names.sort((a, b) => text(a[0], b[0]));
  for (const [name, n] of names) $(kind).append(element("option", `${name} (${n})`, { value: name }));
}

function card(row, grouped) {
  const words = `${row.name}, ${percent(row.prob)}: ${row.image}`;
  const picture = row.thumb
    ? element("img", null, { src: `${data.folder}/${row.thumb}`, alt: words, loading: "lazy", decoding: "async" })
    : element("span", "no picture", { class: "none" });
  const others = row.candidates.slice(1, 4).map((c) => `${labelOf(c)} ${percent(probOf(c))}`).join(", ");
  return element("li", [
    element("a", picture, { href: row.link }),
    element("meter", null, { min: 0, max: 1, value: row.prob, "aria-hidden": "true" }),
    element("p", [element("b", (grouped ? "" : row.name + " ") + percent(row.prob)), row.doubt ? " " : null, row.doubt ? element("em", row.doubt) : null]),
    element("p", row.image, { class: "file" }),
    others ? element("p", "or " + others, { class: "others" }) : null,
  ]);
}

function select() {
  const chosen = kinds.map((kind) => $(kind).value);
  const from = Number($("from").value || 0) / 100, to = Number($("to").value === "" ? 100 : $("to").value) / 100;
  const file = $("file").value.toLowerCase(), unsure = $("unsure").checked;
  shown = rows.filter((row) => row.prob >= from && row.prob <= to
    && chosen.every((value, i) => value === "" || data.words[kinds[i]][row.candidates[0][i]] === value)
    && (!file || row.image.toLowerCase().includes(file)) && (!unsure || row.doubt));
  shown.sort(orders[$("order").value] || orders.name);
  byName = new Map();
  for (const row of shown) byName.set(row.name, (byName.get(row.name) || 0) + 1);
}

function draw(focus) {
  const last = Math.max(1, Math.ceil(shown.length / PAGE));
  const page = Math.min(Math.max(1, Math.floor(Number($("page").value)) || 1), last);
  $("page").value = page;
  $("page").max = last;
  $("last").textContent = `of ${last}`;
  for (const id of ["previous", "previous-end"]) $(id).disabled = page === 1;
  for (const id of ["next", "next-end"]) $(id).disabled = page === last;
  const part = shown.slice((page - 1) * PAGE, page * PAGE);
  const grouped = $("order").value === "name";
  const images = $("images");
  images.replaceChildren();
  for (let i = 0; i < part.length;) {
    let end = grouped ? i : part.length;
    while (grouped && end < part.length && part[end].name === part[i].name) end += 1;
    const count = byName.get(part[i].name);
    const heading = grouped
      ? element("h2", [part[i].name + " ", element("small", `${count.toLocaleString("en")} image${count === 1 ? "" : "s"}`)])
      : element("h2", $("order").selectedOptions[0].textContent);
    const list = element("ul", part.slice(i, end).map((row) => card(row, grouped)), { class: "grid" });
    images.append(element("section", [heading, list]));
    i = end;
  }
  const numbers = [shown.length, rows.length].map((n) => n.toLocaleString("en"));
  const first = (page - 1) * PAGE + 1;
  $("status").textContent = part.length
    ? `${numbers[0]} of ${numbers[1]} images; here ${first.toLocaleString("en")} to ${(first + part.length - 1).toLocaleString("en")}`
    : `none of ${numbers[1]} images`;
  const state = new URLSearchParams();
  for (const id of fields) if ($(id).value !== $(id).dataset.start) state.set(id, $(id).value);
  if ($("unsure").checked) state.set("unsure", "1");
  try { history.replaceState(null, "", "#" + state); } catch { /* some browsers refuse it for files */ }
  if (focus) {
    images.focus({ preventScroll: true });
    $("status").scrollIntoView();
  }
}

function restart() {
  $("page").value = 1;
  select();
  draw(false);
}

function turn(by) {
  $("page").value = Number($("page").value) + by;
  draw(true);
}

function restore() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const id of fields) if (state.has(id)) $(id).value = state.get(id);
  $("unsure").checked = state.get("unsure") === "1";
}

for (const kind of ["attr", "obj", "class"]) if (!kinds.includes(kind)) $(kind).parentElement.hidden = true;
kinds.forEach(fillChoices);
$("unsure-label").hidden = !data.threshold;
for (const id of fields) $(id).dataset.start = $(id).value;
restore();
$("filters").addEventListener("input", restart);
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => setTimeout(restart));
$("page").addEventListener("change", () => draw(true));
for (const id of ["previous", "previous-end"]) $(id).addEventListener("click", () => turn(-1));
for (const id of ["next", "next-end"]) $(id).addEventListener("click", () => turn(1));
$("app").hidden = false;
select();
draw(false);
