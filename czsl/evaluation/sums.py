"""Sums of exponentials per image and group: what the likelihood of every temperature and bias follows from.

A probability is proportional to exp(w / T + b * unseen) with the method's log-weight w of a pair. For a given T, the bias b only weighs the
sum over unseen pairs against that over seen ones. So for each image and each temperature of a small grid two numbers are enough for the
probability of its true composition, and two more each for its true attribute and object. The sums are kept apart by folds of the objects,
so that a part of them can be taken out of the candidate list afterwards (see :mod:`czsl.evaluation.rejection`).

Letters: N images, B images of a tile, p pairs of a tile, G temperatures, F folds, 2 groups (seen, unseen), A attributes, O objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from czsl.errors import DataError
from czsl.evaluation.candidates import Candidates
from czsl.evaluation.labels import check_labels, locate_labels
from czsl.evaluation.operating import Scaling

GRID = np.multiply.outer(2.0 ** np.arange(-3, 3), 2.0 ** (np.arange(4) / 4)).ravel()  # 1/8 to 6.7, four steps per octave
FOLDS, FOLD_SEED = 4, 0


def deal_folds(count: int, folds: int = FOLDS, seed: int = FOLD_SEED) -> np.ndarray:
    """Objects dealt into folds of equal size (up to one), by a seed. int64 [O]; fewer folds if there are fewer objects."""
    fold_O = np.empty(count, np.int64)
    fold_O[np.random.default_rng(seed).permutation(count)] = np.arange(count) % min(folds, count)
    return fold_O


@dataclass(frozen=True)
class Sums:
    """Log-sums of one split; rows in the order of ``index``. Log-weights are taken relative to the image's highest.

    Attributes
    ----------
    index : int64 [N]
    temperatures : float64 [G]
    top : float64 [N]
        Highest log-weight of the image's candidates.
    true_weight : float64 [N]
        Log-weight of the true pair minus ``top``; -inf if the split does not allow it.
    best_weight : float32 [N, F, 2]
        Highest log-weight of each fold and group minus ``top``; -inf if no such pair exists.
    best_score : float32 [N, F, 2]
        The score of the same pair.
    total : float32 [N, G, F, 2]
        log of the sum of exp(w / T) over the pairs of a fold and group, w minus ``top``.
    attribute, object : float32 [N, G, 2]
        The same over the pairs with the true attribute, and with the true object.
    fold : int64 [N]
        Fold of the image's true object.
    """

    index: np.ndarray
    temperatures: np.ndarray
    top: np.ndarray
    true_weight: np.ndarray
    best_weight: np.ndarray
    best_score: np.ndarray
    total: np.ndarray
    attribute: np.ndarray
    object: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @staticmethod
    def concatenate(parts: Sequence[Sums]) -> Sums:
        """Join the shares of several workers, ordered by image index; ValueError if they do not fit together."""
        if not parts or any(not np.array_equal(part.temperatures, parts[0].temperatures) for part in parts):
            raise ValueError("the parts of an evaluation differ in their temperatures; reduce all with the same settings")
        order = np.argsort(np.concatenate([part.index for part in parts]), kind="stable")
        names = [field.name for field in fields(Sums) if field.name != "temperatures"]
        joined = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in names}
        return Sums(temperatures=parts[0].temperatures, **joined)

    def arranged(self, order: np.ndarray) -> Sums:
        """The images in another order (indices of the arrays)."""
        arrays = {f.name: getattr(self, f.name)[order] for f in fields(Sums) if f.name != "temperatures"}
        return Sums(temperatures=self.temperatures, **{**arrays, "index": np.arange(len(order))})

    def place(self, temperature: float) -> int:
        """Place of a temperature in the grid; DataError if no sums were taken at it."""
        found = np.flatnonzero(np.isclose(self.temperatures, temperature, rtol=1e-9, atol=0))
        if not found.size:
            raise DataError(
                f"no sums are stored for the temperature {temperature:g}",
                "the run was evaluated before this operating point was chosen",
                "evaluate the run again",
            )
        return int(found[0])

    def has(self, temperatures: Sequence[float]) -> bool:
        """Return whether sums were taken at all of these temperatures."""
        return all(np.isclose(self.temperatures, t, rtol=1e-9, atol=0).any() for t in temperatures)

    def all_pairs(self, place: int) -> np.ndarray:
        """Log-sums over all candidates, by group, float64 [N, 2]."""
        return np.logaddexp.reduce(self.total[:, place].astype(np.float64), axis=1)

    def numerator(self, kind: str, place: int, true_seen: np.ndarray) -> np.ndarray:
        """Log-sums over what makes a kind right, by group, float64 [N, 2]: the true pair, or all pairs with its attribute or object."""
        if kind != "composition":
            return getattr(self, kind)[:, place].astype(np.float64)
        own = self.true_weight / self.temperatures[place]
        return np.stack([np.where(true_seen, own, -np.inf), np.where(true_seen, -np.inf, own)], axis=1)


class SumsAccumulator:
    """Reduces tiles of log-weights to :class:`Sums`; equal up to rounding for any tiling, and equal to the digit for the same one.

    Parameters
    ----------
    candidates : Candidates
    labels : int [N, 2], or a tuple (attributes [N], objects [N])
    temperatures : float [G]
    index : int [N], optional
        Place of each image in the split; default 0 .. N-1.
    folds : int [O], optional
        Fold of each object; default :func:`deal_folds`.
    """

    def __init__(self, candidates: Candidates, labels, temperatures=GRID, index=None, folds: np.ndarray | None = None):
        self.candidates, self.labels_N2 = candidates, check_labels(labels, candidates, "labels")
        N = len(self.labels_N2)
        self.index_N = np.arange(N) if index is None else np.asarray(index, np.int64)
        self.fold_O = deal_folds(candidates.space.num_objects) if folds is None else folds
        self.true_N = locate_labels(self.labels_N2, candidates, "labels")
        self.temperatures = np.sort(np.unique(np.asarray(temperatures, np.float64)))[::-1]
        G, F = len(self.temperatures), int(self.fold_O.max()) + 1
        self._top, self._true = np.full(N, -np.inf), np.full(N, -np.inf)
        self._weight, self._score = np.full((N, F, 2), -np.inf), np.full((N, F, 2), -np.inf, np.float32)
        self._total, self._attribute, self._object = np.zeros((N, G, F, 2)), np.zeros((N, G, 2)), np.zeros((N, G, 2))

    def update(self, rows, pairs, log_weights_Bp, scores_Bp) -> None:
        """Take in a tile: log-weights and scores of some images (indices of the labels) for some columns of the candidates."""
        rows_B, pairs_p = np.arange(len(self.index_N))[rows], np.asarray(pairs)
        keep = self.candidates.allowed[pairs_p]
        pairs_p = pairs_p[keep]
        if not pairs_p.size:
            return
        w_Bp, s_Bp = np.asarray(log_weights_Bp, np.float64)[:, keep], np.asarray(scores_Bp, np.float32)[:, keep]
        unseen_p = (~self.candidates.seen[pairs_p]).astype(np.int64)
        attr_p, obj_p = self.candidates.pairs[pairs_p].T
        F = self._total.shape[2]
        code_p = self.fold_O[obj_p] * 2 + unseen_p
        self._keep_best(rows_B, w_Bp, s_Bp, code_p, pairs_p)
        top_B = np.maximum(self._top[rows_B], w_Bp.max(axis=1))
        top_B = np.where(np.isfinite(top_B), top_B, 0.0)  # nothing has any weight yet
        before_B = np.where(np.isfinite(self._top[rows_B]), self._top[rows_B] - top_B, 0.0)
        self._top[rows_B] = top_B
        group_p2, code_pC = np.eye(2)[unseen_p], np.eye(2 * F)[code_p]
        same = [self.labels_N2[rows_B, c, None] == side for c, side in ((0, attr_p), (1, obj_p))]
        for g, weights_Bp in enumerate(powers(w_Bp - top_B[:, None], self.temperatures)):
            shrink_B = np.exp(before_B / self.temperatures[g])
            parts: list[tuple[np.ndarray, np.ndarray]] = [(self._total, (weights_Bp @ code_pC).reshape(-1, F, 2))]
            parts += [
                (kept, (weights_Bp * own) @ group_p2) for kept, own in zip((self._attribute, self._object), same, strict=True)
            ]
            for kept, new in parts:
                old = kept[rows_B, g]
                kept[rows_B, g] = old * shrink_B.reshape(-1, *[1] * (old.ndim - 1)) + new

    def _keep_best(self, rows_B, w_Bp, s_Bp, code_p, pairs_p) -> None:
        for code in np.unique(code_p):
            own = code_p == code
            place = s_Bp[:, own].argmax(axis=1)[:, None]
            score, weight = (np.take_along_axis(x[:, own], place, axis=1)[:, 0] for x in (s_Bp, w_Bp))
            fold, group = divmod(int(code), 2)
            better = score > self._score[rows_B, fold, group]
            self._score[rows_B[better], fold, group] = score[better]
            self._weight[rows_B[better], fold, group] = weight[better]
        column = {int(pair): i for i, pair in enumerate(pairs_p)}
        place_B = np.array([column.get(int(pair), -1) for pair in self.true_N[rows_B]])
        here = np.flatnonzero(place_B >= 0)
        self._true[rows_B[here]] = w_Bp[here, place_B[here]]

    def result(self) -> Sums:
        """The log-sums of all images."""
        with np.errstate(divide="ignore"):
            logs = [np.log(x).astype(np.float32) for x in (self._total, self._attribute, self._object)]
        return Sums(
            index=self.index_N,
            temperatures=self.temperatures,
            top=self._top,
            true_weight=self._true - self._top,
            best_weight=(self._weight - self._top[:, None, None]).astype(np.float32),
            best_score=self._score,
            total=logs[0],
            attribute=logs[1],
            object=logs[2],
            fold=self.fold_O[self.labels_N2[:, 1]],
        )


def powers(w_Bp: np.ndarray, temperatures: np.ndarray) -> Iterator[np.ndarray]:
    """exp(w / T) for temperatures in descending order: a half of one before is its square, which costs less than an exponential."""
    kept: dict[float, np.ndarray] = {}
    for t in temperatures.tolist():
        double = kept.pop(2 * t, None)
        with np.errstate(under="ignore"):
            kept[t] = np.exp(w_Bp / t) if double is None else double * double
        yield kept[t]


# -- marginal probabilities ----------------------------------------------------------------------------------------------
class Marginals:
    """Per image, of its attribute and object: log-probability of the true one, sum of squares, highest probability, whether it is right.

    Parameters
    ----------
    candidates : Candidates
    labels : int [N, 2]
    scalings : sequence of (Scaling, Scaling)
        Temperatures of attributes and objects, one such pair per operating point.
    index : int [N], optional
    """

    def __init__(self, candidates: Candidates, labels, scalings: Sequence[tuple[Scaling, Scaling]], index=None):
        self.candidates, self.labels_N2 = candidates, check_labels(labels, candidates, "labels")
        self.index_N = np.arange(len(self.labels_N2)) if index is None else np.asarray(index, np.int64)
        self.scalings = scalings
        self._values = np.zeros((len(self.index_N), len(scalings), 2, 4))
        self._tiles: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, rows, pairs, log_weights_Bp, scores_Bp) -> None:
        """Take in a tile; the last tile of some images must come before the first of others."""
        del scores_Bp
        pairs_p = np.asarray(pairs)
        keep = self.candidates.allowed[pairs_p]
        self._tiles.append((pairs_p[keep], np.asarray(log_weights_Bp, np.float64)[:, keep]))
        if sum(len(own) for own, _ in self._tiles) == len(self.candidates.order):
            self._finish(np.arange(len(self.index_N))[rows])

    def _finish(self, rows_B: np.ndarray) -> None:
        pairs_p = np.concatenate([own for own, _ in self._tiles])
        w_Bp = np.concatenate([weights for _, weights in self._tiles], axis=1)
        self._tiles = []
        top_B1 = w_Bp.max(axis=1, keepdims=True)
        w_Bp -= np.where(np.isfinite(top_B1), top_B1, 0.0)
        unseen_p = ~self.candidates.seen[pairs_p]
        sizes = (self.candidates.space.num_attributes, self.candidates.space.num_objects)
        for i, pair in enumerate(self.scalings):
            for c, (scaling, size) in enumerate(zip(pair, sizes, strict=True)):
                weights_Bp = np.exp(w_Bp / scaling.temperature + scaling.bias * unseen_p)
                sums_BX = weights_Bp @ np.eye(size)[self.candidates.pairs[pairs_p, c]]
                prob_BX = sums_BX / sums_BX.sum(axis=1, keepdims=True)
                true_B, best_B = self.labels_N2[rows_B, c], prob_BX.argmax(axis=1)
                some = np.arange(len(rows_B))
                with np.errstate(divide="ignore"):
                    log_true = np.log(prob_BX[some, true_B])
                columns = (log_true, (prob_BX**2).sum(axis=1), prob_BX[some, best_B], best_B == true_B)
                self._values[rows_B, i, c] = np.stack(columns, axis=1)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Index [N] and values [N, points, 2 (attribute, object), 4] of all images."""
        return self.index_N, self._values


def join_marginals(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Values of all workers' images in the order of their index."""
    index = np.concatenate([part[0] for part in parts])
    return np.concatenate([part[1] for part in parts])[np.argsort(index, kind="stable")]
