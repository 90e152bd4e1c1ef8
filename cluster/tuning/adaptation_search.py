"""The folder of a search for an adaptation's settings: ``adapt.yaml``, and ``trials.jsonl`` with a line per trial that is over."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from czsl.errors import UsageError
from czsl.reading import PathLike, json_records
from czsl.runs.files import write_atomically, write_json
from czsl.runs.search import Space, parse_space
from czsl.runs.search_folder import SearchFolder, write_trials_csv
from methods.adaptation.registry import adaptation_config

TRIALS = "trials.jsonl"
ROW = ("trial", "status", "values", "val_auc", "val_hm", "auc_range", "seconds", "reason")
NONE, GIVEN = "none", "given"  # the two further rows: without adaptation, and with the settings that trials start from


@dataclass
class AdaptationSearchConfig:
    """Settings of a search; ``adapt.yaml`` holds them in full.

    run: folder of the run that is adapted.
    adapt: name of the adaptation.
    space: settings to search, as in a search file: ``{setting: {kind: arguments}}``.
    given: settings of every trial where the search does not change them.
    checkpoint: ``best``, ``last`` or a step.
    checkpoint_sha256: of the weights; a search does not continue with others.
    open_world: all attribute-object pairs compete; each trial is compared at its best feasibility threshold.
    orders: seeds of the orders of the stream whose mean counts; nothing (null) for the order of the split.
    trials: how many to try.
    algorithm: ``random``, ``grid`` or ``optuna`` (TPE).
    metric: ``val_auc`` or ``val_hm``: exact, on the validation split.
    seed: of the trials' values.
    """

    run: str
    adapt: str
    space: dict[str, Any]
    given: dict[str, Any]
    checkpoint: str = "best"
    checkpoint_sha256: str = ""
    open_world: bool = False
    orders: list = field(default_factory=lambda: [0, 1, 2])
    trials: int = 16
    algorithm: Literal["random", "grid", "optuna"] = "random"
    metric: Literal["val_auc", "val_hm"] = "val_auc"
    seed: int = 0

    def __post_init__(self):
        if not self.orders or any(o is not None and (type(o) is not int or not 0 <= o < 2**32) for o in self.orders):
            raise UsageError(
                f"orders={self.orders!r}", "each is a seed from 0 on, or nothing", "give for example orders: [0, 1, 2]"
            )

    @property
    def parsed(self) -> Space:
        """The parsed search space; UsageError if it is not valid."""
        return parse_space(self.space, self.adapt, adaptation_config(self.adapt), of_runs=False)


class AdaptationSearch(SearchFolder):
    """A folder ``runs/tune-<adaptation>-<run>-<time>/``; UsageError if it holds no readable ``adapt.yaml``."""

    settings, kind = "adapt.yaml", AdaptationSearchConfig
    config: AdaptationSearchConfig
    space: Space

    @classmethod
    def create(cls, config: AdaptationSearchConfig, out: PathLike, name: str | None = None) -> AdaptationSearch:
        """Make the folder and write ``adapt.yaml``; an existing search is never overwritten."""
        return cls.new(config, out, name, f"{config.adapt}-{Path(config.run).name}")

    def check(self) -> None:
        """Parse the search space; UsageError if it is not valid."""
        self.space = self.config.parsed

    def add(self, row: dict[str, Any]) -> None:
        """Append a row that is over."""
        with (self.path / TRIALS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that are over: NONE, GIVEN, then trials by number; half-written lines are left out.

        ``trial`` is NONE, GIVEN or a number, ``values`` its settings, ``val_auc`` and ``val_hm`` means over the orders and None for a
        failed trial, ``auc_range`` the least and the largest AUC, ``seconds``, ``status`` (``done`` or ``failed``), ``reason``.
        """
        places = {NONE: -2, GIVEN: -1} | {n: n for n in range(self.config.trials)}
        known = {r["trial"]: r for r in json_records(self.path / TRIALS) if self._wrote(r) and r["trial"] in places}
        return sorted(known.values(), key=lambda r: places[r["trial"]])

    def _wrote(self, row: dict[str, Any]) -> bool:
        """Return whether a row is what :meth:`add` writes: any other is scored again."""
        if row.keys() != set(ROW) or type(row["trial"]) not in (int, str) or not isinstance(row["values"], dict):
            return False
        space = self.space if type(row["trial"]) is int else {}
        if row["values"].keys() != space.keys() or not all(space[name].holds(v) for name, v in row["values"].items()):
            return False
        numbers = (row["val_auc"], row["val_hm"])
        if row["status"] == "failed":
            return bool(space) and numbers == (None, None) and isinstance(row["reason"], str) and _finite(row["seconds"])
        spread = row["auc_range"]
        return row["status"] == "done" and _finite(*numbers, row["seconds"], *(spread if isinstance(spread, list) else [None]))

    def clean(self) -> None:
        """Drop what a killed process left of a line; call it only while no row is being added."""
        if (self.path / TRIALS).exists():
            write_atomically(self.path / TRIALS, "".join(json.dumps(row) + "\n" for row in self.rows()).encode())

    @property
    def is_over(self) -> bool:
        """Return whether all trials are over."""
        return len(self.rows()) == self.config.trials + 2

    def best(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """The adapted row with the highest metric; the earlier one of equals."""
        good = [r for r in rows if r["trial"] != NONE and r["status"] == "done"]
        return max(good, key=lambda r: r[self.config.metric], default=None)

    def write_results(self, rows: Sequence[dict[str, Any]], **facts: Any) -> dict[str, Any]:
        """Write ``trials.csv`` and ``report.json``."""
        report = {**facts, "metric": self.config.metric, "best": self.best(rows), "trials": list(rows)}
        write_json(self.path / "report.json", report)
        write_trials_csv(self.path / "trials.csv", rows)
        return report


def _finite(*values: Any) -> bool:
    return all(isinstance(v, float) and math.isfinite(v) for v in values)
