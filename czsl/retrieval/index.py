"""Index of composition embeddings: plain arrays, searched with FAISS.

Letters: P pairs, D width, C cells. A *place* is an index into the caller's pair list, a *row* one into the stored vectors; they
differ in an ``ivf`` index, whose vectors lie cell by cell. What is stored is arrays and JSON: nothing of FAISS is ever
deserialised. FAISS is imported on use; it must not be called in a forked child (its OpenMP hangs there).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from czsl.errors import DataError, UsageError
from czsl.reading import PathLike
from czsl.retrieval import storage

KINDS = ("flat", "ivf")
ITERATIONS = 10
SAMPLE_PER_CELL = 64  # vectors that k-means sees for each cell; all are assigned afterwards
BLOCK = 16_384  # rows handled at a time
_LARGEST_INDEX = 2**31  # of an attribute or object, so that a pair's key fits into 64 bits
log = logging.getLogger("czsl")


@dataclass(frozen=True, eq=False)
class CompositionIndex:
    """Text embeddings of candidate pairs, flat or in cells; made by :meth:`build` or :meth:`load`.

    Attributes
    ----------
    pairs : int64 [P, 2]
        Attribute and object index of each place.
    vectors : float32 [P, D]
        One row a pair; memory-mapped after :meth:`load`.
    order : int64 [P], optional
        Place of each row (``ivf``); None: row and place are the same.
    starts : int64 [C + 1], optional
        First row of each cell.
    centroids : float32 [C, D], optional
        Mean of each cell's vectors.
    meta : dict
        The caller's: which run, checkpoint and label space the embeddings come from.
    gpu : bool
        Search on the GPUs that FAISS finds.
    """

    pairs: np.ndarray
    vectors: np.ndarray
    order: np.ndarray | None = None
    starts: np.ndarray | None = None
    centroids: np.ndarray | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    gpu: bool = False

    @classmethod
    def build(
        cls,
        embeddings_PD: np.ndarray,
        pairs_P2: np.ndarray,
        kind: str = "flat",
        cells: int | None = None,
        seed: int = 0,
        gpu: bool | None = None,
    ) -> CompositionIndex:
        """Index the embeddings of a pair list.

        Parameters
        ----------
        embeddings_PD : float [P, D]
            Any length; kept as float32. A flat index keeps the array itself if it is float32 already.
        pairs_P2 : int [P, 2]
            Attribute and object index of each pair, no pair twice.
        kind : {"flat", "ivf"}
        cells : int, optional
            Number of cells of an ``ivf`` index; default: about the square root of P. Cells that stay empty are dropped.
        seed : int
            Seed of k-means.
        gpu : bool, optional
            Default: whether FAISS finds a GPU.

        Raises
        ------
        UsageError
            More cells than pairs, or none.
        ValueError
            Unknown kind, cells of a flat index, shapes or types that do not fit.
        DataError
            A value that is not finite, a pair twice or outside of the limits.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind of index {kind!r}; choose one of {', '.join(KINDS)}")
        pairs_P2 = _checked_pairs(pairs_P2, "pairs")
        vectors_PD = np.asarray(embeddings_PD)
        if vectors_PD.ndim != 2 or len(vectors_PD) != len(pairs_P2) or not vectors_PD.shape[1]:
            raise ValueError(
                f"embeddings of shape {list(vectors_PD.shape)} for {len(pairs_P2)} pairs; give one embedding per pair"
            )
        if not np.issubdtype(vectors_PD.dtype, np.floating):
            raise ValueError(f"embeddings of type {vectors_PD.dtype}; give floating-point embeddings")
        vectors_PD = np.ascontiguousarray(vectors_PD, dtype=np.float32)
        row_norms(vectors_PD)
        gpu = gpu_there() if gpu is None else gpu
        if kind == "flat":
            if cells is not None:
                raise ValueError("cells was given for a flat index; only ivf has cells")
            return cls(pairs_P2, vectors_PD, gpu=gpu)
        cells = max(1, round(len(pairs_P2) ** 0.5)) if cells is None else cells
        if not 1 <= cells <= len(pairs_P2):
            raise UsageError(
                f"{cells} cells were requested for {len(pairs_P2)} pairs", "each cell needs a pair", "request fewer cells"
            )
        order_P, starts = _cut(_assign(vectors_PD, cells, seed, gpu))
        vectors_PD = vectors_PD[order_P]
        centroids_CD = np.stack([vectors_PD[a:b].mean(0, np.float64) for a, b in _spans(starts)]).astype(np.float32)
        return cls(pairs_P2, vectors_PD, order_P, starts, centroids_CD, gpu=gpu)

    # -- what is in it ---------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def kind(self) -> str:
        """``flat`` or ``ivf``."""
        return "flat" if self.order is None else "ivf"

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return self.vectors.shape[1]

    @property
    def cells(self) -> int:
        """C, the number of cells; 0 in a flat index."""
        return 0 if self.centroids is None else len(self.centroids)

    @cached_property
    def longest(self) -> float:
        """Largest L2 norm of an embedding."""
        return float(row_norms(self.vectors).max())

    @cached_property
    def row_of_place(self) -> np.ndarray | None:
        """Row of each place, int64 [P]; None if they are the same."""
        if self.order is None:
            return None
        rows_P = np.empty_like(self.order)
        rows_P[self.order] = np.arange(len(self.order))
        return rows_P

    @cached_property
    def _sorted_keys(self) -> tuple[np.ndarray, np.ndarray]:
        keys_P = _keys(self.pairs)
        order_P = np.argsort(keys_P, kind="stable")
        return keys_P[order_P], order_P

    def locate(self, pairs: np.ndarray) -> np.ndarray:
        """Place of each pair [..., 2]; -1 where the index does not hold it. int64 [...]."""
        keys_P, order_P = self._sorted_keys
        wanted = _keys(np.asarray(pairs, np.int64))
        near = np.minimum(np.searchsorted(keys_P, wanted), len(keys_P) - 1)
        return np.where(keys_P[near] == wanted, order_P[near], -1)

    def embeddings(self, places: np.ndarray) -> np.ndarray:
        """Embeddings of places [n], float32 [n, D]."""
        return self.vectors[places if self.row_of_place is None else self.row_of_place[places]]

    @cached_property
    def on_gpu(self) -> Any:
        """A FAISS inner-product index over the rows, spread over all GPUs; None without :attr:`gpu` or if it does not fit."""
        if not (self.gpu and gpu_there()):
            return None
        import faiss

        options = faiss.GpuMultipleClonerOptions()
        options.shard = True  # each GPU holds a part, not a copy
        try:
            # Filled first: shards take their rows in one pass only.
            flat = faiss.IndexFlatIP(self.dim)
            flat.add(self.vectors)
            return faiss.index_cpu_to_all_gpus(flat, co=options)
        except RuntimeError as error:
            log.warning("the index does not fit on the GPU, searching on the CPU (%s)", str(error).splitlines()[0])
            return None

    # -- files -----------------------------------------------------------------------------------------------------
    def save(self, folder: PathLike, meta: dict[str, Any] | None = None) -> None:
        """Write the index to a folder: whole or not at all; an index that is there is replaced.

        Parameters
        ----------
        folder : path
        meta : dict, optional
            JSON values that describe where the embeddings come from; default: :attr:`meta`.

        Raises
        ------
        UsageError
            The folder exists and is not an index, or meta is not JSON.
        """
        folder = Path(folder)
        arrays = {name: getattr(self, name) for name in storage.ARRAYS[self.kind]}
        facts = {"kind": self.kind, "pairs": len(self), "dim": self.dim, "cells": self.cells}
        storage.write(Path(folder), arrays, facts, self.meta if meta is None else meta)

    @classmethod
    def load(cls, folder: PathLike, gpu: bool | None = None) -> CompositionIndex:
        """Read what :meth:`save` wrote, after checking sizes, hashes, shapes and values.

        Raises
        ------
        DataError
            Anything missing, cut short, edited or contradictory; the message names the file.
        """
        folder = Path(folder)
        arrays, facts, meta = storage.read(Path(folder))
        index = cls(**arrays, meta=meta, gpu=gpu_there() if gpu is None else gpu)
        _checked_pairs(index.pairs, f"{folder}/pairs.npy")
        index.__dict__["longest"] = float(row_norms(index.vectors, f"{folder}/vectors.npy").max())
        if facts["kind"] == "ivf":
            _check_cells(index, Path(folder))
        return index


def concatenate_parts(parts: Iterable[tuple[int, np.ndarray]], count: int) -> np.ndarray:
    """One array of embeddings from parts computed apart, in any order.

    Parameters
    ----------
    parts : iterable of (start, float [n, D])
        Embeddings of the pairs ``start .. start + n - 1``; taken one at a time.
    count : int
        P, the length of the pair list.

    Returns
    -------
    float32 [P, D]
        The bits of the parts.

    Raises
    ------
    ValueError
        Parts that overlap, leave a gap, or differ in width.
    """
    vectors_PD: np.ndarray | None = None
    spans = []
    for start, part in parts:
        part_nD, stop = np.asarray(part), start + len(part)
        if vectors_PD is None and part_nD.ndim == 2:
            vectors_PD = np.empty((count, part_nD.shape[1]), np.float32)
        if vectors_PD is None or part_nD.shape[1:] != vectors_PD.shape[1:] or not 0 <= start <= stop <= count:
            raise ValueError(
                f"embeddings of shape {list(part_nD.shape)} from pair {start} on; there are {count} pairs of one width"
            )
        vectors_PD[start:stop] = part_nD
        spans.append((start, stop))
    covered = 0
    for start, stop in sorted(spans):
        if start != covered:
            kind = "in two parts" if start < covered else "in no part"
            raise ValueError(f"the embedding of pair {min(start, covered)} is {kind}; cut the pair list once")
        covered = stop
    if vectors_PD is None or covered != count:
        raise ValueError(f"the embedding of pair {covered} is in no part; there are {count} pairs")
    return vectors_PD


def gpu_there() -> bool:
    """Return whether FAISS finds a GPU."""
    import faiss

    return faiss.get_num_gpus() > 0


def row_norms(vectors_PD: np.ndarray, source: str = "embeddings") -> np.ndarray:
    """L2 norm of each row, float64 [P]; DataError names the first row with a value that is not finite."""
    norms_P = np.empty(len(vectors_PD))
    for start in range(0, len(vectors_PD), BLOCK):
        block = vectors_PD[start : start + BLOCK].astype(np.float64)
        norms_P[start : start + BLOCK] = np.sqrt(np.einsum("nd,nd->n", block, block))
    bad = np.flatnonzero(~np.isfinite(norms_P))
    if bad.size:
        raise DataError(f"{source}: row {bad[0]} is not finite", f"{bad.size} rows hold NaN or infinity", "compute them again")
    return norms_P


def _keys(pairs: np.ndarray) -> np.ndarray:
    return pairs[..., 0] * _LARGEST_INDEX + pairs[..., 1]


def _checked_pairs(pairs: np.ndarray, source: str) -> np.ndarray:
    pairs_P2 = np.asarray(pairs)
    if pairs_P2.ndim != 2 or pairs_P2.shape[1] != 2 or not len(pairs_P2) or not np.issubdtype(pairs_P2.dtype, np.integer):
        raise DataError(
            f"{source}: {pairs_P2.dtype} of shape {list(pairs_P2.shape)}",
            "a pair is the index of an attribute and the index of an object",
            "give integers [P, 2], at least one pair",
        )
    outside = np.flatnonzero(((pairs_P2 < 0) | (pairs_P2 >= _LARGEST_INDEX)).any(axis=1))
    if outside.size:
        raise DataError(
            f"{source}: pair {outside[0]} is {pairs_P2[outside[0]].tolist()}", "an index is out of range", "use indices from 0 on"
        )
    pairs_P2 = pairs_P2.astype(np.int64, copy=False)
    _, first = np.unique(_keys(pairs_P2), return_index=True)
    if len(first) < len(pairs_P2):
        row = int(np.setdiff1d(np.arange(len(pairs_P2)), first)[0])
        raise DataError(
            f"{source}: pair {row} {pairs_P2[row].tolist()} is listed twice", "each pair has one embedding", "keep it once"
        )
    return pairs_P2


def _assign(vectors_PD: np.ndarray, cells: int, seed: int, gpu: bool) -> np.ndarray:
    """Cell of each vector by L2 k-means, int64 [P]."""
    import faiss

    sample = min(len(vectors_PD), cells * SAMPLE_PER_CELL)
    chosen = np.sort(np.random.default_rng(seed).choice(len(vectors_PD), sample, replace=False))
    kmeans = faiss.Kmeans(
        vectors_PD.shape[1],
        cells,
        niter=ITERATIONS,
        seed=seed,
        gpu=gpu,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE_PER_CELL + 1,
    )
    kmeans.train(vectors_PD if sample == len(vectors_PD) else vectors_PD[chosen])
    centroids_CD = np.asarray(kmeans.centroids, np.float32).reshape(cells, -1)
    blocks = (vectors_PD[start : start + BLOCK] for start in range(0, len(vectors_PD), BLOCK))
    return np.concatenate([faiss.knn(block, centroids_CD, 1)[1][:, 0] for block in blocks])


def _cut(cell_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places cell by cell (ascending inside) and the first row of each cell that is not empty."""
    order_P = np.argsort(cell_P, kind="stable")
    sizes = np.bincount(cell_P)
    return order_P, np.concatenate([[0], np.cumsum(sizes[sizes > 0])])


def _spans(starts: np.ndarray) -> Iterable[tuple[int, int]]:
    return itertools.pairwise(starts.tolist())


def _check_cells(index: CompositionIndex, folder: Path) -> None:
    """DataError unless the cells hold each pair once and their centroids are finite."""
    assert index.order is not None and index.starts is not None and index.centroids is not None
    count = len(index)
    if not np.array_equal(np.sort(index.order), np.arange(count)):
        raise DataError(
            f"{folder}/order.npy is damaged", f"it is not a permutation of the {count} pairs", "build the index again"
        )
    if index.starts[0] != 0 or index.starts[-1] != count or (np.diff(index.starts) < 1).any():
        raise DataError(f"{folder}/starts.npy is damaged", f"it does not divide {count} rows into cells", "build the index again")
    if not np.isfinite(index.centroids).all():
        raise DataError(f"{folder}/centroids.npy is damaged", "a centroid is not finite", "build the index again")
