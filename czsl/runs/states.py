"""The state of a run folder: how far it got, or what of it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from czsl.errors import CzslError
from czsl.reading import PathLike
from czsl.runs import checkpoint
from czsl.runs.files import is_held
from czsl.runs.run import Run

DAMAGED = "damaged"


@dataclass(frozen=True)
class RunState:
    """State of a run: new, unfinished, done or damaged.

    name : ``done``, ``running``, ``stopped`` (by someone, with a checkpoint), ``failed``, ``interrupted`` (it ended without a word),
        ``new`` (nothing was trained yet), or ``damaged``
    why : what is missing from a damaged run, why a failed one failed, else empty
    """

    name: str
    why: str = ""


def state_of(run: Run, trains: bool) -> RunState:
    """Return the state of a run; ``trains``: whether its method trains (a run without training is done once its settings are there).

    Checkpoints are looked for, not verified: that happens when one is read.
    """
    if not (run.path / "space.json").is_file():
        return RunState(DAMAGED, "space.json is missing")
    if is_held(run.path):
        return RunState("running")
    if not trains:
        return RunState("done")
    there, logged = checkpoint.steps(run.checkpoints), run.metrics_file.is_file()
    if there and not logged:
        return RunState(DAMAGED, "metrics.jsonl is missing")
    ends = list(run.metrics("end"))
    status = ends[-1].get("status") if ends else None
    if status == "done" and not there:
        return RunState(DAMAGED, "training ended, but its checkpoints are missing")
    if status == "done":
        best = checkpoint.best(run.checkpoints).get("checkpoint")
        if best and not (run.checkpoints / Path(best).name).is_dir():
            return RunState(DAMAGED, f"the best checkpoint {best} is missing")
        return RunState("done")
    if status == "failed":
        return RunState("failed", str(ends[-1].get("reason", "")))
    if status == "stopped":
        return RunState("stopped")
    return RunState("interrupted" if logged else "new")


def is_half_gone(path: PathLike) -> str:
    """Return why a folder is not a run, or an empty text if it is absent, empty, or a run that can be opened."""
    path = Path(path)
    if not path.exists():
        return ""
    if not path.is_dir():
        return "it is a file, not a folder"
    if not (path / "config.yaml").is_file():
        return "config.yaml is missing" if any(path.iterdir()) else ""
    try:
        Run(path)
    except CzslError as error:
        return error.why or error.what
    return ""


def seconds_of_work(run: Run) -> float:
    """Return the seconds between a run's first and last record, without the pauses before it was taken up again."""
    total, before = 0.0, None
    for record in run.metrics():
        now = record.get("time")
        if isinstance(now, int | float):
            if before is not None and record.get("event") != "start":
                total += now - before
            before = now
    return round(total, 1)
