"""``czsl experiment``: one file lists methods, seeds and data; the command trains what is missing and fills the table."""

from __future__ import annotations

import difflib
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from czsl_cli.console import duration, print_json, print_table, progress_bar, say, short, warn
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
    whose settings changed is trained in a new folder; the old one stays. On one machine runs follow each other; on a cluster (--address,
    RAY_ADDRESS, --nodes) they share it through Ray Tune. KEY=VALUE changes a setting of all rows.

    A difference holds if the 95 % interval of a paired bootstrap over the test images excludes 0, with every seed and in the same
    direction. Exit code 6: some runs failed; the table names them.
    """
    from czsl.errors import UsageError
    from czsl_cli.experiment_file import read_experiment
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
    plans, data = _planned(asked, out)
    if dry_run:
        _dry_run(plans, as_json)
        return
    began = time.monotonic()
    failures, stopped = _train(plans, data, where, out, options["max_concurrent"])
    if stopped:
        say("stopped with a checkpoint; the same command continues")
        sys.exit(130)
    result = _measure(asked, plans, data, failures, where)
    result |= {"experiment": str(file), "out": str(out.resolve()), "seconds": round(time.monotonic() - began, 1)}
    _show(result, data, file, options, as_json)
    if failures:
        sys.exit(6)


# -- what is to be done --------------------------------------------------------------------------------------------------
def _planned(asked: Any, out: Path) -> tuple[list[Any], dict[str, Any]]:
    """Every run that the table needs, in order, and the datasets by label; what can be wrong with settings is found here."""
    from cluster.experiment import plan
    from czsl.data.table import open_data
    from czsl.errors import UsageError
    from czsl_cli.train import checked
    from methods.registry import config_class

    plans: list[Any] = []
    data = {label: open_data(folder) for label, folder in asked.data.items()}
    told: set[str] = set()
    for label in asked.data:
        for name, row in asked.rows.items():
            if row.adapt and not config_class(asked.config(name, label, asked.seeds[0]).method).adaptable:
                raise UsageError(f"row {name} cannot be adapted", *_not_adaptable())
            if any((p.row, p.data) == (row.home, label) for p in plans):
                continue  # an adapted row shares the runs of another
            for seed in asked.seeds:
                try:
                    config = asked.config(name, label, seed)
                    notes = checked(config, open_data(config.data)) if seed == asked.seeds[0] else []
                    config.remember(data[label].decode)
                except UsageError as error:
                    raise UsageError(f"row {name}: {error.what}", error.why, error.fix) from None
                for note in notes:
                    if note not in told:
                        told.add(note)
                        warn(f"row {name}: {note}")
                trains = config_class(config.method).trains
                if not trains and seed != asked.seeds[0]:
                    continue
                stem = "-".join([row.home, *([label] if len(asked.data) > 1 else []), f"seed{seed if trains else 0}"])
                if not trains:
                    config.seed = 0
                plans.append(plan(row.home, label, seed, config, out, stem, data[label]))
    return plans, data


def _not_adaptable() -> tuple[str, str]:
    from methods.registry import METHODS, config_class

    able = ", ".join(name for name in METHODS if config_class(name).adaptable)
    return "its scores need more than one embedding for each composition", f"leave out adapt; methods that can: {able}"


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
def _train(
    plans: list[Any], data: dict[str, Any], where: dict[str, Any], out: Path, at_once: int | None
) -> tuple[dict[str, str], bool]:
    """Train what is missing; why runs failed, by folder, and whether someone asked to stop."""
    from cluster.experiment import make_run
    from cluster.machines.nodes import Ask

    todo = [p for p in plans if p.state != "done"]
    done = len(plans) - len(todo)
    if done:
        say(f"{done} of {len(plans)} runs are finished and unchanged")
    for p in todo:
        if p.changed:
            say(f"{p.path.name} is new: {p.changed}")
        make_run(p, data[p.data])
    todo = [p for p in todo if p.trains]
    if not todo:
        return {}, False
    if Ask.of(**where).local:
        return _one_by_one(todo, where)
    return _together(todo, where, out, at_once)


def _one_by_one(todo: list[Any], where: dict[str, Any]) -> tuple[dict[str, str], bool]:
    from cluster.experiment import reason_of, train_one
    from czsl.errors import CzslError
    from czsl_cli.train import Watcher

    failures: dict[str, str] = {}
    with progress_bar() as bar:
        for number, planned in enumerate(todo, 1):
            say(f"run {number} of {len(todo)}: {planned.path.name}, {planned.steps:,} steps")
            watcher = Watcher(planned.config.epochs, bar)
            try:
                status = train_one(
                    planned,
                    **where,
                    on_placement=lambda place, watcher=watcher, planned=planned: watcher.placed(place, planned.path),
                    on_wait=watcher.waiting,
                    on_failure=watcher.failed,
                    on_record=watcher.record,
                )
            except CzslError as error:
                failures[planned.path.name] = reason_of(error)
                warn(f"{planned.path.name} failed: {failures[planned.path.name]}")
                continue
            if status == "stopped":
                return failures, True
    return failures, False


def _together(todo: list[Any], where: dict[str, Any], out: Path, at_once: int | None) -> tuple[dict[str, str], bool]:
    from cluster.experiment import failure_of, train_all

    nodes = where["nodes"][-1] if isinstance(where["nodes"], tuple) else where["nodes"]
    workers = where["workers_per_node"] or where["gpus_per_node"] or 1
    over: dict[str, str] = {}
    with progress_bar() as bar:

        def on_trial(trial: Any) -> None:
            status, name = trial.status(), trial.path.name
            if status == "unfinished":
                say(f"{name}: started")
            elif name not in over:
                over[name] = status
                say(f"{name}: {status}")
            bar.update("runs", len(over), len(todo))

        status = train_all(
            todo,
            out.resolve(),
            address=where["address"],
            nodes=nodes,
            workers_per_node=workers,
            max_concurrent=at_once or 0,
            on_share=lambda part: say(
                f"{len(todo)} runs, {part.concurrent} at once, {part.workers} workers each. {part.note}".strip()
            ),
            on_trial=on_trial,
            on_record=lambda trial, record: bar.update("runs", len(over), len(todo), trial.path.name),
            on_stop=lambda: say("stopping all runs with checkpoints; once more ends at once and without them"),
        )
    failures = {p.path.name: failure_of(p.run) or f"it is {p.state}" for p in todo if p.state != "done"}
    return failures, status == "stopped"


# -- numbers -------------------------------------------------------------------------------------------------------------
def _measure(
    asked: Any, plans: list[Any], data: dict[str, Any], failures: dict[str, str], where: dict[str, Any]
) -> dict[str, Any]:
    from cluster.experiment import measured
    from cluster.work.evaluation import Question
    from czsl_cli.experiment_table import summary, usual_columns
    from czsl_cli.published import REF20, world_of

    tables: list[dict[str, Any]] = []
    unknown: dict[str, list[str]] = {}
    for label in asked.data:
        columns = asked.columns or usual_columns(data[label].space.noun)
        for heading, settings in asked.evaluate.items():
            question = Question(**settings)
            rows = []
            with progress_bar() as bar:
                for name, row in asked.rows.items():
                    runs = [p for p in plans if (p.row, p.data) == (row.home, label)]
                    failed = [f"{p.path.name}: {failures[p.path.name]}" for p in runs if p.path.name in failures]
                    own = replace(question, adapt=row.adapt)
                    reports = [] if failed else [measured(p.run, own, bar.update, warn, **where) for p in runs]
                    rows.append(_row(asked.rows[name], runs, reports, failed, columns))
                    unknown |= {key: difflib.get_close_matches(key, r) for r in reports for key in columns if key not in r}
            tables.append(
                {
                    "data": label,
                    "evaluation": heading,
                    "world": world_of(settings),
                    "images": next((r["images"] for row in rows for r in row["reports"]), 0),
                    "columns": columns,
                    "rows": rows,
                    "resamples": asked.resamples,
                    "differences": _compared(asked, rows, question),
                }
            )
            for numbers in rows:
                numbers |= summary(numbers, [*columns, *REF20.values()])
    for key, near in unknown.items():  # the trainings of a night are not lost for it
        warn(
            f"columns: reports have no number {key!r}"
            + (f", did you mean {near[0]!r}?" if near else "; czsl evaluate --json has all")
        )
    return {"tables": tables}


def _row(row: Any, runs: list[Any], reports: list[Any], failed: list[str], columns: dict[str, str]) -> dict[str, Any]:
    from czsl.runs.states import seconds_of_work
    from czsl_cli.published import REF20

    costs: list[dict[str, Any]] = []
    for planned in runs if reports and runs[0].trains else []:
        end: dict[str, Any] = next(reversed(list(planned.run.metrics("end"))), {})
        memory = end.get("peak_gpu_bytes") or end.get("peak_memory_bytes")
        costs.append({"minutes": seconds_of_work(planned.run) / 60, "peak_gib": memory / 2**30 if memory else None})
    memories = [c["peak_gib"] for c in costs]
    return {
        "row": row.name,
        "clip": runs[0].config.clip,
        "trained": (row.trained or _trained(runs[0])) + (f"; adapted by {row.adapt.name}" if row.adapt else ""),
        "adaptation": row.adapt.to_json() if row.adapt else None,
        "seeds": [p.seed for p in runs],
        "runs": [str(p.path) for p in runs],
        "reports": [
            {**{k: r.get(k) for k in (*columns, *REF20.values())}, "images": r["images"], "intervals": r.get("intervals")}
            for r in reports
        ],
        "intervals": any("intervals" in r for r in reports),
        "costs": costs,
        "minutes": statistics.fmean(c["minutes"] for c in costs) if costs else None,
        "peak_gib": max(memories) if memories and None not in memories else None,
        "failure": "; ".join(failed),
    }


def _trained(planned: Any) -> str:
    """Return a description of a row's training for a file without one."""
    if not planned.trains:
        return "nothing"
    c = planned.config
    part = f"{c.train_per_pair} images per pair" if c.train_per_pair else "all images"
    return f"{part}, {c.epochs} epoch{'s' * (c.epochs != 1)}"


def _compared(asked: Any, rows: list[dict[str, Any]], question: Any) -> list[dict[str, Any]]:
    from cluster.experiment import compared
    from czsl.runs.run import Run
    from czsl_cli.experiment_table import COMPARED, judged

    by_name, found = {row["row"]: row for row in rows}, []
    for first, second in asked.compare:
        one, other = by_name[first], by_name[second]
        about = {"row": second, "to": first, "failure": ""}
        if one["failure"] or other["failure"]:
            found.append({**about, "failure": f"{first if one['failure'] else second} failed"})
            continue
        runs = [[Run(path) for path in row["runs"]] for row in (one, other)]
        asks = [replace(question, adapt=asked.rows[name].adapt) for name in (first, second)]
        differences = compared(runs[0], runs[1], asks[0], asked.resamples, asks[1])
        seeds = max((one["seeds"], other["seeds"]), key=len)
        found.append({**about, **{key: judged(differences, key, seeds) for key in COMPARED}})
    return found


def _show(result: dict[str, Any], data: dict[str, Any], file: Path, options: dict[str, Any], as_json: bool) -> None:
    from czsl_cli.experiment_table import blocks, write_tables
    from czsl_cli.published import next_to_published

    each, benchmark = options["each_seed"], options["published"]
    shown = blocks(result, each)
    if benchmark is not None:
        shown += [next_to_published(table, data[table["data"]], benchmark, each) for table in result["tables"]]
    if as_json:
        print_json(result)
    else:
        for block in shown:
            print_table(block.columns, block.rows, block.title)
            for note in block.notes:
                say(note)
    files = {kind: options[kind] for kind in ("md", "csv", "tex", "html")}
    for path in write_tables(result, shown, files, f"Experiment {file.stem}"):
        say(f"written to {path}")
