"""The runs of an experiment: planned, trained unless they exist, and measured."""

from __future__ import annotations

import difflib
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from czsl_cli.console import progress_bar, say, warn


def planned(asked: Any, out: Path) -> tuple[list[Any], dict[str, Any]]:
    """Every run that the table needs, in order, and the datasets by label; what can be wrong with settings is found here."""
    from cluster.experiment import plan
    from czsl.data.table import open_data
    from czsl.errors import UsageError
    from czsl_cli.checked import checked
    from methods.registry import config_class

    plans: list[Any] = []
    data = {label: open_data(folder) for label, folder in asked.data.items()}
    shown: set[str] = set()
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
                    if note not in shown:
                        shown.add(note)
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


# -- training --------------------------------------------------------------------------------------------------------------
def train_missing(
    plans: list[Any], data: dict[str, Any], where: dict[str, Any], out: Path, at_once: int | None
) -> dict[str, str]:
    """Train what is missing; return why runs failed, by folder.

    Raises
    ------
    KeyboardInterrupt
        A signal asked to stop; what was being trained has a checkpoint if it had begun.
    """
    from cluster.experiment import make_run
    from cluster.machines.nodes import NodeRequest

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
        return {}
    if NodeRequest.of(**where).local:
        return _one_by_one(todo, where)
    return _together(todo, where, out, at_once)


def what_is_left(plans: list[Any]) -> str:
    """Return how many runs are finished, where begun ones continue, and that the same command does it."""
    from czsl.runs import checkpoint

    trained = [p for p in plans if p.trains]
    done = sum(p.state == "done" for p in trained)
    found = {p.path.name: checkpoint.newest_valid(p.run.checkpoints) for p in trained if p.state not in ("done", "missing")}
    begun = "".join(f", {name} continues at step {checkpoint.step_of(path)}" for name, path in found.items() if path)
    return f"{done} of {len(trained)} trainings are finished{begun}; repeat the command to continue"


def _one_by_one(todo: list[Any], where: dict[str, Any]) -> dict[str, str]:
    from cluster.experiment import reason_of, train_one
    from czsl.errors import CzslError
    from czsl_cli.train_watch import TrainingWatcher

    failures: dict[str, str] = {}
    with progress_bar() as bar:
        for number, planned in enumerate(todo, 1):
            say(f"run {number} of {len(todo)}: {planned.path.name}, {planned.steps:,} steps")
            watcher = TrainingWatcher(planned.config.epochs, bar)
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
                raise KeyboardInterrupt
    return failures


def _together(todo: list[Any], where: dict[str, Any], out: Path, at_once: int | None) -> dict[str, str]:
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
    if status == "stopped":
        raise KeyboardInterrupt
    return failures


# -- numbers ---------------------------------------------------------------------------------------------------------------
def measure(
    asked: Any, plans: list[Any], data: dict[str, Any], failures: dict[str, str], where: dict[str, Any]
) -> dict[str, Any]:
    """Return the numbers of every row by dataset and evaluation, with the wanted differences."""
    from cluster.experiment import measured
    from cluster.work.evaluation import EvalConfig
    from czsl_cli.experiment_table import summary, usual_columns
    from czsl_cli.published import REF20, world_of

    tables: list[dict[str, Any]] = []
    unknown: dict[str, list[str]] = {}
    for label in asked.data:
        columns = asked.columns or usual_columns(data[label].space.noun)
        for heading, settings in asked.evaluate.items():
            eval_config = EvalConfig(**settings)
            rows = []
            with progress_bar() as bar:
                for name, row in asked.rows.items():
                    runs = [p for p in plans if (p.row, p.data) == (row.home, label)]
                    failed = [f"{p.path.name}: {failures[p.path.name]}" for p in runs if p.path.name in failures]
                    own = replace(eval_config, adapt=row.adapt)
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
                    "differences": _compared(asked, rows, eval_config),
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


def _compared(asked: Any, rows: list[dict[str, Any]], eval_config: Any) -> list[dict[str, Any]]:
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
        asks = [replace(eval_config, adapt=asked.rows[name].adapt) for name in (first, second)]
        differences = compared(runs[0], runs[1], asks[0], asked.resamples, asks[1])
        seeds = max((one["seeds"], other["seeds"]), key=len)
        found.append({**about, **{key: judged(differences, key, seeds) for key in COMPARED}})
    return found
