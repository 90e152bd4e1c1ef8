"""Exact top-k compositions without a matrix of images x pairs, by the threshold algorithm on a :class:`CompositionIndex`.

The score of a pair (a, o) is ``q . t_ao + alpha[a] * beta[o]``: an inner product, which the scan bounds, and a product (or the sum) of
primitive terms, which their order bounds (Fagin, Lotem and Naor, "Optimal aggregation algorithms for middleware", PODS 2001). float32
products only choose candidates, with a slack for their rounding. The candidates' scores are computed again in float64, pair by pair, so
neither the answer nor its order depends on how a matrix product was cut.

Letters: B images, P pairs, A attributes, O objects, D width, K best kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from czsl.errors import DataError
from czsl.retrieval.index import CompositionIndex
from czsl.retrieval.search import TopKSearch

IMAGES = 1024  # handled at a time


@dataclass(frozen=True)
class TopCompositions:
    """The best pairs of each image, by score descending, then index ascending.

    Attributes
    ----------
    scores : float64 [B, k]
        With the bias, if there is one.
    plain : float64 [B, k]
        The same without it.
    places : int64 [B, k]
        Indices into the index's ``pairs``.
    visited : float64 [B]
        Inner products computed, as a share of all pairs.
    exact : bool
        False if only some of the cells were visited.
    """

    scores: np.ndarray
    plain: np.ndarray
    places: np.ndarray
    visited: np.ndarray
    exact: bool


def top_compositions(
    index: CompositionIndex,
    queries_BD: np.ndarray,
    attribute_BA: np.ndarray | None = None,
    object_BO: np.ndarray | None = None,
    k: int = 10,
    allowed: np.ndarray | None = None,
    probes: int | None = None,
    probability: float | None = None,
    combine: Literal["product", "sum"] = "product",
    bias: tuple[float, np.ndarray] | None = None,
) -> TopCompositions:
    """The k best compositions of each image.

    Parameters
    ----------
    index : CompositionIndex
    queries_BD : float [B, D]
        Image embeddings with all factors of the inner product (logit scale, weight of the branch). Read as float32.
    attribute_BA, object_BO : float [B, A], float [B, O], optional
        Primitive terms with their weights, not negative; both or none. Read as float32.
    k : int
        Pairs an image; fewer come back where fewer are allowed.
    allowed : bool [P], optional
        Pairs that may be answered; default: all.
    probes : int, optional
        Visit this many cells of an ``ivf`` index (more if they hold fewer than k allowed pairs) and stop: quick and approximate.
        Default: scan all pairs, which is exact.
    probability : float, optional
        The composition term is this weight times the pair's probability, the softmax of its inner product among all pairs of the index,
        instead of the inner product itself. Costs a scan of its own for the sum.
    combine : "product" or "sum", default "product"
        How the two primitive terms of a pair become one.
    bias : (float, bool [P]), optional
        Added in float64 to the scores of the marked pairs before ranking. It reorders neither them nor the others, so that the best of both
        parts are found apart and merged: the answer stays exact.

    Raises
    ------
    ValueError
        Shapes that do not fit, half of the primitive terms, ``k`` or ``probes`` below 1, ``probes`` on a flat index or with
        ``probability``, a weight that is not above 0.
    DataError
        A value that is not finite, a negative primitive term, scores beyond float32.
    """
    queries_BD = _checked(queries_BD, "queries", (None, index.dim))
    if (attribute_BA is None) != (object_BO is None):
        raise ValueError("one of the two primitive terms is missing; give attribute and object terms, or none")
    terms = None
    if attribute_BA is not None and object_BO is not None:
        counts_2 = index.pairs.max(axis=0) + 1
        terms = tuple(
            _checked(term, name, (len(queries_BD), None), int(minimum), 0.0)
            for term, name, minimum in zip((attribute_BA, object_BO), ("attribute terms", "object terms"), counts_2, strict=True)
        )
    if k < 1 or (probes is not None and probes < 1):
        raise ValueError(f"k is {k} and probes is {probes}; the minimum of both is 1")
    if probes is not None and index.kind == "flat":
        raise ValueError("probes was given for a flat index, which has no cells")
    if combine not in ("product", "sum"):
        raise ValueError(f"combine={combine!r} is unknown; primitive terms are combined by product or sum")
    if probability is not None and (probes is not None or not probability > 0):
        why = "probes cannot be used with it" if probes else f"its weight is {probability}, not above 0"
        raise ValueError(f"a probability as composition term needs the products of all pairs: {why}")
    allowed_P = np.ones(len(index), bool) if allowed is None else np.asarray(allowed)
    if allowed_P.shape != (len(index),) or allowed_P.dtype != bool:
        raise ValueError(
            f"allowed is {allowed_P.dtype} {list(allowed_P.shape)}; give bool [{len(index)}], one per pair of the index"
        )
    groups = [(allowed_P, 0.0)]
    if bias is not None:
        value, marked_P = float(bias[0]), np.asarray(bias[1])
        if not np.isfinite(value) or marked_P.shape != (len(index),) or marked_P.dtype != bool:
            raise ValueError(
                f"a bias of {value} on {marked_P.dtype} {list(marked_P.shape)}; give a finite number and bool [{len(index)}]"
            )
        groups = [(allowed_P & ~marked_P, 0.0), (allowed_P & marked_P, value)]
    k = min(k, int(allowed_P.sum()))
    parts = []
    for start in range(0, max(len(queries_BD), 1), IMAGES):
        some = slice(start, start + IMAGES)
        own = None if terms is None else (terms[0][some], terms[1][some])
        parts.append(_best_of_groups(index, queries_BD[some], own, k, groups, probes, probability, combine))
    scores, plain, places, products = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    visited = np.minimum(products / len(index), 1.0)
    return TopCompositions(scores, plain, places, visited, probes is None or probes >= index.cells)


def _best_of_groups(
    index: CompositionIndex, queries_BD, terms, k: int, groups, probes, probability, combine
) -> tuple[np.ndarray, ...]:
    """Scores with and without the bias, places [B, k] and products [B] of the best of groups of pairs, each with a bias of its own."""
    searches: list[tuple[TopKSearch, float]] = []
    for allowed_P, value in groups:
        rows = np.flatnonzero(allowed_P if index.order is None else allowed_P[index.order])
        search = TopKSearch(index, queries_BD, terms, min(k, len(rows)), allowed_P, rows, combine)
        if search.k and len(queries_BD) and probability is not None:
            first = next((s for s, _ in searches if s.weight), None)
            search.normalise(probability, first)
        if search.k and len(queries_BD):
            search.run(probes)
        searches.append((search, value))
    products = np.sum([search.products for search, _ in searches], axis=0)
    plain = np.concatenate([search.scores for search, _ in searches], axis=1)
    scores = np.concatenate([search.scores + value for search, value in searches], axis=1)
    places = np.concatenate([search.places for search, _ in searches], axis=1)
    order = np.lexsort((places, -scores), axis=1)[:, :k]
    return *(np.take_along_axis(x, order, axis=1) for x in (scores, plain, places)), products


def _checked(values: np.ndarray, name: str, shape: tuple, minimum: int = 0, lowest: float = -np.inf) -> np.ndarray:
    array = np.asarray(values)
    fits = array.ndim == 2 and all(want in (None, got) for want, got in zip(shape, array.shape, strict=False))
    if not fits or array.shape[1] < minimum or not np.issubdtype(array.dtype, np.floating):
        wanted = [minimum if want is None and minimum else want for want in shape]
        raise ValueError(f"{name}: {array.dtype} of shape {list(array.shape)}; the index needs floats of shape {wanted}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    bad = np.argwhere(~(np.isfinite(array) & (array >= lowest)))
    if bad.size:
        what = "is not finite" if not np.isfinite(array[tuple(bad[0])]) else "is negative"
        raise DataError(
            f"{name}: column {bad[0][1]} of image {bad[0][0]} {what}",
            f"it is {array[tuple(bad[0])]}",
            "check the weights of the run and the image",
        )
    return array
