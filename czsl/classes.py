"""Plain classes, seen and unseen: the label space of ordinary zero-shot recognition.

A class is a composition without an attribute: the pair ``(0, class)`` of a space whose only attribute has the empty name. Tables,
batches, training, scores, the evaluator and predictions therefore serve classes as they serve pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from czsl.compositions import CompositionSpace
from czsl.errors import DataError, UsageError

NO_ATTRIBUTE = ""


@dataclass(frozen=True)
class ClassSpace(CompositionSpace):
    """Classes as pairs ``(0, class)``; ``train_pairs`` are the seen ones. Made by :meth:`of`."""

    noun: ClassVar[str] = "class"
    nouns: ClassVar[str] = "classes"

    @classmethod
    def of(
        cls,
        classes: Sequence[str],
        seen: Iterable[str] | None = None,
        val: Iterable[str] | None = None,
        test: Iterable[str] | None = None,
        source: str = "classes",
    ) -> ClassSpace:
        """The space of named classes.

        Parameters
        ----------
        classes : sequence of str
            Labels in the spelling of their files.
        seen : iterable of str, optional
            Those that occur in training; default all.
        val, test : iterable of str, optional
            Those that a split shows; default all. They compete with the seen ones.
        source : str
            Named in errors.

        Raises
        ------
        DataError
            No class, one without a name or named twice, or a list that names another one.
        """
        place = {name: i for i, name in enumerate(classes)}
        if NO_ATTRIBUTE in place:
            raise DataError(f"{source}: a class without a name", f"it is number {place['']}", "name every class")
        lists = {"train": seen, "val": val, "test": test}
        pairs = {}
        for split, names in lists.items():
            own = list(classes if names is None else names)
            if unknown := [name for name in own if name not in place]:
                what = "seen" if split == "train" else split
                raise DataError(f"{source}: {unknown[0]!r} is not a class", f"{what} names it", "list it among the classes")
            pairs[f"{split}_pairs"] = np.array([(0, place[name]) for name in own], dtype=np.int64).reshape(-1, 2)
        return cls((NO_ATTRIBUTE,), tuple(classes), **pairs)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.objects

    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """``{"classes": names}``."""
        return {"classes": self.objects}

    def pairs(self, open_world: bool = False) -> np.ndarray:
        """All classes that a split shows, as pairs [P, 2]; UsageError for an open world."""
        if open_world:
            raise UsageError(
                "plain classes have no open world", "all of them compete already", "evaluate and predict without --open-world"
            )
        return self.closed_pairs

    def to_json(self) -> dict:
        """The content of ``space.json``: ``classes``, those ``seen``, and those of ``val`` and ``test``."""
        splits = {"seen": self.train_pairs, "val": self.val_pairs, "test": self.test_pairs}
        return {"classes": list(self.objects), **{k: [self.objects[o] for _, o in pairs] for k, pairs in splits.items()}}

    @classmethod
    def from_json(cls, content: dict, source: str = "space.json") -> ClassSpace:
        """Read ``{"classes": [..], "seen": [..]}``, with ``val`` and ``test`` if they are not all classes.

        Raises
        ------
        DataError
            Something else than lists of names, or a list that names no class.
        """
        lists: dict[str, Any] = {key: content.get(key) for key in ("classes", "seen", "val", "test")}
        for key, names in lists.items():
            if names is None and key != "classes":
                continue
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise DataError(f"{source} is not a space of classes", f"no list of names: {key}", 'give a "classes" list')
        return cls.of(**lists, source=source)
