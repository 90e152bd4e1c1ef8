"""Search spaces: which values of which settings a hyperparameter search may try, as YAML names them.

``lr: {loguniform: [1e-5, 1e-2]}``, ``num_prototypes: {choice: [3, 5, 8]}``; :data:`KINDS` lists all forms.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from czsl.errors import UsageError, did_you_mean
from czsl.runs.config import RunConfig
from czsl.runs.settings import check_known, typed

KINDS = {
    "choice": "choice: [3, 5, 8]",
    "uniform": "uniform: [0, 1]",
    "loguniform": "loguniform: [1e-5, 1e-2]",
    "quniform": "quniform: [0, 1, 0.25]   (low, high, step; both ends included)",
    "randint": "randint: [1, 10]   (both ends included)",
}
# They decide what the other settings mean, or belong to the machine.
FIXED = ("method", "preset", "recipe", "data", "threads")
DIGITS = 4  # of sampled numbers: what a table shows is what was used

MAX_POINTS = 100_000  # of a grid


@dataclass(frozen=True)
class Domain:
    """The values one setting may take.

    kind : one of KINDS
    args : the choices; or low and high; or low, high and step
    """

    kind: str
    args: tuple

    def sample(self, rng: np.random.Generator) -> Any:
        """A value, uniformly (``loguniform``: its logarithm uniformly)."""
        if self.kind in ("uniform", "loguniform"):
            low, high = self.args
            if self.kind == "uniform":
                return self.rounded(low + (high - low) * rng.random())
            return self.rounded(math.exp(rng.uniform(math.log(low), math.log(high))))
        return self.value(int(rng.integers(self.count)))

    def holds(self, value: Any) -> bool:
        """Return whether a value is one that this domain gives."""
        if self.kind == "choice":
            return value in self.args
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.args[0] <= value <= self.args[1]

    def rounded(self, value: float) -> float:
        """A number between the ends with few digits."""
        low, high = self.args[:2]
        return min(max(float(f"{value:.{DIGITS}g}"), low), high)

    @property
    def count(self) -> int:
        """Number of values; 0 for a continuous range."""
        if self.kind == "choice":
            return len(self.args)
        if self.kind == "randint":
            return self.args[1] - self.args[0] + 1
        if self.kind == "quniform":
            low, high, step = self.args
            return int((high - low) / step + 1e-9) + 1
        return 0

    def value(self, place: int) -> Any:
        """The value at a place of the countable ones."""
        if self.kind == "choice":
            return self.args[place]
        low, step = self.args[0], self.args[2] if self.kind == "quniform" else 1
        value = low + place * step
        return value if isinstance(value, int) else float(f"{value:.12g}")

    def place(self, value: Any) -> int:
        """The place of a countable value."""
        if self.kind == "choice":
            return self.args.index(value)
        return round((value - self.args[0]) / (self.args[2] if self.kind == "quniform" else 1))

    def values(self) -> list[Any]:
        """All values, in order; empty for a continuous range."""
        return [self.value(i) for i in range(self.count)]

    def __str__(self) -> str:
        return f"{self.kind} {list(self.args)}"


Space = dict[str, Domain]


def parse_space(content: Any, method: str, config: type, of_runs: bool = True) -> Space:
    """A search space from what YAML gives: ``{setting: {kind: arguments}}``, or the same below ``search:``.

    Parameters
    ----------
    content : any
        As ``yaml.safe_load`` returned it.
    method : str
        Name of a method or an adaptation, for messages.
    config : type
        Its dataclass, whose fields can be searched.
    of_runs : bool
        Whether those of :class:`RunConfig` can be searched too.

    Raises
    ------
    UsageError
        Unknown settings and kinds (with the nearest name), arguments that make no domain, values of the wrong type.
    """
    if isinstance(content, Mapping) and set(content) == {"search"}:
        content = content["search"]
    if not isinstance(content, Mapping) or not content:
        raise UsageError(
            "there is nothing to search",
            "a mapping of settings to their values is expected",
            f"write for example  lr: {{{KINDS['loguniform']}}}",
        )
    owners = dict.fromkeys(RunConfig.field_names() if of_runs else (), RunConfig) | {f.name: config for f in fields(config)}
    check_known(map(str, content), owners, method)
    return {name: _domain(name, content[name], owners[name]) for name in content}


def _domain(name: str, spec: Any, owner: type) -> Domain:
    if name in FIXED:
        raise UsageError(
            f"{name!r} cannot be searched", f"fixed for a whole search: {', '.join(FIXED)}", "start a search for each"
        )
    if not isinstance(spec, Mapping) or len(spec) != 1:
        forms = "; ".join(KINDS.values())
        raise UsageError(
            f"{name}: {spec!r} is not a set of values", f"one of: {forms}", f"to fix a value, give {name}=VALUE instead"
        )
    kind, args = next(iter(spec.items()))
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise UsageError(f"{name}: unknown kind {kind!r}", hint, f"kinds: {', '.join(KINDS)}")
    example = f"write for example  {name}: {{{KINDS[kind]}}}"
    if not isinstance(args, list):
        raise UsageError(f"{name}: {kind} wants a list", f"given: {args!r}", example)
    domain = _choices(name, args, owner, example) if kind == "choice" else _numbers(name, kind, args, example)
    several = min(domain.count, len(domain.args))  # all choices; of numbers the first few are like the others
    for value in [domain.value(i) for i in range(several)] or domain.args:
        typed({name: value}, owner)
    if not domain.count:
        typed({name: math.sqrt(2)}, owner)  # between whole ends lie other numbers than whole ones
    return domain


def _choices(name: str, args: list, owner: type, example: str) -> Domain:
    # YAML reads 1e-4 as a text; the setting's own type says what it is.
    values = tuple(list(v) if isinstance(v, tuple) else v for v in (typed({name: a}, owner)[name] for a in args))
    if not values or any(a == b for a, b in itertools.combinations(values, 2)):
        raise UsageError(f"{name}: the choices are {args!r}", "at least one choice is needed, each once", example)
    return Domain("choice", values)


def _numbers(name: str, kind: str, args: list, example: str) -> Domain:
    def refuse(why: str) -> UsageError:
        return UsageError(f"{name}: {kind} of {args!r} is not a valid range", why, example)

    if len(args) != (3 if kind == "quniform" else 2):
        raise refuse("low and high are expected" + (", and a step" if kind == "quniform" else ""))
    numbers = [_number(a) for a in args]
    if any(n is None for n in numbers):
        raise refuse("finite numbers are expected")
    low, high, *rest = numbers
    if kind == "randint" and not all(isinstance(n, int) for n in numbers):
        raise refuse("whole numbers are expected")
    if kind in ("uniform", "loguniform"):
        low, high = float(low), float(high)
    if not low < high:
        raise refuse("low must be below high")
    if kind == "loguniform" and low <= 0:
        raise refuse("a logarithm needs low above 0")
    if rest and rest[0] <= 0:
        raise refuse("the step must be above 0")
    return Domain(kind, (low, high, *rest))


def _number(value: Any) -> Any:
    if isinstance(value, str):  # YAML reads 1e-4 as a text
        try:
            value = float(value)
        except ValueError:
            return None
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def sample(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The values of trial ``number``: a function of (seed, number) and, setting by setting, of its own domain only."""
    return {
        name: domain.sample(np.random.default_rng([seed, number, zlib.crc32(name.encode())])) for name, domain in space.items()
    }


def grid(space: Space, seed: int) -> list[dict[str, Any]]:
    """Every combination of values, in an order drawn with the seed: the first few are spread over the grid.

    Raises
    ------
    UsageError
        A domain holds infinitely many values.
    """
    for name, domain in space.items():
        if not domain.count:
            raise UsageError(
                f"{name}: a grid needs countable values", f"{domain} has no end of them", "use choice, quniform or randint"
            )
    if (count := math.prod(domain.count for domain in space.values())) > MAX_POINTS:
        raise UsageError(
            f"the grid has {count:,} points", f"at most {MAX_POINTS:,}", "choose fewer values, or --algorithm random"
        )
    points = [dict(zip(space, values, strict=True)) for values in itertools.product(*(d.values() for d in space.values()))]
    return [points[i] for i in np.random.default_rng([seed, len(points)]).permutation(len(points))]


def with_values(base: RunConfig, values: Mapping[str, Any], config: type) -> RunConfig:
    """The settings of a trial: those of the search with a trial's values, checked as overrides are.

    Raises
    ------
    UsageError
        What the settings' own checks refuse.
    """
    own = {f.name for f in fields(config)}
    model = asdict(config(**typed({**base.model, **{k: v for k, v in values.items() if k in own}}, config)))
    run = {name: getattr(base, name) for name in RunConfig.field_names()}
    return RunConfig(**typed({**run, **{k: v for k, v in values.items() if k not in own}}, RunConfig), model=model)
