"""A dataset whose splits show only a few images per pair, for methods that need many passes per image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from czsl.data.batches import stratified
from czsl.data.table import Dataset, Split


class Subset(Dataset):
    """At most ``per_pair`` images of each pair of each split, drawn by a seed: the same ones for every method and run.

    Parameters
    ----------
    whole : Dataset
        Its identity (``sha256``) and label space stay.
    per_pair : int
    seed : int
    """

    def __init__(self, whole: Dataset, per_pair: int, seed: int):
        self.__dict__.update(whole.__dict__)
        self._whole, self._per_pair, self._seed, self._parts = whole, per_pair, seed, dict[str, Split]()

    def split(self, name: str) -> Split:
        """The images that are left of a split, in their order."""
        if name not in self._parts:
            whole = self._whole.split(name)
            self._parts[name] = SplitPart(whole, stratified(whole.attr, whole.obj, self._per_pair, self._seed))
        return self._parts[name]


class SplitPart(Split):
    """Some rows of a split, renumbered from 0."""

    def __init__(self, whole: Split, rows_n: np.ndarray):
        self.name, self.space, self.paths, self.decode = whole.name, whole.space, whole.paths, whole.decode
        self.ids = [whole.ids[row] for row in rows_n]
        self.sha256 = [whole.sha256[row] for row in rows_n]
        self.attr, self.obj = whole.attr[rows_n], whole.obj[rows_n]
        self._whole, self._rows = whole, rows_n.tolist()

    def iter_images(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Rows ``start`` to ``stop`` with their bytes, in order."""
        for row in range(start, min(len(self), len(self) if stop is None else stop)):
            yield row, self.image_bytes(row)

    def image_bytes(self, row: int) -> bytes:
        """The bytes of one image as found."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self._whole.image_bytes(self._rows[row])
