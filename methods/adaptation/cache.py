"""A cache of image features: for each predicted composition those of the lowest entropy.

Letters: C classes that have entries, M entries per class (shots), D joint width.
"""

from __future__ import annotations

import bisect

import torch
from torch import Tensor

INITIAL_CAPACITY = 16  # classes for which there is room at first; it doubles


class ClassCache:
    """At most ``shots`` unit features per class; a class gets a place, in the order of arrival, when its first entry comes.

    Its memory is bounded by the number of candidates, not of images.

    Parameters
    ----------
    shots : int
        M.
    like : float tensor [P, D]
        Gives width, type and device.
    """

    def __init__(self, shots: int, like: Tensor):
        self.shots = shots
        self.places: dict[int, int] = {}
        self._entries = like.new_zeros(INITIAL_CAPACITY, shots, like.shape[1])
        self._keys = like.new_zeros(INITIAL_CAPACITY, like.shape[1])
        self._filled = like.new_zeros(INITIAL_CAPACITY, shots)
        self._classes = torch.zeros(INITIAL_CAPACITY, dtype=torch.int64, device=like.device)
        # Per class (entropy, row of its entries), lowest entropy first; of equal entropies the older one first.
        self.ranked: list[list[tuple[float, int]]] = []

    def __len__(self) -> int:
        return len(self.ranked)

    @property
    def classes(self) -> Tensor:
        """Classes with entries, int64 [C]."""
        return self._classes[: len(self)]

    @property
    def keys(self) -> Tensor:
        """Mean entry of each class, not normalised, [C, D]."""
        return self._keys[: len(self)]

    @property
    def entries(self) -> Tensor:
        """Entries [C, M, D]; zero without one."""
        return self._entries[: len(self)]

    @property
    def filled(self) -> Tensor:
        """1 for an entry, else 0, [C, M]."""
        return self._filled[: len(self)]

    def add(self, label: int, feature_D: Tensor, entropy: float) -> tuple[int, int] | None:
        """Offer an image to its class: it joins, or replaces the entry of the highest entropy if its own is lower.

        Returns
        -------
        tuple of int, or None
            Place of the class and row of the entry; None if the image was not taken. An equal entropy does not replace.
        """
        place = self.places.get(label)
        if place is None:
            place = self.places[label] = len(self.ranked)
            self.ranked.append([])
            self._make_room()
            self._classes[place] = label
        ranked = self.ranked[place]
        if len(ranked) < self.shots:
            row = len(ranked)
        elif entropy < ranked[-1][0]:
            row = ranked.pop()[1]
        else:
            return None
        ranked.insert(bisect.bisect_right([e for e, _ in ranked], entropy), (entropy, row))
        self._entries[place, row] = feature_D
        self._filled[place, row] = 1
        self._keys[place] = self._entries[place, : len(ranked)].mean(dim=0)
        return place, row

    def _make_room(self) -> None:
        short = len(self.ranked) - len(self._classes)
        if short > 0:
            for name in ("_entries", "_keys", "_filled", "_classes"):
                setattr(self, name, doubled(getattr(self, name)))

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` builds the same cache."""
        ranked = torch.full((len(self), self.shots, 2), torch.inf, dtype=torch.float64)
        for place, entries in enumerate(self.ranked):
            for i, entry in enumerate(entries):
                ranked[place, i] = torch.tensor(entry, dtype=torch.float64)
        return {f"{prefix}classes": self.classes, f"{prefix}entries": self.entries, f"{prefix}ranked": ranked}

    def restore(self, state: dict[str, Tensor], prefix: str, candidates: int) -> None:
        """Take over a state; ValueError if it does not hold together."""
        classes, entries, ranked = (state[f"{prefix}{name}"] for name in ("classes", "entries", "ranked"))
        like, count = self._keys, len(classes)
        sizes = (count,), (count, self.shots, like.shape[1]), (count, self.shots, 2)
        if tuple(tuple(x.shape) for x in (classes, entries, ranked)) != sizes or entries.dtype != like.dtype:
            raise ValueError("a cache of another shape")
        labels = classes.tolist()
        if len(set(labels)) < count or not all(isinstance(c, int) and 0 <= c < candidates for c in labels):
            raise ValueError("a cache of other candidates")
        for place, label in enumerate(labels):
            listed = [(e, int(row)) for e, row in ranked[place].tolist() if e != torch.inf]
            if sorted(row for _, row in listed) != list(range(len(listed))) or not listed:
                raise ValueError("a cache whose entries do not follow each other")
            self.places[label] = place
            self.ranked.append(listed)
            self._make_room()
            self._classes[place] = label
            self._entries[place] = entries[place].to(like.device)
            self._filled[place, : len(listed)] = 1
            self._keys[place] = self._entries[place, : len(listed)].mean(dim=0)


def doubled(x: Tensor) -> Tensor:
    """A tensor with twice the rows; the new ones are zero."""
    return torch.cat([x, torch.zeros_like(x)])
