"""Decisions of a search for Ray Tune: the next trial, and whether a trial may continue. Imported only with a connected Ray.

Ray Tune shares the cluster between trials and follows them; what it remembers is made from the search's own folder, so that a search
whose driver was killed continues without anything of Ray's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from cluster.tuning.proposals import Proposals
from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from czsl.runs.config import RunConfig
from czsl.runs.search import with_values
from czsl.runs.trials import OVER, Search, Trial
from methods.registry import config_class

VALUE, EPOCH = "value", "epoch"  # as trials report them
REDUCTION = 3  # of three trials at a rung, one continues


class Queue(Searcher):
    """Hands out trainings, one after the other: the base of those whose list is known and of a search's.

    Parameters
    ----------
    trials : iterable of Trial
        Those to train.
    nodes : int
        Nodes of a trial.
    """

    def __init__(self, trials: Iterable[Trial] = (), nodes: int = 1):
        super().__init__(metric=VALUE, mode="max")
        self._waiting, self._nodes = deque(trials), nodes
        self.live: dict[str, Trial] = {}
        self._starts: dict[str, int] = {}  # of live trials that have not made a step since they were handed out
        self.stopping = self._warm = False

    @property
    def left(self) -> int:
        """Trials not handed out yet."""
        return len(self._waiting)

    def suggest(self, trial_id: str) -> Any:
        """The next trial, None for not now, FINISHED for no more."""
        if self._starts and not self._may_join():
            return None
        while self.left and not self.stopping:
            trial = self._next()
            if not trial.reason:
                self.live[trial_id], self._starts[trial_id] = trial, len(list(trial.run.metrics("start"))) if trial.run else 0
                return {"number": trial.number, "run": str(trial.path)}
            self._refused(trial)
        return Searcher.FINISHED

    def _may_join(self) -> bool:
        """Return whether another trial may start next to those that run.

        Once the first has made a step its image features and pixels lie in the cache, and no other trial makes them. Trials of several
        nodes choose these by what is free when they start, so they start one after the other.
        """
        for trial_id, before in list(self._starts.items()):
            if _made_a_step(self.live[trial_id], before):
                del self._starts[trial_id]
                self._warm = True
        return not self._starts or (self._warm and self._nodes == 1)

    def _next(self) -> Trial:
        return self._waiting.popleft()

    def _refused(self, trial: Trial) -> None:
        """Take note of a trial with invalid settings."""

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Forget a trial that is over; ``error``: its process died more often than it is replaced."""
        trial = self.live.pop(trial_id)
        self._starts.pop(trial_id, None)
        if error and trial.status() not in OVER:
            trial.reason = "its process died repeatedly"
        self._over(trial, result)

    def _over(self, trial: Trial, result: dict | None) -> None:
        """Take note of how a trial ended."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folders of the runs are the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see :meth:`save`."""


class SearchQueue(Queue):
    """Hands out the trials of a search that are not over: those begun before, then new ones.

    Parameters
    ----------
    search : Search
    proposals : Proposals
    space : CompositionSpace
        Label space of the data, for the trials' run folders.
    on_trial : callable
        Called with every trial with invalid settings.
    """

    def __init__(self, search: Search, proposals: Proposals, space: CompositionSpace, on_trial: Callable[[Trial], None]):
        begun = {t.number: t for t in search.trials()}
        super().__init__((t for t in begun.values() if t.status() not in OVER), search.config.nodes)
        self._search, self._proposals, self._space, self._on_trial = search, proposals, space, on_trial
        self._method = config_class(search.config.base.method)
        self._new = deque(n for n in range(search.config.trials) if n not in begun)

    @property
    def left(self) -> int:
        """Trials not handed out yet."""
        return super().left + len(self._new)

    def _next(self) -> Trial:
        if self._waiting:
            trial = super()._next()
            self._proposals.ask(trial.number, trial.values)
            return trial
        number = self._new.popleft()
        values = self._proposals.ask(number)
        config: RunConfig | None = None
        reason = ""
        try:
            config = with_values(self._search.config.base, values, self._method)
        except UsageError as error:
            reason = " ".join(str(error).split())
        return self._search.add(number, values, config, self._space, reason)

    def _refused(self, trial: Trial) -> None:
        self._proposals.tell(trial.number, None)
        self._on_trial(trial)

    def _over(self, trial: Trial, result: dict | None) -> None:
        if trial.reason:
            trial.keep()
        failed = trial.status() == "failed"
        self._proposals.tell(trial.number, None if failed else (result or {}).get(VALUE))


def _made_a_step(trial: Trial, starts: int) -> bool:
    """Return whether a run has taken a step since it was started more often than ``starts`` times."""
    events = [r.get("event") for r in trial.run.metrics()] if trial.run else []
    return events.count("start") > starts and "step" in events[len(events) - events[::-1].index("start") :]


class Halving(ASHAScheduler):
    """Asynchronous successive halving over our own epochs; a trial with low metrics ends by itself, with a checkpoint.

    Parameters
    ----------
    search : Search
        Trials that are over enter the rungs again.
    live : dict
        Those that run, of the queue; here they are marked as pruned.
    max_epochs : int
        The largest number of epochs of any trial.
    """

    def __init__(self, search: Search, live: dict[str, Trial], max_epochs: int):
        grace = min(search.config.grace, max_epochs)
        super().__init__(time_attr=EPOCH, max_t=max_epochs, grace_period=grace, reduction_factor=REDUCTION)
        self._search, self._live = search, live

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Ray names the metric; from here on results can be judged, those of before first."""
        good = super().set_search_properties(metric, mode, **spec)
        past: list[tuple[float, Any, dict[str, Any]]] = []
        nobody: Any = None  # the base class never uses the controller here
        for trial in self._search.trials():
            if trial.status() in OVER:
                known: Any = _Known(trial.path.name)
                super().on_trial_add(nobody, known)
                past += [(r["time"], known, r) for r in trial.reports(self._search.config.metric)]
        for _, known, result in sorted(past, key=lambda entry: entry[0]):
            super().on_trial_result(nobody, known, result)
        return good

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Always CONTINUE: a trial ends by its own stop file, which it gets once it is marked."""
        decision = super().on_trial_result(tune_controller, trial, result)
        mine = self._live.get(trial.trial_id)
        if decision == self.STOP and mine and mine.pruned is None and mine.run and result[EPOCH] < mine.run.config.epochs:
            mine.pruned = result[EPOCH]
            mine.keep()
        return self.CONTINUE


class Silence(TrialProgressCallback):
    """Silences Ray's progress output: stdout is reserved for results."""

    def _print(self, msg: str) -> None:
        pass


class _Known:
    """Stub for a finished trial: the scheduler reads its id only."""

    def __init__(self, trial_id: str):
        self.trial_id = trial_id
