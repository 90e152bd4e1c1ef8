"""``czsl published``: what papers report, with sources; and the same numbers next to those of runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import percent, print_json, print_lines, print_table, say

if TYPE_CHECKING:
    from czsl_cli.experiment_table import Block
    from methods.published.records import Record

COLUMNS = {"seen": "seen", "unseen": "unseen", "hm": "HM", "auc": "AUC"}
REF20 = {key: f"{key}_ref20" for key in COLUMNS}  # the field's evaluator: 20 bins
MARKS = {"paper": "paper", "specification": "notes", "memory": "memory"}
FROM_PAPER = "`paper`: read in the table of the named source."
FROM_MEMORY = "`memory`: written down from memory and compared with nothing; verify before you cite."
FROM_NOTES = "`notes`: taken from notes about the paper, its repository or another paper's table; verify before you cite."
EVALUATOR = (
    "All numbers here are those of the field's evaluator (20 bins), ours too: compare these with papers, not the exact AUC."
)
REPORTED = "Reported numbers come from the papers, not from runs of this program."


@click.command()
@click.argument("dataset", required=False)
@click.option("--method", help="Only this method, e.g. csp.")
@click.option("--world", type=click.Choice(["closed", "open"]), help="Only this world.")
@click.option("--md", "form", flag_value="md", help="Print as Markdown.")
@click.option("--csv", "form", flag_value="csv", help="Print as CSV.")
@click.option("--json", "form", flag_value="json", help="Print as JSON.")
def published(dataset, method, world, form) -> None:
    """List what papers report on DATASET: mit-states, ut-zappos, cgqa or vaw-czsl; on all of them by default.

    \b
      czsl published mit-states --world closed
      czsl published --method clusPro --md

    Numbers are percent. The column `checked` names their origin: the table of the source, notes about it, or memory. A paper may report
    more than is here. `czsl reproduce METHOD DATASET` trains and compares.
    """
    from methods.published.records import WORLDS
    from methods.published.records import published as read

    known = read()
    found = known.select(dataset, method, world)
    if form == "json":
        print_json([r.to_json() for r in found])
        return
    if form == "csv":
        print_lines(_comma_separated(found).rstrip("\n"))
        return
    blocks = []
    for name, facts in known.datasets.items():
        for one in WORLDS:
            records = [r for r in found if (r.dataset, r.world) == (name, one)]
            if records:
                blocks.append(_block(f"{facts.title}: {one} world, percent", records))
    if form == "md":
        from czsl_cli.experiment_table import markdown

        print_lines(markdown(blocks).rstrip("\n") if blocks else "")
    else:
        for block in blocks:
            print_table(block.columns, block.rows, block.title)
    if not found:
        say("the file has no such number; the papers may have it")
    for note in notes_of(found):
        say(note)


def _block(title: str, records: Sequence[Record]) -> Block:
    from czsl_cli.experiment_table import Block

    columns = ["method", "backbone", *COLUMNS.values(), "source", "checked", "note"]
    return Block(title, columns, [[*_cells(r), r.note] for r in records])


def _cells(record: Record) -> list[str]:
    numbers = [_number(record, key) for key in COLUMNS]
    return [record.paper.method, record.backbone, *numbers, record.source, MARKS[record.checked]]


def _number(record: Record, key: str) -> str:
    value, sd = record.numbers.get(key), record.sd.get(key)
    return "-" if value is None else f"{value:.1f}" + (f" ± {sd:.1f}" if sd is not None else "")


def notes_of(records: Sequence[Record]) -> list[str]:
    """Return what the column `checked` means, as far as it occurs."""
    texts = {"paper": FROM_PAPER, "specification": FROM_NOTES, "memory": FROM_MEMORY}
    return [text for key, text in texts.items() if any(r.checked == key for r in records)]


def _comma_separated(records: Sequence[Record]) -> str:
    text = io.StringIO()
    names = ["method", "ours", "backbone", "dataset", "world", *COLUMNS, "source", "paper", "via", "checked", "note"]
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(r.to_json() for r in records)
    return text.getvalue()


# -- next to our numbers -------------------------------------------------------------------------------------------------
def world_of(report: Mapping[str, Any]) -> str:
    """Return ``open`` or ``closed``, as papers name it, for a report or a question."""
    return "open" if report.get("open_world") else "closed"


def check_dataset(name: str) -> None:
    """Raise UsageError unless papers' numbers on a dataset are in the file."""
    from methods.published.records import published as read

    read().dataset(name)


def next_to_published(title: str, ours: Sequence[Sequence[str]], benchmark: str, world: str, data: Any) -> Block:
    """Return our numbers and those that papers report on a benchmark as one table.

    ours : name, CLIP and the texts of ``REF20`` of each row
    data : the opened dataset of our numbers; its differences from the published one become notes
    """
    from czsl_cli.experiment_table import Block
    from methods.published.records import published as read

    records = read().select(benchmark, None, world)
    rows = [[*row, "this run", ""] for row in ours] + [_cells(r) for r in records]
    columns = ["method", "backbone", *(f"{text}-20" for text in COLUMNS.values()), "source", "checked"]
    title = f"{title}, next to what papers report on {read().dataset(benchmark).title}, percent"
    return Block(title, columns, rows, (EVALUATOR, REPORTED, *size_notes(benchmark, data), *notes_of(records)))


def run_next_to_published(config: Any, result: Mapping[str, Any], benchmark: str, data: Any) -> Block:
    """Return the numbers of a run's evaluation and those that papers report on a benchmark as one table.

    config : of the run
    data : the dataset of the evaluation, opened
    """
    world = world_of(result)
    adapted = f", adapted by {result['adaptation']['name']}" if "adaptation" in result else ""
    ours = [[config.method + adapted, Path(config.clip).name, *(percent(result.get(key)) for key in REF20.values())]]
    return next_to_published(f"{Path(config.data).name}: {world} world", ours, benchmark, world, data)


def size_notes(name: str, data: Any) -> list[str]:
    """Return the differences between an opened dataset and the published one, as sentences: numbers of labels, pairs and images."""
    from methods.published.records import published as read

    facts, space = read().dataset(name), data.space
    if space.noun != "pair":
        return [f"The data has plain classes and is not {facts.title}: these numbers cannot be compared."]
    splits = ("train", "val", "test")
    there = {"attributes": space.num_attributes, "objects": space.num_objects}
    there |= {f"{s} pairs": len(getattr(space, f"{s}_pairs")) for s in splits} | {
        f"{s} images": len(data.split(s)) for s in splits
    }
    wanted = {"attributes": facts.attributes, "objects": facts.objects}
    wanted |= {f"{s} pairs": n for s, n in zip(splits, facts.pairs, strict=True)}
    wanted |= {f"{s} images": n for s, n in zip(splits, facts.images, strict=True)}
    other = [f"{there[k]:,} {k} ({wanted[k]:,})" for k in wanted if there[k] != wanted[k]]
    if not other:
        return []
    labels = any(there[k] != wanted[k] for k in wanted if "images" not in k)
    why = "its labels are others: these numbers cannot be compared" if labels else "its labels fit, some images differ"
    return [f"The data is not {facts.title} as published; {why}. It has {', '.join(other)}; published in brackets."]
