"""The folder of a hyperparameter search: ``tune.yaml`` and a run folder a trial. It is the only truth about the search.

``trials/007/trial.json`` holds what the search decided about trial 7 (its values, why it could not start, when it was stopped early); all
else is the run's own: ``config.yaml``, ``metrics.jsonl``, ``checkpoints/``. A folder that is taken away is made and trained again.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from czsl.compositions import CompositionSpace
from czsl.errors import CzslError, UsageError
from czsl.reading import PathLike, read_json
from czsl.runs.config import RunConfig
from czsl.runs.files import write_atomically, write_json
from czsl.runs.run import Run, well_formed
from czsl.runs.search_folder import SearchFolder, write_trials_csv
from czsl.runs.settings import check_known, typed
from czsl.runs.states import seconds_of_work

METRICS = {"val_auc": "auc", "val_hm": "hm"}  # name for users -> key in the metrics of a run
OVER = ("done", "pruned", "failed")


@dataclass
class SearchConfig:
    """Settings of a search; ``tune.yaml`` holds them in full.

    space: settings to search, as in a search file: ``{setting: {kind: arguments}}``.
    config: settings of every trial (a run's ``config.yaml``) where the search does not change them.
    trials: how many to run.
    algorithm: ``random``, ``grid`` or ``optuna`` (TPE).
    scheduler: ``asha`` stops trials with low metrics early (Li et al., A System for Massively Parallel Hyperparameter Tuning,
        MLSys 2020); ``none`` lets all finish.
    grace: epochs before a trial may be stopped.
    metric: ``val_auc`` or ``val_hm``: exact, closed world, on the validation split; the best epoch counts.
    seed: of the trials' values.
    nodes: nodes a trial.
    workers_per_node: of a trial.
    max_concurrent: trials at once (0: what the cluster holds).
    """

    space: dict[str, Any]
    config: dict[str, Any]
    trials: int = 16
    algorithm: Literal["random", "grid", "optuna"] = "random"
    scheduler: Literal["asha", "none"] = "asha"
    grace: int = 1
    metric: Literal["val_auc", "val_hm"] = "val_auc"
    seed: int = 0
    nodes: int = 1
    workers_per_node: int = 1
    max_concurrent: int = 0

    @property
    def base(self) -> RunConfig:
        """``config`` as settings of a run."""
        return RunConfig.from_file(self.config)


@dataclass
class Trial:
    """One set of values and the run that tries it.

    number : its place in the search
    path : its run folder
    values : the searched settings
    pruned : epoch after which the search stopped it, or None
    reason : why its settings are invalid, or why it died; empty for a valid trial
    """

    number: int
    path: Path
    values: dict[str, Any]
    pruned: int | None = None
    reason: str = ""

    def keep(self) -> None:
        """Write ``trial.json``."""
        content = {k: v for k, v in asdict(self).items() if k != "path"}
        write_json(self.path / "trial.json", content)

    @property
    def run(self) -> Run | None:
        """Its run; None if the settings are invalid."""
        return Run(self.path) if (self.path / "config.yaml").is_file() else None

    def status(self) -> str:
        """``done``, ``pruned`` (stopped early), ``failed``, or ``unfinished``."""
        run = self.run
        ends = [record.get("status") for record in run.metrics("end")] if run else []
        end = ends[-1] if ends else None
        if self.reason or end == "failed":
            return "failed"
        if end == "stopped" and self.pruned is not None:
            return "pruned"
        return "done" if end == "done" else "unfinished"

    def curve(self, metric: str) -> list[dict[str, Any]]:
        """``epoch``, ``value``, ``time`` of each epoch that has the metric."""
        records = self.run.metrics("epoch") if self.run else ()
        found = ((r, r.get(METRICS[metric])) for r in records)
        return [
            {"epoch": r["epoch"], "value": v, "time": r["time"]} for r, v in found if v is not None and well_formed(r, whole=True)
        ]

    def reports(self, metric: str) -> list[dict[str, Any]]:
        """The same with the best value up to each epoch, for its best checkpoint is what a trial leaves."""
        curve = self.curve(metric)
        best = itertools.accumulate((r["value"] for r in curve), max)
        return [{**r, "value": value} for r, value in zip(curve, best, strict=True)]

    def summary(self, metric: str) -> dict[str, Any]:
        """Row of a table of trials: status, epochs, the best epoch and its numbers, seconds of work, reason, path."""
        records = list(self.run.metrics()) if self.run else []
        epochs = [r for r in records if r["event"] == "epoch" and "epoch" in r]
        key = METRICS[metric]
        best = max((e for e in epochs if e.get(key) is not None), key=lambda e: e[key], default={})
        failure = next((r["reason"] for r in reversed(records) if r.get("reason")), "")
        return {
            "trial": self.number,
            "status": self.status(),
            "values": self.values,
            "epochs_done": len({e["epoch"] for e in epochs}),
            "best_epoch": best.get("epoch"),
            "val_auc": best.get("auc"),
            "val_hm": best.get("hm"),
            "seconds": seconds_of_work(self.run) if self.run else 0.0,
            "reason": self.reason or failure,
            "run": str(self.path),
        }


class Search(SearchFolder):
    """A folder ``runs/tune-<method>-<data>-<time>/``; UsageError if it holds no readable ``tune.yaml``."""

    settings, kind = "tune.yaml", SearchConfig
    config: SearchConfig

    @classmethod
    def create(cls, config: SearchConfig, out: PathLike, name: str | None = None) -> Search:
        """Make the folder and write ``tune.yaml``; an existing search is never overwritten."""
        base = config.base
        search = cls.new(config, out, name, f"{base.method}-{Path(base.data).name}")
        search.folder.mkdir()
        return search

    def check(self) -> None:
        """Raise UsageError unless the settings of the trials are those of a run."""
        check_known(self.config.config, [*RunConfig.field_names(), "model"], "NAME")
        typed(self.config.config, RunConfig)
        RunConfig(**self.config.config)

    @property
    def folder(self) -> Path:
        """Return the path of the trials."""
        return self.path / "trials"

    def add(
        self, number: int, values: dict[str, Any], config: RunConfig | None, space: CompositionSpace, reason: str = ""
    ) -> Trial:
        """A new trial: its run folder, or, without settings, only the reason why they are invalid."""
        trial = Trial(number, self.folder / f"{number:03d}", values, reason=reason)
        if config is None:
            trial.path.mkdir()
        else:
            Run.create(config, space, self.folder, trial.path.name)
        trial.keep()
        return trial

    def trials(self) -> list[Trial]:
        """Return the trials begun, in order.

        Raises
        ------
        UsageError
            A ``trial.json`` that is damaged.
        """
        found = []
        for file in self.folder.glob("*/trial.json"):
            try:
                content = read_json(file)
                if not isinstance(content, dict) or not content.keys() >= {"number", "values"}:
                    raise TypeError("it is not a record of a trial")
                check_known(content, (f.name for f in fields(Trial) if f.name != "path"), "NAME")
                found.append(Trial(path=file.parent, **typed(content, Trial)))
            except (TypeError, CzslError) as error:
                why = error.why or error.what if isinstance(error, CzslError) else str(error)
                raise UsageError(f"{file} cannot be read", why, f"remove {file.parent} to repeat this trial") from None
        return sorted(found, key=lambda t: t.number)

    def is_over(self) -> bool:
        """Return whether all trials have been started and have ended."""
        status = {t.number: t.status() for t in self.trials()}
        return set(status) >= set(range(self.config.trials)) and all(s in OVER for s in status.values())

    def clean(self) -> None:
        """Delete unfinished files of a killed process; call it only while no trial is being added."""
        for path in self.folder.iterdir():
            if not (path / "trial.json").is_file():
                shutil.rmtree(path)

    # -- what comes out ------------------------------------------------------------------------------------------------
    def summaries(self) -> list[dict[str, Any]]:
        """One row a trial, see :meth:`Trial.summary`."""
        return [trial.summary(self.config.metric) for trial in self.trials()]

    def best(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """The row with the highest metric among trials that ended well; the earlier one of equals."""
        metric = self.config.metric
        good = [r for r in rows if r["status"] in ("done", "pruned") and r[metric] is not None]
        return max(good, key=lambda r: r[metric], default=None)

    def write_results(self, rows: Sequence[dict[str, Any]], **facts: Any) -> dict[str, Any]:
        """Write ``trials.csv``, ``report.json`` and ``best.yaml``, the settings of the best trial as ``czsl train --config`` takes them."""
        best = self.best(rows)
        report = {**facts, "metric": self.config.metric, "best": best, "trials": list(rows)}
        write_json(self.path / "report.json", report)
        write_trials_csv(self.path / "trials.csv", rows)
        if best:
            write_atomically(self.path / "best.yaml", (Path(best["run"]) / "config.yaml").read_bytes())
        return report
