"""A kept evaluation: a few numbers per image, enough to compute all metrics again without scoring an image.

``extremes-test-closed.npz`` in a run folder: the arrays of :class:`Extremes` and ``about``, the bytes of JSON with the images' ids, the
names of primitives and what was evaluated. Nothing is unpickled, and a file that does not hold together is refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from czsl.errors import DataError
from czsl.evaluation.extremes import Extremes
from czsl.evaluation.sums import Sums
from czsl.reading import PathLike, parse_json, read_arrays
from czsl.runs.files import write_atomically

# Type and dimensions of each array: N images, L = 1 level, k of top-k.
_LAYOUT = {
    "index": (np.int64, "N"), "labels": (np.int64, "N2"), "true_pair": (np.int64, "N"), "true_seen": (np.bool_, "N"),
    "true_score": (np.float32, "N"), "seen_score": (np.float32, "Nk"), "seen_pair": (np.int32, "Nk"),
    "unseen_score": (np.float32, "NLk"), "unseen_pair": (np.int32, "NLk"), "shifted_pair": (np.int32, "NLk"),
}  # fmt: skip
# The same of Sums, if the evaluation took any: G temperatures, F folds.
_SUMS = {
    "index": (np.int64, "N"), "temperatures": (np.float64, "G"), "top": (np.float64, "N"), "true_weight": (np.float64, "N"),
    "best_weight": (np.float32, "NF2"), "best_score": (np.float32, "NF2"), "total": (np.float32, "NGF2"),
    "attribute": (np.float32, "NG2"), "object": (np.float32, "NG2"), "fold": (np.int64, "N"),
}  # fmt: skip
_NAMES = ("ids", "attributes", "objects")


@dataclass(frozen=True)
class SavedEvaluation:
    """One evaluation of a run, reduced.

    Attributes
    ----------
    extremes : Extremes
        Extremes of the threshold in use only (one level).
    ids : list of str
        Name of each image, in the order of the extremes.
    attributes, objects : list of str
        What the labels index.
    facts : dict
        What was evaluated, as text, numbers and None: method, split, open_world, threshold, the SHA-256 of data and checkpoint.
    sums : Sums, optional
        What probabilities follow from, of the same images in the same order.
    """

    extremes: Extremes
    ids: list[str]
    attributes: list[str]
    objects: list[str]
    facts: dict[str, Any]
    sums: Sums | None = None

    def save(self, path: PathLike) -> None:
        """Write the file, whole or not at all."""
        path = Path(path)
        about = json.dumps({**{name: list(getattr(self, name)) for name in _NAMES}, "facts": self.facts}).encode()
        arrays = {field.name: getattr(self.extremes, field.name) for field in fields(Extremes)}
        if self.sums is not None:
            arrays |= {f"sums_{field.name}": getattr(self.sums, field.name) for field in fields(Sums)}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, about=np.frombuffer(about, np.uint8), **arrays)
        write_atomically(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: PathLike) -> SavedEvaluation:
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            No such file, or one that is damaged, compressed or contradicts itself.
        """
        path = Path(path)
        try:
            named = ["about", *_LAYOUT, *(f"sums_{name}" for name in _SUMS)]
            arrays = read_arrays(path, named, stored=True)  # our own are stored plainly
            sums = {name.removeprefix("sums_"): arrays.pop(name) for name in list(arrays) if name.startswith("sums_")}
            about = parse_json(arrays.pop("about").tobytes(), path)
            ids, attributes, objects = (about[name] for name in _NAMES)
            _check_about([ids, attributes, objects], about["facts"])
            _check(arrays, len(ids), len(attributes), len(objects))
            if sums:
                _check_sums(sums, len(ids))
        except DataError as error:
            raise DataError(f"cannot read {path}", error.why, "evaluate the run again") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"cannot read {path}", f"{type(error).__name__}: {error}", "evaluate the run again") from None
        return cls(Extremes(**arrays), ids, attributes, objects, about["facts"], Sums(**sums) if sums else None)

    def arranged(self, ids: Sequence[str]) -> SavedEvaluation:
        """The same with the images in the order of ``ids``; DataError if they are others."""
        place = {name: i for i, name in enumerate(self.ids)}
        if len(place) != len(self.ids) or len(ids) != len(self.ids) or not all(name in place for name in ids):
            strange = next((name for name in ids if name not in place), "")
            raise DataError(
                "the evaluations are of other images",
                f"{len(ids)} and {len(self.ids)} images" + (f"; {strange!r} is only in one of them" if strange else ""),
                "evaluate all runs on one split of one dataset",
            )
        order = np.array([place[name] for name in ids], np.int64)
        arrays = {field.name: getattr(self.extremes, field.name)[order] for field in fields(Extremes)}
        sums = None if self.sums is None else self.sums.arranged(order)
        return replace(self, extremes=Extremes(**{**arrays, "index": np.arange(len(ids))}), ids=list(ids), sums=sums)


def _check_about(names: list, facts: Any) -> None:
    """ValueError unless these are lists of names and plain facts."""
    if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in names):
        raise ValueError("its names are not lists of text")
    if not isinstance(facts, dict) or not all(isinstance(value, str | int | float | None) for value in facts.values()):
        raise ValueError("its facts are not texts or numbers")
    if not isinstance(facts.get("threshold"), float | None):
        raise ValueError("its threshold is not a number")


def _check(arrays: dict[str, np.ndarray], images: int, attributes: int, objects: int) -> None:
    """Raise ValueError unless the arrays are extremes of this many images at one level, with labels of this many primitives."""
    if not images or set(arrays) != set(_LAYOUT):
        raise ValueError(f"{images} images, arrays {', '.join(arrays)}")
    k = arrays["seen_score"].shape[-1] if arrays["seen_score"].ndim else 0
    if not k:
        raise ValueError("seen_score has no column")
    sizes = {"N": images, "2": 2, "L": 1, "k": k}
    for name, (dtype, letters) in _LAYOUT.items():
        values, shape = arrays[name], tuple(sizes[letter] for letter in letters)
        if values.dtype != dtype or values.shape != shape:
            raise ValueError(f"{name} is {values.dtype} of shape {list(values.shape)}, not {list(shape)}")
        if dtype is np.float32 and (np.isnan(values).any() or np.isposinf(values).any()):
            raise ValueError(f"{name} holds a value that is not a score")
        if dtype in (np.int32, np.int64) and (values < (-1 if dtype is np.int32 else 0)).any():
            raise ValueError(f"{name} holds a negative index")
    if (arrays["labels"] >= [attributes, objects]).any():
        raise ValueError("labels holds an index beyond the names")


def _check_sums(arrays: dict[str, np.ndarray], images: int) -> None:
    """ValueError unless the arrays are the sums of this many images."""
    if set(arrays) != set(_SUMS) or arrays["total"].ndim != 4:
        raise ValueError(f"sums are {', '.join(arrays)}")
    sizes = {"N": images, "G": arrays["total"].shape[1], "F": arrays["total"].shape[2], "2": 2}
    for name, (dtype, letters) in _SUMS.items():
        values, shape = arrays[name], tuple(sizes[letter] for letter in letters)
        if values.dtype != dtype or values.shape != shape:
            raise ValueError(f"the sums' {name} is {values.dtype} of shape {list(values.shape)}, not {list(shape)}")
        if np.issubdtype(dtype, np.floating) and (np.isnan(values).any() or np.isposinf(values).any()):
            raise ValueError(f"the sums' {name} contains a value that is not a log-sum")
    if not sizes["G"] or not sizes["F"] or not (np.isfinite(arrays["temperatures"]) & (arrays["temperatures"] > 0)).all():
        raise ValueError("the sums' temperatures are not positive")
