"""Tables of an experiment: mean and deviation over seeds, cost, which differences hold; for terminal, Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from czsl.printable import printable
from czsl.runs.files import write_atomically
from czsl_cli.console import percent, print_table, say

PAIRS = {
    "seen": "seen",
    "unseen": "unseen",
    "hm": "HM",
    "auc": "AUC",
    "auc_ref20": "AUC-20",
    "attr_acc": "attr",
    "obj_acc": "obj",
}
CLASSES = {"top1": "top-1", "T1": "T1", "S": "S", "U": "U", "H": "H", "H0": "H, gamma 0"}  # where labels are plain classes
COMPARED = {"auc": "AUC", "hm": "HM"}
WITH_INTERVAL = ("auc", "H")  # rows are compared by these
MAX_SEEDS = 3  # whose differences stand one by one in a cell


@dataclass(frozen=True)
class Block:
    """A table as it is shown: title, column names, rows of texts, and sentences that belong below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()


def show(block: Block) -> None:
    """Print a table on stdout and the sentences below it on stderr."""
    print_table(block.columns, block.rows, block.title)
    for note in block.notes:
        say(note)


def usual_columns(noun: str) -> dict[str, str]:
    """Return the columns of a table if its file names none; ``noun``: what a label of the dataset is."""
    return PAIRS if noun == "pair" else CLASSES


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds (with n - 1), None for fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def summary(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return ``mean`` and ``sd`` over the seeds of a row; None for a number that a seed lacks."""
    found: dict[str, Any] = {"mean": {}, "sd": {}}
    for key in columns:
        values = [report.get(key) for report in row["reports"]]
        whole = bool(values) and all(isinstance(v, int | float) for v in values)
        found["mean"][key] = statistics.fmean(values) if whole else None
        found["sd"][key] = deviation(values) if whole else None
    return found


def judged(differences: Sequence[Mapping[str, Any]], key: str, seeds: Sequence[int | None]) -> dict[str, Any]:
    """Return whether a difference holds and why not: it holds if it holds with every seed, in the same direction."""
    found = [d[key] for d in differences]
    by_seed = [{"seed": s, "difference": f["difference"], "interval": f["interval"]} for s, f in zip(seeds, found, strict=True)]
    if any(f["interval"] is None for f in found):
        return {"by_seed": by_seed, "holds": None, "words": "is undefined: one of the groups has no images"}
    signs = {f["interval"][0] > 0 for f in found if f["holds"]}
    open_ = [str(s) for s, f in zip(seeds, found, strict=True) if not f["holds"]]
    several = len(found) > 1
    if open_:
        why = (
            f"the interval contains 0 with seed{'s' * (len(open_) > 1)} {', '.join(open_)}"
            if several
            else "the interval contains 0"
        )
        return {"by_seed": by_seed, "holds": False, "words": f"does not hold: {why}"}
    if len(signs) > 1:
        return {"by_seed": by_seed, "holds": False, "words": "does not hold: the seeds disagree about its direction"}
    return {
        "by_seed": by_seed,
        "holds": True,
        "words": f"holds with {'both' if len(found) == 2 else f'all {len(found)}'} seeds" if several else "holds",
    }


# -- blocks --------------------------------------------------------------------------------------------------------------
def blocks(result: Mapping[str, Any], each: bool = False) -> list[Block]:
    """Return the tables of an experiment's result; ``each``: the numbers of every seed instead of mean and deviation."""
    found = []
    for table in result["tables"]:
        found.append(_numbers(table, each))
        if table["differences"]:
            found.append(_differences(table))
    return found


def _numbers(table: Mapping[str, Any], each: bool) -> Block:
    costs = any(row["seeds"] != [None] for row in table["rows"])
    columns = ["method", "trained on", *table["columns"].values(), *(["minutes", "peak GiB"] if costs else [])]
    rows = []
    for row in table["rows"]:
        if row["failure"]:
            rows.append([row["row"], f"failed: {row['failure']}", *[""] * (len(columns) - 2)])
            continue
        cells = [cell(row, key, each) for key in table["columns"]]
        minutes = "-" if row["minutes"] is None else f"{row['minutes']:.1f}"
        memory = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        rows.append([row["row"], row["trained"], *cells, *([minutes, memory] if costs else [])])
    trained: list[int] = next((row["seeds"] for row in table["rows"] if row["seeds"] != [None]), [])
    how = ""
    if trained:
        shown = " / ".join(map(str, trained))
        how = (
            f", seed {shown}"
            if len(trained) == 1
            else f", seeds {shown}"
            if each
            else f", mean ± standard deviation over seeds {shown}"
        )
    title = f"{table['data']}: {table['evaluation']}, {table['images']:,} images, percent{how}"
    notes = []
    if any(row.get("intervals") for row in table["rows"]):
        notes.append("In brackets: 95 % intervals by bootstrap of the images.")
    if any(row.get("adaptation") for row in table["rows"]):
        notes.append(
            "Adapted rows use the unlabelled test images (transductive): their numbers depend on these and on their order."
        )
    return Block(title, columns, rows, tuple(notes))


def cell(row: Mapping[str, Any], key: str, each: bool) -> str:
    """Return a number of a row in percent: of one seed, of each, or mean and deviation."""
    reports = row["reports"]
    if each and len(reports) > 1:
        return " / ".join(_one(report, key) for report in reports)
    if len(reports) == 1:
        return _one(reports[0], key)
    mean, sd = row["mean"][key], row["sd"][key]
    return percent(mean) if sd is None else f"{percent(mean)} ± {percent(sd)}"


def _one(report: Mapping[str, Any], key: str) -> str:
    """Return a number in percent, with its interval for the number that rows are compared by."""
    low_high = (report.get("intervals") or {}).get(key) if key in WITH_INTERVAL else None
    return percent(report.get(key)) + (f" ({percent(low_high[0])} to {percent(low_high[1])})" if low_high else "")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _differences(table: Mapping[str, Any]) -> Block:
    rows, notes = [], []
    for difference in table["differences"]:
        name = f"{difference['row']} - {difference['to']}"
        if difference["failure"]:
            rows.append([name, difference["failure"], "-", "", "-"])
            continue
        cells = []
        for key, word in COMPARED.items():
            found = difference[key]
            cells += [_difference(found["by_seed"]), {True: "yes", False: "no", None: "-"}[found["holds"]]]
            mean = [d["difference"] for d in found["by_seed"] if d["difference"] is not None]
            how = f"{word} {_points(statistics.fmean(mean))} points" if mean else word
            notes.append(f"{difference['row']} against {difference['to']}: {how}, {found['words']}.")
        rows.append([name, *cells])
    columns = ["difference", *(text for word in COMPARED.values() for text in (f"{word} [95 %]", "holds"))]
    images = f"{table['resamples']:,} paired resamples of the images"
    return Block(f"{table['data']}: differences, {table['evaluation']}, in points; {images}", columns, rows, tuple(notes))


def _difference(by_seed: Sequence[Mapping[str, Any]]) -> str:
    values = [d["difference"] for d in by_seed]
    if any(d["interval"] is None for d in by_seed):
        return "-"
    if len(by_seed) > MAX_SEEDS:
        low, high = (_points(f(values)) for f in (min, max))
        return f"{_points(statistics.fmean(values))} (seeds from {low} to {high})"
    return " / ".join(f"{_points(d['difference'])} [{_points(d['interval'][0])}, {_points(d['interval'][1])}]" for d in by_seed)


# -- files ---------------------------------------------------------------------------------------------------------------
def markdown(shown: Sequence[Block]) -> str:
    """Return the tables as Markdown."""
    parts = []
    for block in shown:
        lines = [f"**{_md(block.title)}**", "", _md_line(block.columns), "|" + " --- |" * len(block.columns)]
        lines += [_md_line(row) for row in block.rows]
        lines += [""] + [f"- {_md(note)}" for note in block.notes] if block.notes else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    return printable(text).replace("|", "\\|")


def _md_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_md, cells)) + " |"


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}


def latex(shown: Sequence[Block]) -> str:
    """Return the tables as LaTeX for the package booktabs; notes become comments."""
    parts = ["% needs \\usepackage{booktabs}"]
    for block in shown:
        words = 2 if block.columns[:2] == ["method", "trained on"] else 1
        lines = [f"% {_comment(block.title)}", *(f"% {_comment(note)}" for note in block.notes)]
        lines.append(f"\\begin{{tabular}}{{{'l' * words}{'r' * (len(block.columns) - words)}}}")
        lines += [
            "\\toprule",
            _tex_line(block.columns),
            "\\midrule",
            *map(_tex_line, block.rows),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _comment(text: str) -> str:
    return printable(text).replace("±", "+-")


def _tex_line(cells: Sequence[str]) -> str:
    line = " & ".join("".join(TEX.get(c, c) for c in printable(cell)) for cell in cells) + r" \\"
    return "{}" + line if line.startswith("[") else line  # a bracket after \\ would be read as an argument


def comma_separated(result: Mapping[str, Any]) -> str:
    """Return one line per row, evaluation and seed, then ``mean`` and ``sd``; numbers are fractions, minutes and GiB as they are."""
    lines: list[dict[str, Any]] = []
    for table in result["tables"]:
        for row in table["rows"]:
            about = {"data": table["data"], "evaluation": table["evaluation"], "row": row["row"], "trained": row["trained"]}
            costs = row["costs"] or [{}] * len(row["reports"])
            for seed, report, cost in zip(row["seeds"], row["reports"], costs, strict=False):
                numbers = {key: report.get(key) for key in table["columns"]}
                lines.append({**about, "seed": "" if seed is None else seed, **numbers, **cost})
            if len(row["reports"]) > 1:
                lines += [{**about, "seed": kind, **{k: row[kind][k] for k in table["columns"]}} for kind in ("mean", "sd")]
        lines += [
            {
                "data": table["data"], "evaluation": table["evaluation"], "row": f"{line['method']} (reported)",
                "trained": line["source"], "seed": "",
                **{k: None if line.get(k) is None else line[k] / 100 for k in ("seen", "unseen", "hm")},
                "auc_ref20": None if line.get("auc") is None else line["auc"] / 100,
            }
            for line in table.get("published", ())
        ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def write_tables(result: Mapping[str, Any], shown: Sequence[Block], files: Mapping[str, Path | None], title: str) -> list[Path]:
    """Write the requested files (``md``, ``csv``, ``tex``, ``html``); return their paths."""
    makers = {"md": lambda: markdown(shown), "csv": lambda: comma_separated(result), "tex": lambda: latex(shown)}
    written = []
    for kind, path in files.items():
        if path is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "html":
            from czsl_cli.pages import Table, write_page

            sections = [Table(block.title, block.columns, block.rows, "\n".join(block.notes)) for block in shown]
            intro = ["A difference holds if its interval does not contain 0, with every seed and in the same direction."]
            write_page(path, title, sections, intro)
        else:
            write_atomically(path, makers[kind]().encode())
        written.append(path)
    return written
