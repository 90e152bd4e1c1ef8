"""``czsl experiment``: one file lists methods, seeds and data; the command trains what is missing and fills the table."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from czsl_cli.console import continued_with, duration, print_json, print_table, say, short
from czsl_cli.options import placement_options, where_of

FILE = click.Path(dir_okay=False, path_type=Path)


class Numbers(click.ParamType):
    """Whole numbers with commas between: ``0,1,2``."""

    name = "N,N..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse them."""
        if not isinstance(value, str):
            return value
        parts = value.split(",")
        if any(not part.strip().isdecimal() for part in parts):
            self.fail(f"{value!r} is not a list of whole numbers such as 0,1,2", param, ctx)
        return tuple(int(part) for part in parts)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", "-d", help="Dataset folder, instead of the file's.")
@click.option("--clip", help="CLIP of all rows, instead of the file's.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the runs.  [default: runs/<name of FILE>]"
)
@click.option("--seeds", type=Numbers(), help="Seeds of training, e.g. 0,1,2, instead of the file's.")
@click.option("--rows", help="Only these rows, with commas between.")
@click.option("--baseline", metavar="ROW", help="Compare every row with this one.")
@click.option("--per-pair", type=click.IntRange(1), help="Evaluate at most N test images per pair, instead of the file's number.")
@click.option("--max-concurrent", type=click.IntRange(1), help="On a cluster: trainings at once.  [default: what it holds]")
@click.option("--published", metavar="DATASET", help="Show what papers report on DATASET next to these rows, e.g. mit-states.")
@click.option("--each-seed", is_flag=True, help="Show the numbers of every seed instead of mean and deviation.")
@click.option("--md", type=FILE, help="Write the tables as Markdown.")
@click.option("--csv", type=FILE, help="Write one line per row and seed, with means and deviations.")
@click.option("--tex", type=FILE, help="Write the tables as LaTeX (booktabs).")
@click.option("--html", type=FILE, help="Write a page with the tables.")
@placement_options
@click.option("--dry-run", is_flag=True, help="List the runs with their steps and expected time; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON (fractions).")
def experiment(file, overrides, dry_run, as_json, **options) -> None:
    """Train and evaluate the rows of FILE with every seed, and print the table for the paper.

    \b
      czsl experiment table.yaml --dry-run
      czsl experiment table.yaml --md table.md --tex table.tex
      czsl experiment table.yaml --data mydata --clip ViT-L-14 --seeds 0,1,2 precision=bfloat16

    Runs that are finished and unchanged are not trained again, interrupted ones continue, so the same command can be repeated. A row
    whose settings changed is trained in a new folder; the old one stays. Ctrl-C saves a checkpoint and exits with 130. On one machine
    runs follow each other; on a cluster (--address, RAY_ADDRESS, --nodes) they share it through Ray Tune. KEY=VALUE changes a setting of
    all rows.

    A difference holds if the 95 % interval of a paired bootstrap over the test images excludes 0, with every seed and in the same
    direction. Exit code 6: some runs failed; the table names them.
    """
    from czsl.errors import UsageError
    from czsl_cli.experiment_file import read_experiment
    from czsl_cli.experiment_runs import measure, planned, train_missing, what_is_left
    from czsl_cli.published import check_dataset

    where = where_of(options)
    given = {name: options[name] for name in ("data", "clip", "baseline", "seeds", "per_pair")}
    asked = read_experiment(file, overrides=overrides, **given)
    if options["rows"] is not None:
        asked = asked.chosen([name.strip() for name in options["rows"].split(",")])
    out = options["out"] or Path("runs") / file.stem
    if out.resolve() == Path("runs").resolve():
        raise UsageError("--out runs is the folder of all runs", "an experiment has a folder of its own", "give --out runs/NAME")
    if options["published"] is not None:
        check_dataset(options["published"])
    plans, data = planned(asked, out)
    if dry_run:
        _dry_run(plans, as_json)
        return
    began = time.monotonic()
    with continued_with(lambda: what_is_left(plans)):
        failures = train_missing(plans, data, where, out, options["max_concurrent"])
        result = measure(asked, plans, data, failures, where)
        result |= {"experiment": str(file), "out": str(out.resolve()), "seconds": round(time.monotonic() - began, 1)}
        _show(result, data, file, options, as_json)
    if failures:
        sys.exit(6)


# -- what is to be done --------------------------------------------------------------------------------------------------


def _dry_run(plans: list[Any], as_json: bool) -> None:
    from cluster.experiment import seconds_expected

    expected = [seconds_expected(p, plans) for p in plans]
    if as_json:
        runs = [
            {"run": str(p.path), "row": p.row, "data": p.data, "seed": p.seed, "state": p.state, "steps": p.steps, "seconds": s}
            for p, s in zip(plans, expected, strict=True)
        ]
        print_json({"runs": runs, "seconds": None if None in expected else sum(s for s in expected if s)})
        return
    rows = []
    for p, seconds in zip(plans, expected, strict=True):
        left = "-" if p.state == "done" or not p.trains else "unknown" if seconds is None else duration(seconds)
        rows.append([short(p.path), p.state, p.steps if p.trains else "-", left, p.changed])
    changed = any(p.changed for p in plans)
    print_table(["run", "state", "steps", "expected time", *(["changed settings"] if changed else [])],
                [row if changed else row[:-1] for row in rows])  # fmt: skip
    todo = [p for p in plans if p.state != "done"]
    known = [s for s in expected if s]
    unknown = sum(s is None for s in expected)
    time_ = f"{duration(sum(known))} of training one after the other" if known else "no time known"
    say(
        f"{len(todo)} of {len(plans)} runs are left, {time_}"
        + (f"; unknown for {unknown}, of whose rows nothing has run yet" if unknown else "")
    )


# -- training ------------------------------------------------------------------------------------------------------------


# -- numbers -------------------------------------------------------------------------------------------------------------


def _show(result: dict[str, Any], data: dict[str, Any], file: Path, options: dict[str, Any], as_json: bool) -> None:
    from czsl_cli.experiment_table import blocks, show, write_tables

    each, benchmark = options["each_seed"], options["published"]
    shown = blocks(result, each)
    if benchmark is not None:
        shown += [_beside(table, data[table["data"]], benchmark, each) for table in result["tables"]]
    if as_json:
        print_json(result)
    else:
        for block in shown:
            show(block)
    files = {kind: options[kind] for kind in ("md", "csv", "tex", "html")}
    for path in write_tables(result, shown, files, f"Experiment {file.stem}"):
        say(f"written to {path}")


def _beside(table: dict[str, Any], data: Any, benchmark: str, each: bool) -> Any:
    """Return a table's rows next to what papers report for its world; the records enter ``table["published"]``."""
    from czsl_cli.experiment_table import cell
    from czsl_cli.published import REF20, next_to_published
    from methods.published.records import published

    table["published"] = [r.to_json() for r in published().select(benchmark, None, table["world"])]
    rows = [row for row in table["rows"] if not row["failure"]]
    ours = [[row["row"], row["clip"], *(cell(row, key, each) for key in REF20.values())] for row in rows]
    return next_to_published(f"{table['data']}: {table['evaluation']}", ours, benchmark, table["world"], data)
