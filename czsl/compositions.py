"""Attribute-object compositions: the label space of compositional zero-shot learning.

A composition (pair) is two indices, ``(attribute, object)``. Lists of pairs are integer arrays ``[P, 2]``; the open world
(every attribute with every object) is arithmetic on indices, never a list of names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from czsl.errors import DataError, UsageError
from czsl.reading import PathLike

SPLITS = ("train", "val", "test")


def prompt_name(name: str, style: str = "clean") -> str:
    """The words of a label as they enter a prompt.

    ``clean``: lower case, ``_`` and ``.`` become spaces (``Faux.Leather`` -> ``faux leather``).
    ``reference``: as the public programs do, ``_`` stays.

    Raises
    ------
    UsageError
        Another style.
    """
    if style not in ("clean", "reference"):
        raise UsageError(f"unknown style of names {style!r}", "there are two styles", "choose clean or reference")
    name = name.lower().replace(".", " ")
    if style == "reference":
        return name
    return " ".join(name.replace("_", " ").split())


def label_of(attribute: str, obj: str) -> dict[str, str]:
    """Return a label in the form of records: ``{"attr": "wet", "obj": "dog"}``, or ``{"class": "dog"}`` for a plain class."""
    return {"attr": attribute, "obj": obj} if attribute else {"class": obj}


def label_words(label: Mapping[str, Any]) -> str:
    """``"wet dog"`` or ``"dog"`` of a record that :func:`label_of` named."""
    return label["class"] if "class" in label else f"{label['attr']} {label['obj']}"


@dataclass(frozen=True)
class CompositionSpace:
    """Attributes, objects and the pairs of each split.

    Parameters
    ----------
    attributes, objects : tuple of str
        Labels in the spelling of their files; an index into these is a primitive's identity everywhere.
    train_pairs, val_pairs, test_pairs : int64 array [n, 2]
        Index pairs in the order of their files. A pair is *seen* if it is in ``train_pairs``.

    Raises
    ------
    DataError
        If a label or a pair occurs twice, or an index is outside the labels.
    """

    attributes: tuple[str, ...]
    objects: tuple[str, ...]
    train_pairs: np.ndarray
    val_pairs: np.ndarray
    test_pairs: np.ndarray

    # What a label is called in messages; see czsl.classes for the other kind.
    noun: ClassVar[str] = "pair"
    nouns: ClassVar[str] = "pairs"

    def __post_init__(self):
        for kind, names in self.vocabulary.items():
            if not names:
                raise DataError(
                    f"the label space has no {kind}", "a label space needs at least one name of each kind", "list at least one"
                )
            if len(set(names)) < len(names):
                twice = sorted({n for n in names if names.count(n) > 1})
                raise DataError(f"{kind} named twice: {', '.join(twice[:5])}", "names identify labels", "keep each name once")
        limits = np.array([len(self.attributes), len(self.objects)])
        for split in SPLITS:
            pairs = np.asarray(getattr(self, f"{split}_pairs"), dtype=np.int64).reshape(-1, 2)
            if ((pairs < 0) | (pairs >= limits)).any():
                raise DataError(
                    f"{split} pairs name an index outside the labels",
                    f"limits {limits.tolist()}",
                    "use indices from 0 to the number of names minus one",
                )
            keys = pairs @ [len(self.objects), 1]
            _, first = np.unique(keys, return_index=True)
            if len(first) < len(keys):
                row = int(np.setdiff1d(np.arange(len(keys)), first)[0])
                raise DataError(
                    f"{split} {self.noun} {row} occurs twice: {self.pair_name(pairs[row])}",
                    "the pairs of a split are a set",
                    "keep it once",
                )
            pairs.setflags(write=False)
            object.__setattr__(self, f"{split}_pairs", pairs)

    # -- counts and names ------------------------------------------------------------------------------------------
    @property
    def num_attributes(self) -> int:
        """A, the number of attributes."""
        return len(self.attributes)

    @property
    def num_objects(self) -> int:
        """O, the number of objects."""
        return len(self.objects)

    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Names by kind, as in ``space.json``."""
        return {"attributes": self.attributes, "objects": self.objects}

    def pair_name(self, pair: Sequence[int]) -> str:
        """``"wet dog"`` for an index pair; ``"dog"`` for a class."""
        return label_words(self.label(pair))

    def label(self, pair: Sequence[int]) -> dict[str, str]:
        """An index pair as records name it, see :func:`label_of`."""
        return label_of(*self.pair_names(pair))

    def pair_names(self, pair: Sequence[int]) -> tuple[str, str]:
        """``("wet", "dog")`` for an index pair."""
        return self.attributes[int(pair[0])], self.objects[int(pair[1])]

    # -- pair lists and masks --------------------------------------------------------------------------------------
    def key(self, pairs: np.ndarray) -> np.ndarray:
        """Open-world index ``attribute * O + object`` of index pairs [..., 2], int64 [...]."""
        pairs = np.asarray(pairs, dtype=np.int64)
        return pairs[..., 0] * self.num_objects + pairs[..., 1]

    @cached_property
    def closed_pairs(self) -> np.ndarray:
        """The closed world: sorted union of the three splits' pairs, int64 [P, 2]."""
        keys = np.unique(np.concatenate([self.key(getattr(self, f"{s}_pairs")) for s in SPLITS]))
        return np.stack([keys // self.num_objects, keys % self.num_objects], axis=1)

    @cached_property
    def open_pairs(self) -> np.ndarray:
        """The open world: all pairs in attribute-major order, int64 [A * O, 2]."""
        keys = np.arange(self.num_attributes * self.num_objects, dtype=np.int64)
        return np.stack([keys // self.num_objects, keys % self.num_objects], axis=1)

    def pairs(self, open_world: bool = False) -> np.ndarray:
        """Candidate pairs of the closed or the open world, int64 [P, 2]."""
        return self.open_pairs if open_world else self.closed_pairs

    def seen_mask(self, pairs: np.ndarray) -> np.ndarray:
        """Return which of these pairs occur in training, bool [P]."""
        return np.isin(self.key(pairs), self.key(self.train_pairs))

    def split_mask(self, pairs: np.ndarray, split: str) -> np.ndarray:
        """Return which of these pairs compete in the closed world of a split (its own and the training pairs), bool [P]."""
        allowed = np.concatenate([self.key(getattr(self, f"{split}_pairs")), self.key(self.train_pairs)])
        return np.isin(self.key(pairs), allowed)

    def locate(self, pairs: np.ndarray, within: np.ndarray) -> np.ndarray:
        """Position of each pair in the list ``within`` [P, 2]; -1 if it is absent. int64 [n]."""
        keys = self.key(within)
        order = np.argsort(keys, kind="stable")
        wanted = self.key(pairs)
        place = np.clip(np.searchsorted(keys[order], wanted), 0, max(len(keys) - 1, 0))
        found = keys[order][place] == wanted if len(keys) else np.zeros(len(wanted), bool)
        return np.where(found, order[place] if len(keys) else -1, -1)

    # -- files -----------------------------------------------------------------------------------------------------
    def to_json(self) -> dict:
        """The content of ``space.json``: names, and pairs as pairs of names."""
        named = {f"{s}_pairs": [[self.attributes[a], self.objects[o]] for a, o in getattr(self, f"{s}_pairs")] for s in SPLITS}
        return {"attributes": list(self.attributes), "objects": list(self.objects), **named}

    @classmethod
    def from_json(cls, content: dict, source: str = "space.json") -> CompositionSpace:
        """Read what :meth:`to_json` wrote (missing pair lists are empty); :func:`czsl.spaces.space_from_json` reads classes too.

        Raises
        ------
        DataError
            Names the pair whose attribute or object is not listed.
        """
        lists: dict[str, Any] = {"attributes": None, "objects": None, **{f"{s}_pairs": [] for s in SPLITS}}
        lists |= content if isinstance(content, dict) else {}
        wrong = [key for key in list(lists)[:5] if not isinstance(lists[key], list)]
        if wrong:
            raise DataError(
                f"{source} is not a label space",
                f"no list: {', '.join(wrong)}",
                'give "attributes" and "objects" lists, or "classes"',
            )
        attributes, objects = tuple(map(str, lists["attributes"])), tuple(map(str, lists["objects"]))
        pairs = {f"{s}_pairs": index_pairs(lists[f"{s}_pairs"], attributes, objects, source) for s in SPLITS}
        return cls(attributes, objects, **pairs)

    def save(self, path: PathLike) -> None:
        """Write ``space.json``."""
        path = Path(path)
        Path(path).write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def index_pairs(
    named: Iterable[Sequence[str]], attributes: Sequence[str], objects: Sequence[str], source: str = "pairs"
) -> np.ndarray:
    """Index pairs [n, 2] of named pairs; DataError names the first pair with an unknown primitive."""
    attribute_index = {name: i for i, name in enumerate(attributes)}
    object_index = {name: i for i, name in enumerate(objects)}
    rows = []
    for place, pair in enumerate(named):
        try:
            attribute, obj = pair
            rows.append((attribute_index[attribute], object_index[obj]))
        except (KeyError, ValueError, TypeError):
            raise DataError(
                f"{source}: pair {place} ({pair!r}) is not an attribute and an object of this space",
                f"{len(attributes)} attributes, {len(objects)} objects",
                "add the name to the lists or remove the pair",
            ) from None
    return np.array(rows, dtype=np.int64).reshape(-1, 2)
