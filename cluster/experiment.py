"""The runs of an experiment: which are finished, which are to be trained, and training those on this machine or through Ray Tune."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.evaluate import evaluate_run, load_or_evaluate
from cluster.train import train
from cluster.work.evaluation import EvalConfig, saved_evaluation
from cluster.work.progress import Notice, Progress
from czsl.data.batches import steps_per_epoch, stratified
from czsl.data.table import Dataset
from czsl.errors import CzslError, DataError
from czsl.evaluation import compare
from czsl.reading import read_json
from czsl.runs.config import RunConfig
from czsl.runs.run import Run
from czsl.runs.states import DAMAGED, is_half_gone, seconds_of_work, state_of
from methods.registry import config_class

# What no result depends on; and what an old run has not set, because it follows from the dataset.
IGNORED = ("threads", "orientation", "background")
ANSWERING = ("method", "data", "clip", "clip_weights", "eval_batch", "precision")  # all that counts if nothing is trained


@dataclass
class Planned:
    """A run that an experiment needs.

    row : its name in the table
    data : the dataset's label
    seed : of training; None if the method trains nothing
    config : complete settings
    path : its run folder, of an earlier run or of one to be made
    state : ``missing``, or that of :func:`czsl.runs.states.state_of`
    changed : differences of an earlier run of this row and seed, as text; that run stays and another folder is made
    steps : optimizer steps of the whole training
    """

    row: str
    data: str
    seed: int | None
    config: RunConfig
    path: Path
    state: str = "missing"
    changed: str = ""
    steps: int = field(default=0)

    @property
    def trains(self) -> bool:
        """Return whether anything is left to train."""
        return self.seed is not None

    @property
    def run(self) -> Run:
        """Its run folder, which must exist."""
        return Run(self.path)


def plan(row: str, label: str, seed: int, config: RunConfig, folder: Path, stem: str, data: Dataset) -> Planned:
    """Find the run of a row and a seed among those of a folder, or the name of a new one.

    Folders ``stem``, ``stem-2``, ... are looked at; the one with the very settings counts. None is ever overwritten.

    Raises
    ------
    DataError
        A folder is incomplete, or a run with these settings was trained on other data than there is now.
    """
    trains = config_class(config.method).trains
    found = Planned(row, label, seed if trains else None, config, folder / stem)
    if trains:
        split = data.split("train")
        images = len(split) if config.partial_labels else len(stratified(split.attr, split.obj, config.train_per_pair, seed))
        found.steps = config.epochs * steps_per_epoch(images, config.batch)
    for attempt in itertools.count(1):
        path = folder / (stem if attempt == 1 else f"{stem}-{attempt}")
        if why := is_half_gone(path):
            raise _incomplete(path, why)
        found.path = path
        if not (path / "config.yaml").is_file():
            return found
        run = Run(path)
        difference = _differences(run.config, config)
        if not difference:
            break
        found.changed = f"{path.name} has {difference}"
    state = state_of(run, trains)
    if state.name == DAMAGED:
        raise _incomplete(path, state.why)
    trained_on = run.environment().get("data_sha256")
    if trained_on not in (None, data.sha256):
        raise DataError(
            f"{path} was trained on other data than the experiment's",
            f"the SHA-256 of its dataset is {trained_on[:12]}..., that of {config.data} is {data.sha256[:12]}...: "
            "seeds and rows would differ in their data",
            f"restore the dataset, choose another --out, or remove {path} to train it again",
        )
    found.state, found.changed = state.name, ""
    return found


def _incomplete(path: Path, why: str) -> DataError:
    return DataError(f"the run folder {path} is incomplete", why, "restore it from a copy, or remove it to train this run again")


def _differences(there: RunConfig, wanted: RunConfig) -> str:
    """Settings of an earlier run that differ, as text; empty without any."""
    one, other = _plain(there), _plain(wanted)
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    shown = [f"{name}={one.get(name)} (the experiment wants {other.get(name)})" for name in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _plain(config: RunConfig) -> dict[str, Any]:
    kind = config_class(config.method)
    settings = {k: v for k, v in config.to_dict().items() if k not in (*IGNORED, "model") and (kind.trains or k in ANSWERING)}
    # A method's settings that are younger than a run have defaults that leave it as it was.
    own = asdict(kind(**config.model))
    return json.loads(json.dumps({**settings, **own}))


def seconds_expected(planned: Planned, all_runs: Sequence[Planned]) -> float | None:
    """Return the seconds that what is left of a run will take, from finished runs of its row or from its own steps; None: unknown."""
    if not planned.trains or planned.state == "done":
        return 0.0
    known = [
        seconds_of_work(p.run) / p.steps
        for p in all_runs
        if p.row == planned.row and p.data == planned.data and p.state == "done" and p.steps
    ]
    done = 0
    if planned.state != "missing":
        records = list(planned.run.metrics("step"))
        done = max((r["step"] for r in records), default=0)
        if not known and len(records) > 1:
            known = [(records[-1]["time"] - records[0]["time"]) / max(records[-1]["step"] - records[0]["step"], 1)]
    return max(planned.steps - done, 0) * sum(known) / len(known) if known else None


def make_run(planned: Planned, data: Dataset) -> Run:
    """Make a planned run's folder, or open it."""
    if planned.state != "missing":
        return planned.run
    if planned.path.is_dir():
        planned.path.rmdir()  # left empty by a process that was killed
    run = Run.create(planned.config, data.space, planned.path.parent, planned.path.name)
    if not planned.trains:
        run.write_environment(seed=planned.config.seed, data_sha256=data.sha256)
    planned.state = "new"
    return run


def train_one(planned: Planned, **where: Any) -> str:
    """Train a planned run whose folder exists; returns ``done`` or ``stopped``. Keyword arguments as :func:`cluster.train.train`."""
    status = train(planned.run, **where)
    planned.state = status
    return status


def train_all(planned: Sequence[Planned], folder: Path, **how: Any) -> str:
    """Train planned runs whose folders exist, several at once; returns ``done`` or ``stopped``.

    Keyword arguments as :func:`cluster.tuning.together.train_together`.
    """
    from cluster.tuning.together import train_together

    status = train_together([p.run for p in planned], folder, **how)
    for p in planned:
        p.state = state_of(p.run, p.trains).name
    return status


def measured(run: Run, eval_config: EvalConfig, progress: Progress, notice: Notice, **where: Any) -> dict[str, Any]:
    """Return a run's report, the kept one if it is of this checkpoint, data and number of resamples, else that of an evaluation now."""
    file = run.path / f"report-{eval_config.name}.json"
    kept, _ = saved_evaluation(run, eval_config)
    if kept is not None and file.is_file():
        found = read_json(file)
        if (not eval_config.bootstrap or "intervals" in found) and _same_threshold(found, eval_config):
            return found
    return evaluate_run(run, eval_config, progress=progress, notice=notice, **where)


def _same_threshold(report: dict[str, Any], eval_config: EvalConfig) -> bool:
    """Return True if a kept report treats infeasible pairs as the settings do; always in the closed world."""
    if not eval_config.open_world:
        return True
    if report.get("rule", eval_config.rule) != eval_config.rule:
        return False
    given = report.get("threshold") if report.get("threshold_chosen") == "given" else None
    return given == eval_config.threshold


def compared(
    first: Sequence[Run], second: Sequence[Run], eval_config: EvalConfig, resamples: int, second_config: EvalConfig | None = None
) -> list[dict[str, Any]]:
    """Return the paired differences of two rows, seed by seed, as :func:`czsl.evaluation.compare` gives them.

    ``second_config``: of the second row if it differs from that of the first, such as by an adaptation.

    A row that has one run for all seeds is compared with each run of the other.
    """
    count = max(len(first), len(second))
    firsts, seconds = (list(runs) * count if len(runs) == 1 else list(runs) for runs in (first, second))
    found = []
    for one, other in zip(firsts, seconds, strict=False):
        a, b = load_or_evaluate(one, eval_config), load_or_evaluate(other, second_config or eval_config)
        found.append(compare(a.extremes, b.arranged(a.ids).extremes, resamples, seed=0))
    return found


def failure_of(run: Run) -> str:
    """Return why a run failed, in one line; empty if it did not."""
    return next((str(r["reason"]) for r in reversed(list(run.metrics("end"))) if r.get("reason")), "")


def reason_of(error: CzslError) -> str:
    """Return an error in one line."""
    return "; ".join(part for part in (error.what, error.why) if part)
