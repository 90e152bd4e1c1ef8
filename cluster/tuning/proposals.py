"""Proposals of a search: drawn at random, from a grid, or by Optuna's TPE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from czsl.errors import SetupError
from czsl.runs.search import Domain, Space, grid, sample


class Proposals(Protocol):
    """A source of trials."""

    def ask(self, number: int, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """The values of trial ``number``; with ``values``, those of a trial begun earlier, which it thereby learns of."""

    def tell(self, number: int, value: float | None) -> None:
        """Take note of the end of a trial: the best metric of its epochs, None if it failed."""


def proposals_of(algorithm: str, space: Space, seed: int, tried: Iterable[tuple[dict[str, Any], float | None]] = ()) -> Proposals:
    """The source of trials of an algorithm: ``random``, ``grid`` or ``optuna``; ``tried`` as :class:`Tpe` takes it."""
    if algorithm == "grid":
        return Gridded(space, seed)
    return Drawn(space, seed) if algorithm == "random" else Tpe(space, seed, tried)


class Drawn:
    """Random values: a function of (seed, number)."""

    def __init__(self, space: Space, seed: int):
        self._space, self._seed = space, seed

    def ask(self, number: int, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """See :class:`Proposals`."""
        return values or sample(self._space, self._seed, number)

    def tell(self, number: int, value: float | None) -> None:
        """Nothing is learnt."""


class Gridded(Drawn):
    """Points of a grid in an order drawn with the seed."""

    def __init__(self, space: Space, seed: int):
        super().__init__(space, seed)
        self.points = grid(space, seed)

    def ask(self, number: int, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """See :class:`Proposals`."""
        return values or self.points[number]


class Tpe:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011).

    Parameters
    ----------
    tried : iterable of (values, value)
        Trials that are over; ``value`` is None for those that failed.

    Raises
    ------
    SetupError
        Optuna is not installed.
    """

    def __init__(self, space: Space, seed: int, tried: Iterable[tuple[dict[str, Any], float | None]] = ()):
        try:
            import optuna
        except ImportError:
            raise SetupError("optuna is not installed", "--algorithm optuna needs it", "pip install 'czsl[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space = optuna, space
        self._distributions = {name: self._distribution(domain) for name, domain in space.items()}
        tried = list(tried)
        # A resumed search must not draw the numbers of its first trials again.
        sampler = optuna.samplers.TPESampler(seed=seed + len(tried))
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        for values, value in tried:
            if not all(domain.holds(values.get(name)) for name, domain in space.items()):
                continue  # a record that was edited
            state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
            kept = optuna.trial.create_trial(
                params=self._params(values), distributions=self._distributions, value=value, state=state
            )
            self._study.add_trial(kept)
        self._open: dict[int, Any] = {}

    def ask(self, number: int, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """See :class:`Proposals`."""
        if values:
            self._study.enqueue_trial(self._params(values))
        trial = self._study.ask(self._distributions)
        self._open[number] = trial
        return values or {name: self._value(domain, trial.params[name]) for name, domain in self._space.items()}

    def tell(self, number: int, value: float | None) -> None:
        """See :class:`Proposals`."""
        failed = self._optuna.trial.TrialState.FAIL if value is None else None
        self._study.tell(self._open.pop(number), value, state=failed)

    def _distribution(self, domain: Domain) -> Any:
        kinds = self._optuna.distributions
        if domain.kind == "choice":  # of any type: Optuna sees places in the list
            return kinds.CategoricalDistribution(range(len(domain.args)))
        if domain.count:
            return kinds.IntDistribution(0, domain.count - 1)
        return kinds.FloatDistribution(*domain.args, log=domain.kind == "loguniform")

    def _params(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: domain.place(values[name]) if domain.count else values[name] for name, domain in self._space.items()}

    @staticmethod
    def _value(domain: Domain, param: Any) -> Any:
        return domain.value(param) if domain.count else domain.rounded(param)
