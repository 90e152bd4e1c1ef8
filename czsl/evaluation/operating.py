"""The operating point of a run: the bias on unseen pairs that its answers use, and the scales of its probabilities.

An evaluation sweeps the bias, a prediction has to choose one. It is chosen on the validation split from the extremes, with one of the aims
below, and kept with what it holds for. Chao et al. (ECCV 2016) call it calibrated stacking; the gamma of plain classes is this bias.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from czsl.classes import ClassSpace
from czsl.compositions import CompositionSpace, prompt_name
from czsl.errors import DataError, UsageError
from czsl.evaluation.candidates import Candidates
from czsl.evaluation.curve import Curve, harmonic_mean
from czsl.evaluation.extremes import Extremes
from czsl.reading import PathLike
from czsl.runs.files import write_json

AIMS = "hm, accuracy, unseen-share=0.3 or seen>=0.5"
HOW = ("val", "given", "none")
KINDS = ("composition", "attribute", "object")
FORMAT = 1
_HASHES = ("checkpoint_sha256", "data_sha256", "candidates_sha256")


# -- the aim -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Aim:
    """Aim of the choice of a bias.

    Attributes
    ----------
    kind : {"hm", "accuracy", "unseen-share", "seen"}
        The best harmonic mean; the best accuracy under the split's mix of seen and unseen images, or with ``value`` as the share of unseen
        ones; the best unseen accuracy at a seen accuracy of at least ``value``.
    value : float, optional
    """

    kind: str = "hm"
    value: float | None = None

    @classmethod
    def parse(cls, text: str) -> Aim:
        """Read ``hm``, ``accuracy``, ``unseen-share=0.3`` or ``seen>=0.5``; UsageError for anything else."""
        found = re.fullmatch(r"\s*(hm|accuracy|unseen-share\s*=\s*(\S+)|seen\s*>=\s*(\S+))\s*", text)
        if not found:
            raise UsageError(f"the aim {text!r} is unknown", "it is not one of the aims below", f"choose one of: {AIMS}")
        number = found[2] or found[3]
        if number is None:
            return cls(found[1])
        kind = "unseen-share" if found[2] else "seen"
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            raise UsageError(f"{text.strip()}: {number} is not a fraction", "it lies between 0 and 1", f"for example: {AIMS}")
        return cls(kind, value)

    def __str__(self) -> str:
        sign = {"unseen-share": "=", "seen": ">="}.get(self.kind, "")
        return f"{self.kind}{sign}{self.value:g}" if sign else self.kind


def choose_bias(e: Extremes, aim: Aim | None = None, classes: bool = False) -> tuple[float, str]:
    """The bias on unseen pairs that serves an aim best, and a note if none could be chosen.

    Parameters
    ----------
    e : Extremes
        Extremes of the validation split; level 0 is used.
    aim : Aim, optional
        Default: the best harmonic mean.
    classes : bool
        Accuracies are means over classes (each class counts once); that of the aim ``accuracy`` is over images all the same.

    Returns
    -------
    bias : float
        The middle of the first interval of biases that is best; 0 if it cannot be chosen.
    note : str
        Why it is 0; empty otherwise.

    Raises
    ------
    UsageError
        A seen accuracy that no bias reaches.
    """
    aim = aim or Aim()
    missing = missing_group(e.true_seen)
    if missing:
        return 0.0, f"the bias on unseen labels is 0: no validation image shows {missing}"
    curve = Curve(e)
    weight = class_weights(e) if classes and aim.kind != "accuracy" else None
    seen, unseen = curve.points(weight)
    if aim.kind == "hm":
        value = harmonic_mean(seen, unseen)
        if not value.max() > 0:
            return 0.0, "the bias on unseen labels is 0: the harmonic mean on the validation split is 0, whatever the bias"
        return curve.middle(int(np.argmax(value))), ""
    if aim.kind == "seen":
        assert aim.value is not None
        enough = np.flatnonzero(seen >= aim.value)
        if not enough.size:
            raise UsageError(
                f"no bias reaches a seen accuracy of {aim.value:g} on the validation split",
                f"it is at most {seen[0]:.4f}",
                f"ask for less: --for 'seen>={math.floor(100 * seen[0]) / 100:g}'",
            )
        among = unseen[enough]  # rises with the bias, so the last ones are best
        return curve.middle(int(enough[np.argmax(among)])), ""
    share = float(np.mean(~e.true_seen)) if aim.value is None else aim.value
    return curve.middle(int(np.argmax((1 - share) * seen + share * unseen))), ""


def missing_group(true_seen: np.ndarray) -> str:
    """``a seen label`` or ``an unseen label`` if no image shows one; empty if both occur."""
    if true_seen.all():
        return "an unseen label"
    return "" if true_seen.any() else "a seen label"


def class_weights(e: Extremes) -> np.ndarray:
    """Weights of images by which each label that occurs counts once, float64 [N]."""
    _, label_N, count = np.unique(e.true_pair, return_inverse=True, return_counts=True)
    return 1 / count[label_N]


# -- the point -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Scaling:
    """Probabilities proportional to exp(log_weight / temperature + bias * unseen): a softmax that never reorders a group."""

    temperature: float = 1.0
    bias: float = 0.0


@dataclass(frozen=True)
class OperatingPoint:
    """Bias on unseen pairs and temperatures that turn scores into probabilities, as a run's answers use them.

    Attributes
    ----------
    bias : float
        Added to the score of every unseen pair before ranking.
    how : {"val", "given", "none"}
        Where the bias comes from; ``none``: scores are ranked as they are.
    aim : str
        See :class:`Aim`.
    composition, attribute, object : Scaling
        Scaling of the probabilities of compositions (or classes), and of the marginals of attributes and objects.
    facts : dict
        What it holds for (SHA-256 of checkpoint, data and candidates) and what it was chosen on.
    notes : tuple of str
        Shown to the user.
    """

    bias: float = 0.0
    how: str = "none"
    aim: str = "hm"
    composition: Scaling = Scaling()
    attribute: Scaling = Scaling()
    object: Scaling = Scaling()
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def scalings(self) -> tuple[Scaling, Scaling, Scaling]:
        """Return the temperatures of compositions, attributes and objects."""
        return self.composition, self.attribute, self.object

    def given(self, bias: float) -> OperatingPoint:
        """The same with a bias that the user names; probabilities stay."""
        return replace(self, bias=float(bias), how="given", notes=())

    def brief(self) -> dict[str, Any]:
        """The point as records name it."""
        c = self.composition
        return {"bias": self.bias, "how": self.how, "temperature": c.temperature, "prob_bias": c.bias}

    def to_json(self) -> dict[str, Any]:
        """The content of its file."""
        content = {"format": FORMAT, "bias": self.bias, "how": self.how, "for": self.aim}
        scalings = {kind: asdict(getattr(self, kind)) for kind in KINDS}
        return {**content, "probabilities": scalings, **self.facts, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, content: Any, source: str) -> Self:
        """Read what :meth:`to_json` wrote; DataError if it does not hold together."""
        try:
            rest = dict(content)
            if rest.pop("format") != FORMAT:
                raise ValueError("another format")
            how, aim, notes = rest.pop("how"), rest.pop("for"), rest.pop("notes")
            if how not in HOW or not isinstance(aim, str) or not all(isinstance(note, str) for note in notes):
                raise ValueError("it was edited")
            scalings = {
                kind: Scaling(**{k: _number(v) for k, v in scaling.items()})
                for kind, scaling in rest.pop("probabilities").items()
            }
            if set(scalings) != set(KINDS) or not all(s.temperature > 0 for s in scalings.values()):
                raise ValueError("its temperatures are not positive numbers")
            if not all(isinstance(rest.get(name), str) for name in _HASHES):
                raise ValueError("it does not contain the checkpoint, data and candidates that it holds for")
            return cls(_number(rest.pop("bias")), how, aim, **scalings, facts=rest, notes=tuple(notes))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"cannot read {source}", f"{type(error).__name__}: {error}", "choose it again: czsl calibrate RUN"
            ) from None

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Read the file; DataError if it is damaged."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(
                f"cannot read {path}", f"{type(error).__name__}: {error}", "choose it again: czsl calibrate RUN"
            ) from None
        return cls.from_json(content, str(path))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def point_file(folder: PathLike, open_world: bool = False, which: str = "best", layer: str = "") -> Path:
    """Return the file of a run's operating point for a world, a checkpoint and, optionally, an adaptation."""
    checkpoint = "" if which == "best" else f"-{which}"
    return Path(folder) / f"operating-point-{'open' if open_world else 'closed'}{checkpoint}{f'-{layer}' if layer else ''}.json"


def candidates_sha256(candidates: Candidates) -> str:
    """Names a list of competing pairs: SHA-256 of the names of those allowed, and whether each is seen."""
    digest = hashlib.sha256()
    space, allowed = candidates.space, candidates.allowed
    digest.update(json.dumps([list(space.attributes), list(space.objects)]).encode())
    rows = np.column_stack([candidates.pairs[allowed], candidates.seen[allowed]]).astype(np.int64)
    digest.update(np.ascontiguousarray(rows[np.lexsort(rows.T[::-1])]).tobytes())
    return digest.hexdigest()


# -- seen pairs by name --------------------------------------------------------------------------------------------------
def seen_names(space: CompositionSpace) -> frozenset[tuple[str, str]]:
    """The training pairs of a label space by the words of their prompts, so that they are found in other label spaces."""
    return frozenset(_words(space.pair_names(pair)) for pair in space.train_pairs)


def unseen_mask(space: CompositionSpace, pairs: np.ndarray, seen: Iterable[tuple[str, str]]) -> np.ndarray:
    """Return which pairs [P, 2] of any label space are unseen, because of a new word or a new combination. bool [P].

    Parameters
    ----------
    space : CompositionSpace
        What the pairs index.
    pairs : int [P, 2]
    seen : set of (attribute, object)
        Result of :func:`seen_names`.
    """
    place = [_places(space.attributes), _places(space.objects)]
    known = {(a, o) for names in seen for a in place[0].get(names[0], ()) for o in place[1].get(names[1], ())}
    keys = np.array(sorted(space.key(np.array(pair)) for pair in known), dtype=np.int64)
    return ~np.isin(space.key(pairs), keys)


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        found.setdefault(prompt_name(name), []).append(i)
    return found


def _words(names: Sequence[str]) -> tuple[str, str]:
    return prompt_name(names[0]), prompt_name(names[1])


def is_classes(space: CompositionSpace) -> bool:
    """Return whether labels are plain classes, whose accuracies are means over classes."""
    return isinstance(space, ClassSpace)
