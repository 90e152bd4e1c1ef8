"""The pairs that compete in an evaluation: which are seen, which the split allows, which thresholds each one reaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from czsl.compositions import SPLITS, CompositionSpace
from czsl.errors import DataError, UsageError

NUM_THRESHOLDS = 50  # the field's search
NARROWEST_TILE = 16  # a narrower product takes another code path in BLAS and moves scores by 1e-7


@dataclass(frozen=True)
class Candidates:
    """Candidate pairs of one split, in the order of the score columns; made by :meth:`build`.

    Attributes
    ----------
    space : CompositionSpace
    pairs : int64 [P, 2]
    open_world : bool
        All pairs compete.
    seen : bool [P]
        The pair occurs in training.
    allowed : bool [P]
        The pair competes: training pairs and the split's own in the closed world, all pairs in the open world.
    feasibility : float32 [P], optional
    grid : float32 [50]
        Thresholds of the search; empty without a feasibility.
    thresholds : float32 [T], ascending
        Those of the grid, and one more where the user names one.
    """

    space: CompositionSpace
    pairs: np.ndarray
    open_world: bool
    seen: np.ndarray
    allowed: np.ndarray
    feasibility: np.ndarray | None
    grid: np.ndarray
    thresholds: np.ndarray

    @classmethod
    def build(
        cls,
        space: CompositionSpace,
        pairs: np.ndarray | None = None,
        *,
        split: str = "test",
        open_world: bool = False,
        feasibility: np.ndarray | None = None,
        threshold: float | None = None,
        grid: np.ndarray | None = None,
        source: str = "candidate pairs",
    ) -> Candidates:
        """Describe the candidates of a split.

        Parameters
        ----------
        space : CompositionSpace
        pairs : int [P, 2], optional
            Pair of each score column; by default ``space.pairs(open_world)``.
        split : {"val", "test", "train"}
        open_world : bool
            All pairs compete.
        feasibility : float [P] or [A * O], optional
            Feasibility of the candidates, or of the whole open world in attribute-major order (read so only if P is
            not A * O). Values of seen pairs are not read.
        threshold : float, optional
            A threshold to reduce scores for besides the grid.
        grid : float [T], optional
            Default: :func:`threshold_grid` of the unseen candidates.
        source : str
            Name of the pair list and the feasibility in errors.

        Raises
        ------
        UsageError
            Unknown split.
        ValueError
            A threshold without a feasibility, a feasibility in the closed world, or a threshold that is not finite.
        DataError
            A pair outside the space or listed twice; a feasibility of the wrong length or with NaN.
        """
        if split not in SPLITS:
            raise UsageError(f"unknown split {split!r}", "a label space has three splits", f"choose one of {', '.join(SPLITS)}")
        pairs_P2 = space.pairs(open_world) if pairs is None else _checked_pairs(space, pairs, source)
        seen_P = space.seen_mask(pairs_P2)
        allowed_P = np.ones(len(pairs_P2), bool) if open_world else space.split_mask(pairs_P2, split)
        if feasibility is None:
            if threshold is not None:
                raise ValueError("a threshold was given without a feasibility; give the feasibility of the pairs")
            none = np.empty(0, np.float32)
            return cls(space, pairs_P2, open_world, seen_P, allowed_P, None, none, none)
        if not open_world:
            raise ValueError("a feasibility was given in the closed world; it limits the open world only")
        feasibility_P = align_feasibility(feasibility, space, pairs_P2, source)
        grid_T = threshold_grid(feasibility_P, seen_P) if grid is None else np.asarray(grid, np.float32)
        thresholds_T = np.unique(grid_T if threshold is None else np.append(grid_T, np.float32(threshold)))
        if not np.isfinite(thresholds_T).all():
            raise ValueError(f"a threshold is not a finite number: {threshold}")
        return cls(space, pairs_P2, open_world, seen_P, allowed_P, feasibility_P, grid_T, thresholds_T)

    @cached_property
    def level(self) -> np.ndarray:
        """Number of thresholds that the pair's feasibility reaches: feasible at ``thresholds[i]`` if ``level > i``. int64 [P]."""
        if self.feasibility is None:
            return np.zeros(len(self.pairs), np.int64)
        return np.searchsorted(self.thresholds, self.feasibility, side="right")

    @cached_property
    def group(self) -> np.ndarray:
        """Group of each column: T + 1 for seen pairs, the level of an unseen one, -1 for a pair that is not allowed. int64 [P]."""
        group_P = np.where(self.seen, len(self.thresholds) + 1, self.level)
        return np.where(self.allowed, group_P, -1)

    @cached_property
    def order(self) -> np.ndarray:
        """Columns that need scores, group by group: the quickest order to feed :class:`ExtremesAccumulator`. int64."""
        order = np.lexsort((np.arange(len(self.pairs)), -self.group))
        return order[self.group[order] >= 0]

    def tiles(self, size: int = 1024) -> Iterator[np.ndarray]:
        """Cut :attr:`order` into tiles of about ``size`` columns, none narrower than 16 if there are as many."""
        if size < NARROWEST_TILE:
            raise ValueError(f"tiles of {size} pairs are too narrow; the minimum is {NARROWEST_TILE}")
        start = 0
        while start < len(self.order):
            stop = start + size
            if len(self.order) - stop < NARROWEST_TILE:
                stop = len(self.order)
            yield self.order[start:stop]
            start = stop


def threshold_grid(feasibility: np.ndarray, seen: np.ndarray, count: int = NUM_THRESHOLDS) -> np.ndarray:
    """The field's thresholds: evenly spaced over the feasibility of the unseen pairs, float32 [count].

    Parameters
    ----------
    feasibility : float [P]
    seen : bool [P]
    """
    unseen = np.asarray(feasibility, np.float32)[~np.asarray(seen)]
    if not unseen.size:
        raise DataError(
            "no unseen pair to choose thresholds for",
            "every candidate occurs in training",
            "evaluate without feasibility thresholds",
        )
    return np.linspace(unseen.min(), unseen.max(), count, dtype=np.float32)


def align_feasibility(
    feasibility: np.ndarray, space: CompositionSpace, pairs: np.ndarray, source: str = "candidate pairs"
) -> np.ndarray:
    """Feasibility of each candidate, float32 [P], from a vector [P] or one over the open world [A * O]."""
    values = np.asarray(feasibility)
    if not np.issubdtype(values.dtype, np.floating) and not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"{source}: the feasibility has the type {values.dtype}", "a feasibility is a number", "give a vector of numbers"
        )
    values = values.astype(np.float32)
    open_world = space.num_attributes * space.num_objects
    if values.shape == (open_world,) != (len(pairs),):
        values = values[space.key(pairs)]
    if values.shape != (len(pairs),):
        raise DataError(
            f"{source}: the feasibility has shape {list(values.shape)}",
            f"there are {len(pairs)} candidate pairs and {open_world} pairs in the open world",
            "give one value for each pair",
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise DataError(
            f"{source}: the feasibility of pair {bad[0]} ({space.pair_name(pairs[bad[0]])}) is {values[bad[0]]}",
            f"{bad.size} values are not finite",
            "give finite values",
        )
    return values


def _checked_pairs(space: CompositionSpace, pairs: np.ndarray, source: str) -> np.ndarray:
    pairs_P2 = np.asarray(pairs)
    if pairs_P2.ndim != 2 or pairs_P2.shape[1] != 2 or not np.issubdtype(pairs_P2.dtype, np.integer):
        raise DataError(
            f"{source} have the shape {list(pairs_P2.shape)} and the type {pairs_P2.dtype}",
            "a pair is the index of an attribute and the index of an object",
            "give integers [P, 2]",
        )
    pairs_P2 = pairs_P2.astype(np.int64)
    outside = np.flatnonzero(((pairs_P2 < 0) | (pairs_P2 >= [space.num_attributes, space.num_objects])).any(axis=1))
    if outside.size:
        raise DataError(
            f"{source}: pair {outside[0]} is {pairs_P2[outside[0]].tolist()}",
            f"the space has {space.num_attributes} attributes and {space.num_objects} objects",
            "use indices into the space's lists",
        )
    keys_P = space.key(pairs_P2)
    _, first = np.unique(keys_P, return_index=True)
    if len(first) < len(keys_P):
        row = int(np.setdiff1d(np.arange(len(keys_P)), first)[0])
        raise DataError(
            f"{source}: pair {row} ({space.pair_name(pairs_P2[row])}) is listed twice", "each pair has one score", "keep it once"
        )
    return pairs_P2
