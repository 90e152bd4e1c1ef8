"""The search for the best compositions of some images: what is visited, what bounds the rest, and what is kept.

Letters: B images, P pairs, A attributes, O objects, D width, C cells, K best kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from czsl.errors import DataError
from czsl.retrieval.index import BLOCK, CompositionIndex

SEED_PRIMITIVES = 8  # the pairs of this many best attributes and objects are visited first
DENSE_SHARE = 0.8  # from this share of allowed rows on, all are read
DENSE_ROWS, DENSE_IMAGES = 4096, 256  # the largest float32 block of scores
BLAS_QUERIES = 8  # from this many queries on, a matrix product is quicker than one by one
GPU_MAX_RESULTS = 2048  # results per query that FAISS gives on a GPU
_UNIT = 2.0**-24  # relative rounding error of float32


class TopKSearch:
    """The search for some images: the best found so far, and what bounds the rest."""

    def __init__(self, index: CompositionIndex, queries_BD, terms, k: int, allowed_P, rows, combine: str = "product"):
        self.index, self.queries, self.terms, self.k = index, queries_BD, terms, k
        self.combine = np.add if combine == "sum" else np.multiply
        self.allowed, self.rows = allowed_P, rows  # rows: the allowed ones, ascending
        B = len(queries_BD)
        self.scores = np.full((B, k), -np.inf)
        self.places = np.full((B, k), len(index), np.int64)
        self.products = np.zeros(B)
        self.lengths = np.linalg.norm(queries_BD.astype(np.float64), axis=1)
        self.rest = np.zeros(B)  # bound on the primitive term of pairs other than the seeds
        largest = self.lengths * index.longest
        if terms is not None:
            largest = largest + self.combine(terms[0].max(1).astype(np.float64), terms[1].max(1))
        if (largest > 1e30).any():
            raise DataError(
                f"scores of image {int(largest.argmax())} reach {largest.max():.1e}",
                "float32 cannot rank such scores",
                "check that the embeddings are normalised",
            )
        # Rounding of a float32 inner product summed in any order, of the primitive term, and of their sum.
        self.slack = 1.01 * (index.dim + 8) * _UNIT * largest + 1e-30
        self.weight, self.log_sum = 0.0, np.zeros(0)  # without a probability

    def normalise(self, weight: float, same: TopKSearch | None = None) -> None:
        """Let the composition term be ``weight`` times the softmax of the inner product among all rows; ``same`` has the sums already."""
        if same is not None:
            self.weight, self.log_sum = weight, same.log_sum
            self.slack = self.slack + weight * np.expm1(self.slack)
            return
        peak, total = np.full(len(self.queries), -np.inf), np.zeros(len(self.queries))
        queries_BD = self.queries.astype(np.float64)  # the sum weighs the two terms of every score
        for start in range(0, len(self.index), DENSE_ROWS):
            products_bn = queries_BD @ self.index.vectors[start : start + DENSE_ROWS].T.astype(np.float64)
            higher = np.maximum(peak, products_bn.max(axis=1))
            total = total * np.exp(peak - higher) + np.exp(products_bn - higher[:, None]).sum(axis=1)
            peak = higher
        self.products += len(self.index)
        self.weight, self.log_sum = weight, peak + np.log(total)
        # A product that is off by d makes a probability of at most 1 off by at most exp(d) - 1.
        self.slack = self.slack + weight * np.expm1(self.slack)

    def composition_term(self, images: np.ndarray, products: np.ndarray) -> np.ndarray:
        """Return the composition term of scores for inner products [n] or [n, m] of images [n]; it grows with them."""
        if not self.weight:
            return products
        log_sum = self.log_sum[images]
        # Above 0 only by rounding, or where a bound is looser than any pair.
        return self.weight * np.exp(np.minimum(products - (log_sum if products.ndim == 1 else log_sum[:, None]), 1.0))

    @property
    def worst(self) -> np.ndarray:
        """The k-th best score found, float64 [B]; minus infinity until there are k."""
        return self.scores[:, -1]

    def run(self, probes: int | None) -> None:
        """Fill :attr:`scores` and :attr:`places`."""
        if self.terms is not None:
            self.visit_seeds()
        if probes is not None:
            self.probe(probes)
        elif self.index.on_gpu is not None:
            left = self.visit_gpu()
            if left.size:
                self.visit_all(left)
        else:
            self.visit_all(np.arange(len(self.queries)))

    # -- which pairs to visit ----------------------------------------------------------------------------------------
    def visit_seeds(self) -> None:
        """The pairs of the best attributes and objects. Any other pair lacks one of them, which bounds its primitive term."""
        best, after = [], []
        for term in self.terms:
            order = np.argsort(-term, axis=1, kind="stable")[:, : SEED_PRIMITIVES + 1]
            best.append(order[:, :SEED_PRIMITIVES])
            ranked = np.take_along_axis(term, order, axis=1).astype(np.float64)
            after.append((ranked[:, 0], ranked[:, SEED_PRIMITIVES] if ranked.shape[1] > SEED_PRIMITIVES else np.zeros(len(term))))
        (first_a, next_a), (first_o, next_o) = after
        self.rest = np.maximum(self.combine(next_a, first_o), self.combine(first_a, next_o))
        pairs = np.stack(np.broadcast_arrays(best[0][:, :, None], best[1][:, None, :]), axis=-1).reshape(len(self.queries), -1, 2)
        places = self.index.locate(pairs)
        images, columns = np.nonzero((places >= 0) & self.allowed[places])
        self.products += np.bincount(images, minlength=len(self.queries))
        self.offer(images, places[images, columns])

    def visit_all(self, images: np.ndarray) -> None:
        """All allowed rows, block by block."""
        if not images.size or not self.rows.size:
            return
        rows = self.rows
        # Where few are missing, whole blocks are read: a view costs less than a copy, and what is not allowed is not offered.
        if len(rows) > DENSE_SHARE * (rows[-1] + 1 - rows[0]):
            rows = np.arange(rows[0], rows[-1] + 1)
        for start in range(0, len(rows), BLOCK):
            self.visit(images, rows[start : start + BLOCK])

    def visit_gpu(self) -> np.ndarray:
        """FAISS's best inner products; returns the images for which they do not settle the answer."""
        wanted = min(len(self.index), GPU_MAX_RESULTS, max(4 * self.k, 256))
        products, rows = self.index.on_gpu.search(self.queries, wanted)
        self.products += len(self.index)
        return np.flatnonzero(self.settle(np.arange(len(self.queries)), products, rows, len(self.index)))

    def probe(self, probes: int) -> None:
        """The cells of the largest centroid products, as many as asked for, and on until they hold k pairs."""
        cells = list(self.cell_rows())
        order_BC = np.argsort(-self.centroid_products().astype(np.float32), axis=1, kind="stable")
        held_BC = np.cumsum(np.array([len(rows) for rows in cells])[order_BC], axis=1)
        enough_B = np.maximum((held_BC < self.k).sum(axis=1) + 1, min(probes, len(cells)))
        order_BC = np.where(np.arange(len(cells)) < enough_B[:, None], order_BC, -1)
        for cell, images in _by_cell(np.arange(len(self.queries)), order_BC):
            if cell >= 0 and len(cells[cell]):
                self.visit(images, cells[cell])

    def centroid_products(self) -> np.ndarray:
        """Inner product of each query and centroid, float64 [B, C]."""
        assert self.index.centroids is not None
        return self.queries.astype(np.float64) @ self.index.centroids.T.astype(np.float64)

    def cell_rows(self) -> Iterator[np.ndarray]:
        """The allowed rows of each cell."""
        assert self.index.starts is not None
        cuts = np.searchsorted(self.rows, self.index.starts)
        return (self.rows[start:stop] for start, stop in itertools.pairwise(cuts))

    # -- visiting ----------------------------------------------------------------------------------------------------
    def visit(self, images: np.ndarray, rows: np.ndarray) -> None:
        """Compare images [b] with rows [n] (ascending)."""
        self.products[images] += len(rows)
        vectors_nD = self.vectors(rows)
        wanted = min(2 * self.k + 12, len(rows))
        products, columns = _best_products(self.queries[images], vectors_nD, wanted)
        open_b = self.settle(images, products, rows[columns], len(rows))
        for start in range(0, len(rows), DENSE_ROWS):
            for some in np.split(images[open_b], range(DENSE_IMAGES, int(open_b.sum()), DENSE_IMAGES)):
                if some.size:
                    block = slice(start, start + DENSE_ROWS)
                    self.visit_dense(some, rows[block], vectors_nD[block])

    def settle(self, images, products_bn, rows_bn, count: int) -> np.ndarray:
        """Take the best inner products of ``count`` rows; return for which images another row might still be better, bool [b]."""
        places = rows_bn if self.index.order is None else self.index.order[rows_bn]
        bound_bn = self.composition_term(images, products_bn.astype(np.float64))
        if self.terms is not None:
            pairs = self.index.pairs[places]
            attribute_bn = self.terms[0][images[:, None], pairs[..., 0]].astype(np.float64)
            bound_bn += self.combine(attribute_bn, self.terms[1][images[:, None], pairs[..., 1]])
        self.offer_above(images, places, np.where(self.allowed[places], bound_bn, -np.inf))
        if products_bn.shape[1] == count:
            return np.zeros(len(images), bool)
        return self.composition_term(images, products_bn[:, -1]) + self.slack[images] + self.rest[images] >= self.worst[images]

    def visit_dense(self, images: np.ndarray, rows: np.ndarray, vectors_nD: np.ndarray) -> None:
        """All scores of a small block."""
        places = rows if self.index.order is None else self.index.order[rows]
        scores_bn = self.composition_term(images, (vectors_nD @ self.queries[images].T).T)
        if self.terms is not None:
            attributes_n, objects_n = self.index.pairs[places].T
            scores_bn += self.combine(self.terms[0][images][:, attributes_n], self.terms[1][images][:, objects_n])
        scores_bn = np.where(self.allowed[places], scores_bn, -np.inf)
        self.offer_above(images, np.broadcast_to(places, scores_bn.shape), scores_bn)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings of ascending rows; a view if they are contiguous."""
        if rows[-1] - rows[0] + 1 == len(rows):
            return self.index.vectors[rows[0] : rows[-1] + 1]
        return self.index.vectors[rows]

    # -- keeping the best --------------------------------------------------------------------------------------------
    def offer_above(self, images: np.ndarray, places_bn: np.ndarray, scores_bn: np.ndarray) -> None:
        """Offer those whose rounded score leaves room for the k best found, or for the k best of these."""
        slack_b = self.slack[images]
        floor_b = self.worst[images] - slack_b
        crowded = np.flatnonzero((scores_bn >= floor_b[:, None]).sum(axis=1) > self.k)
        if crowded.size:
            kth = np.partition(scores_bn[crowded], -self.k, axis=1)[:, -self.k]
            floor_b[crowded] = np.maximum(floor_b[crowded], kth - 2 * slack_b[crowded])
        at, columns = np.nonzero((scores_bn >= floor_b[:, None]) & (scores_bn > -np.inf))
        self.offer(images[at], places_bn[at, columns])

    def offer(self, images: np.ndarray, places: np.ndarray) -> None:
        """Compute the scores of (image, place) pairs in float64 and keep the k best of each image."""
        if not images.size:
            return
        touched = np.unique(images)
        images = np.concatenate([np.repeat(touched, self.k), images])
        scores = np.concatenate([self.scores[touched].ravel(), self.exact_scores(images[len(touched) * self.k :], places)])
        places = np.concatenate([self.places[touched].ravel(), places])
        order = np.lexsort((places, -scores, images))
        images, scores, places = images[order], scores[order], places[order]
        # A pair offered twice has the same bits twice, so its two entries are neighbours.
        again = (images[1:] == images[:-1]) & (places[1:] == places[:-1]) & (places[1:] < len(self.index))
        fresh = np.concatenate([[True], ~again])
        images, scores, places = images[fresh], scores[fresh], places[fresh]
        rank = np.arange(len(images)) - np.searchsorted(images, images)
        keep = rank < self.k
        self.scores[images[keep], rank[keep]] = scores[keep]
        self.places[images[keep], rank[keep]] = places[keep]

    def exact_scores(self, images: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Scores in float64, float64 [n]; each is a sum of its own, so its bits do not depend on the others."""
        scores = np.empty(len(images))
        for start in range(0, len(images), DENSE_ROWS):
            i, p = images[start : start + DENSE_ROWS], places[start : start + DENSE_ROWS]
            value = self.composition_term(i, (self.queries[i].astype(np.float64) * self.index.embeddings(p)).sum(axis=1))
            if self.terms is not None:
                a, o = self.index.pairs[p].T
                value += self.combine(self.terms[0][i, a].astype(np.float64), self.terms[1][i, o])
            scores[start : start + DENSE_ROWS] = value
        return scores


def _best_products(queries_BD: np.ndarray, vectors_nD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest inner products of each query and their columns, both [B, count], by FAISS."""
    import faiss

    # FAISS 1.15 takes its slow loop below 128,000 numbers in the queries: 170 CLIP images. Only time depends on this global.
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = min(before, BLAS_QUERIES * queries_BD.shape[1])
    try:
        return faiss.knn(queries_BD, vectors_nD, count, metric=faiss.METRIC_INNER_PRODUCT)
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def _by_cell(images: np.ndarray, cells_bn: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each cell with the images that want it, cells ascending."""
    cells, wanting = cells_bn.ravel(), np.repeat(images, cells_bn.shape[1])
    order = np.argsort(cells, kind="stable")
    cells, wanting = cells[order], wanting[order]
    for group in np.split(np.arange(len(cells)), np.flatnonzero(np.diff(cells)) + 1):
        if group.size:
            yield int(cells[group[0]]), wanting[group]
