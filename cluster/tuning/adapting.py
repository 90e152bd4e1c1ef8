"""Search of an adaptation's settings on the validation images of a run.

Nothing is trained, so there is no cluster to share: image and text features are encoded once, and each trial scores them again in this
process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import numpy as np

from cluster.tuning.adaptation_search import GIVEN, NONE, AdaptationSearch, AdaptationSearchConfig
from cluster.tuning.proposals import Proposals, proposals_of
from cluster.work.adapting import reduce_stream
from cluster.work.comm import Group
from cluster.work.evaluation import EvalConfig, prepare
from cluster.work.progress import Progress, quiet
from cluster.work.scoring import score_split
from cluster.work.threads import cpu_threads
from czsl.errors import DataError, UsageError
from czsl.evaluation import Candidates, Curve, Extremes, threshold_rows
from czsl.gpus import own_device
from czsl.runs.files import held
from czsl.runs.run import Run
from methods.adaptation.plan import Plan
from methods.fingerprint import fingerprint

OnRow = Callable[[dict[str, Any]], None]


def adaptation_proposals(config: AdaptationSearchConfig, rows: list[dict[str, Any]]) -> Proposals:
    """The search algorithm, with the trials that are over."""
    tried = [(r["values"], r[config.metric]) for r in rows if r["trial"] not in (NONE, GIVEN)]
    return proposals_of(config.algorithm, config.parsed, config.seed, tried)


def plan_with(config: AdaptationSearchConfig, values: Mapping[str, Any], order: int | None = 0) -> Plan:
    """The adaptation of a trial; UsageError for what its settings refuse."""
    return Plan.of(config.adapt, {**config.given, **values}, order)


def search_adaptation(search: AdaptationSearch, progress: Progress = quiet, on_row: OnRow = lambda row: None) -> None:
    """Score what is not over yet of a search: the run without adaptation, the given settings, and each trial.

    Parameters
    ----------
    search : AdaptationSearch
        A new search, or one that was interrupted.
    progress : Progress
    on_row : callable
        Called with every row that is over, in the form of :meth:`AdaptationSearch.rows`.

    Raises
    ------
    UsageError
        The run has other weights than when the search began.
    DataError
        No validation images, or none of unseen pairs: there is no AUC to compare.
    """
    config, run = search.config, Run(search.config.run)
    with held(search.path, "this search"):
        if search.is_over:
            return
        if fingerprint(run, config.checkpoint) != config.checkpoint_sha256:
            raise UsageError(
                f"{run.path} has changed since this search began", "its trials would not be comparable", "start a new search"
            )
        search.clean()
        with cpu_threads(run.threads):
            _Scorer(search, run, progress, on_row).score_all()


class _Scorer:
    """Validation images of a run, encoded once, and what scores them with one plan after the other."""

    def __init__(self, search: AdaptationSearch, run: Run, progress: Progress, on_row: OnRow):
        self.search, self.config, self.run, self.on_row = search, search.config, run, on_row
        self.progress, self.now = progress, "validation"
        asked = EvalConfig(split="val", open_world=self.config.open_world, checkpoint=self.config.checkpoint)
        self.ready = prepare(run, asked, Group(), own_device())
        self.loader = self.ready.loader(run, "val", Group(), self._tell)
        self.loader.hold(run.config.eval_batch)

    def score_all(self) -> None:
        """Score what is not over."""
        rows = self.search.rows()
        over, source = {r["trial"] for r in rows}, adaptation_proposals(self.config, rows)
        if NONE not in over:
            self._keep(NONE, {}, [None])
        if GIVEN not in over:
            self._keep(GIVEN, {}, self._plans({}))
        for number in range(self.config.trials):
            if number in over:
                continue
            values, plans, reason = source.ask(number), [], ""
            try:
                plans = self._plans(values)
            except UsageError as error:
                reason = " ".join(str(error).split())
            row = self._keep(number, values, plans, reason)
            source.tell(number, row[self.config.metric])

    def _plans(self, values: dict[str, Any]) -> list[Plan | None]:
        return [plan_with(self.config, values, order) for order in self.config.orders]

    def _keep(self, trial: int | str, values: dict[str, Any], plans: list[Plan | None], reason: str = "") -> dict[str, Any]:
        """Score with each plan, and write down the row."""
        began, found = time.monotonic(), []
        for place, plan in enumerate(plans):
            what = {NONE: "without adaptation", GIVEN: "settings as given"}.get(str(trial), f"trial {trial}")
            self.now = f"{what}, order {place + 1} of {len(plans)}" if len(plans) > 1 else what
            found.append(_numbers(self._extremes(plan), self.ready.candidates))
        aucs = [numbers["auc"] for numbers in found]
        row = {
            "trial": trial,
            "status": "failed" if reason else "done",
            "values": values,
            "val_auc": fmean(aucs) if found else None,
            "val_hm": fmean(numbers["hm"] for numbers in found) if found else None,
            "auc_range": [min(aucs), max(aucs)] if found else None,
            "seconds": round(time.monotonic() - began, 2),
            "reason": reason,
        }
        self.search.add(row)
        self.on_row(row)
        return row

    def _extremes(self, plan: Plan | None) -> Extremes:
        ready, batch = self.ready, self.run.config.eval_batch
        if plan is None:
            rows = np.arange(len(self.loader.split))
            return score_split(ready.method, self.loader, ready.candidates, rows, batch, Group(), self._tell, text=ready.text)
        return reduce_stream(ready.method, plan, self.loader, ready.candidates, batch, Group(), self._tell, text=ready.text)[0]

    def _tell(self, what: str, done: int, total: int) -> None:
        self.progress(f"{self.now}: {what}", done, total)


def _numbers(extremes: Extremes, candidates: Candidates) -> dict[str, float]:
    """AUC and HM; in the open world those at the feasibility threshold with the best AUC.

    Raises
    ------
    DataError
        They are undefined.
    """
    rows = threshold_rows(extremes, candidates) if len(candidates.thresholds) else [Curve(extremes).numbers()]
    best = max(rows, key=lambda r: r["auc"] if r["auc"] is not None and math.isfinite(r["auc"]) else -1.0)
    if best["auc"] is None or not math.isfinite(best["auc"]):
        noun = candidates.space.noun
        raise DataError(
            f"the validation images have no seen, or no unseen {noun}",
            "their AUC is undefined, and trials are compared by it",
            "import the data with a val split that has both",
        )
    return {key: float(best[key]) for key in ("auc", "hm")}
