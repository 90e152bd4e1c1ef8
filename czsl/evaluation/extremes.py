"""The few numbers per image from which every point of the seen/unseen curve follows.

A calibration bias on the unseen pairs reorders pairs neither inside the seen nor inside the unseen group. So the k best of each
group and the true pair's score are enough; scores pass by in tiles of pairs and no array of size N x P ever exists.

Dimension letters: N images, B images of a tile, p pairs of a tile, P pairs, T feasibility thresholds, k of top-k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from czsl.errors import DataError
from czsl.evaluation.candidates import Candidates
from czsl.evaluation.labels import check_labels, locate_labels

RIGHT_END = np.float32(1000)  # the reference evaluator's "maximal" bias; float32 rounds scores to 6e-5 there
BLOCK = 1 << 19  # scores looked at together: 1 MiB of float32 stays in cache for the passes over it


@dataclass(frozen=True)
class Extremes:
    """Best scores of each image; rows in the order of ``index``.

    Where a group has fewer than k pairs, the rest is -inf with pair -1. Equal scores: the lowest pair index comes first.

    Attributes
    ----------
    index : int64 [N]
        Place of the image in its split.
    labels : int64 [N, 2]
        True attribute and object.
    true_pair : int64 [N]
        Column of the true pair.
    true_seen : bool [N]
        The true pair occurs in training.
    true_score : float32 [N]
        Score of the true pair; -inf where the split does not allow it.
    seen_score, seen_pair : float32, int32 [N, k]
        The k best seen pairs.
    unseen_score, unseen_pair : float32, int32 [N, T + 1, k]
        The k best allowed unseen pairs: all of them at [:, 0], those feasible at threshold i at [:, i + 1].
    shifted_pair : int32 [N, T + 1, k]
        The unseen pairs in the order of float32(score + 1000): the order in which the reference evaluator sees them at its right
        end (their values there are float32(unseen_score + 1000)).
    """

    index: np.ndarray
    labels: np.ndarray
    true_pair: np.ndarray
    true_seen: np.ndarray
    true_score: np.ndarray
    seen_score: np.ndarray
    seen_pair: np.ndarray
    unseen_score: np.ndarray
    unseen_pair: np.ndarray
    shifted_pair: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def k(self) -> int:
        """The k of top-k."""
        return self.seen_score.shape[1]

    @staticmethod
    def concatenate(parts: Sequence[Extremes]) -> Extremes:
        """Join the shares of several workers, ordered by image index.

        Raises
        ------
        DataError
            The list of parts is empty.
        ValueError
            The parts differ in k or thresholds, or an image is in two of them.
        """
        if not parts:
            raise DataError(
                "no image was evaluated", "no worker returned scores", "check that the split has images: czsl data verify"
            )
        if len({part.unseen_score.shape[1:] for part in parts}) > 1:
            raise ValueError("the parts of an evaluation differ in top-k or thresholds; reduce all with the same settings")
        index = np.concatenate([part.index for part in parts])
        order = np.argsort(index, kind="stable")
        twice = np.flatnonzero(np.diff(index[order]) == 0)
        if twice.size:
            raise ValueError(f"image {index[order][twice[0]]} was evaluated twice; give each image to one worker")
        names = [field.name for field in fields(Extremes)]
        return Extremes(**{name: np.concatenate([getattr(p, name) for p in parts])[order] for name in names})


class ExtremesAccumulator:
    """Reduces tiles of scores to :class:`Extremes`; the result does not depend on the tiling, to the last bit.

    Parameters
    ----------
    candidates : Candidates
    labels : int [N, 2], or a tuple (attributes [N], objects [N])
        True attribute and object of this accumulator's images.
    k : int
        The k of top-k.
    index : int [N], optional
        Place of each image in the whole split; default 0 .. N-1.
    source : str
        Name of the scores in errors.

    Raises
    ------
    DataError
        No images; a label outside the space; a true pair that is not a candidate.
    """

    def __init__(self, candidates: Candidates, labels, k: int = 1, index=None, source: str = "scores"):
        if k < 1:
            raise ValueError(f"k={k} for top-k accuracy; the minimum is 1")
        self.candidates, self.k, self.source = candidates, k, source
        self.labels_N2 = check_labels(labels, candidates, source)
        count, levels = len(self.labels_N2), len(candidates.thresholds) + 1
        self.index_N = np.arange(count) if index is None else np.asarray(index, np.int64)
        if self.index_N.shape != (count,):
            raise ValueError(f"{self.index_N.size} image indices for {count} labels; give one per image")
        self.true_pair_N = locate_labels(self.labels_N2, candidates, source)
        self.true_score_N = np.full(count, -np.inf, np.float32)
        self._scored_N = np.zeros(count, np.int64)
        self._place_P = np.full(len(candidates.pairs), -1)
        self._seen, self._unseen, self._shifted = (_Best(count, n, k) for n in (1, levels, levels))

    def update(self, rows, pairs, scores_Bp) -> None:
        """Take in the scores of some images for some pairs.

        Parameters
        ----------
        rows : int [B] or slice
            The images, as indices of this accumulator's labels.
        pairs : int [p], or int
            The pairs, as columns of the candidates; one integer means that column and those after it. Fastest in the order of
            ``candidates.tiles()``. Columns that the split does not allow are ignored.
        scores_Bp : float [B, p]
            Rounded to float32, as the field's evaluators do.

        Raises
        ------
        DataError
            NaN or infinity, named by image and pair.
        """
        scores_Bp = np.asarray(scores_Bp)
        rows_B = np.arange(len(self.index_N))[rows]
        if np.ndim(pairs) == 0:
            pairs = np.arange(pairs, pairs + scores_Bp.shape[-1])
        pairs_p = np.asarray(pairs)
        if scores_Bp.shape != (len(rows_B), len(pairs_p)):
            raise ValueError(
                f"{self.source}: a tile of shape {list(scores_Bp.shape)} for {len(rows_B)} images and {len(pairs_p)} pairs"
            )
        order, group_p = self._arrange(pairs_p)
        sorted_pairs = pairs_p if order is None else pairs_p[order]
        begins = np.flatnonzero(np.diff(group_p, prepend=-2))
        ends = np.append(begins[1:], len(group_p))[: len(begins)]
        step = max(BLOCK // max(len(pairs_p), 1), 1)
        for start in range(0, len(rows_B), step):
            block_rows = rows_B[start : start + step]
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is named below
                block = np.asarray(scores_Bp[start : start + step], np.float32)
            self._check_finite(block, block_rows, pairs_p)
            self._take_true(block, block_rows, pairs_p)
            for begin, end in zip(begins, ends, strict=True):
                group = block[:, begin:end] if order is None else np.take(block, order[begin:end], axis=1)
                self._take_group(group, block_rows, sorted_pairs[begin:end], group_p[begin])
        self._scored_N[rows_B] += len(group_p)

    def result(self) -> Extremes:
        """The extremes of all images.

        Raises
        ------
        ValueError
            An image did not get the scores of all its candidates.
        """
        needed = len(self.candidates.order)
        short = np.flatnonzero(self._scored_N != needed)
        if short.size:
            raise ValueError(
                f"{self.source}: image {self.index_N[short[0]]} got {self._scored_N[short[0]]} scores of {needed} "
                f"({short.size} images lack scores or got some twice); feed every tile once"
            )
        seen_N = self.candidates.seen[self.true_pair_N]
        return Extremes(
            self.index_N, self.labels_N2, self.true_pair_N, seen_N, self.true_score_N,
            self._seen.value[:, 0], self._seen.pair[:, 0], self._unseen.value, self._unseen.pair, self._shifted.pair,
        )  # fmt: skip

    def _arrange(self, pairs_p):
        """Order of a tile's columns by group, then pair, without those not allowed (None: as they are), and their groups."""
        group_p = self.candidates.group[pairs_p]
        step = np.diff(group_p)
        if (group_p >= 0).all() and ((step < 0) | ((step == 0) & (np.diff(pairs_p) > 0))).all():
            return None, group_p
        order = np.lexsort((pairs_p, -group_p))[: np.count_nonzero(group_p >= 0)]
        return order, group_p[order]

    def _take_group(self, block, rows, pairs, group) -> None:
        top = block.max(axis=1)
        if group > len(self.candidates.thresholds):
            self._seen.offer(rows, 0, block, pairs, top)
        else:
            self._unseen.offer(rows, group, block, pairs, top)
            self._shifted.offer(rows, group, block, pairs, top + RIGHT_END, RIGHT_END)

    def _take_true(self, block, rows, pairs) -> None:
        self._place_P[pairs] = np.arange(len(pairs))
        place = self._place_P[self.true_pair_N[rows]]
        self._place_P[pairs] = -1
        here = np.flatnonzero((place >= 0) & self.candidates.allowed[self.true_pair_N[rows]])
        self.true_score_N[rows[here]] = block[here, place[here]]

    def _check_finite(self, block, rows, pairs) -> None:
        with np.errstate(all="ignore"):
            if np.isfinite(np.vdot(block, block)):  # the quickest pass that no NaN or infinity survives
                return
        bad = np.argwhere(~np.isfinite(block))
        if not len(bad):
            return
        row, column = bad[0]
        pair = pairs[column]
        raise DataError(
            f"{self.source}: the score of image {self.index_N[rows[row]]} (row) and pair {pair} (column, "
            f"{self.candidates.space.pair_name(self.candidates.pairs[pair])}) is {block[row, column]}",
            "a score that is not a finite float32 number cannot be ranked",
            "look for a division by zero or an overflow where the scores are made",
        )


class _Best:
    """Running k best per image and level; a pair of level l competes at the levels 0 .. l."""

    def __init__(self, count: int, levels: int, k: int):
        self.value = np.full((count, levels, k), -np.inf, np.float32)
        self.pair = np.full((count, levels, k), -1, np.int32)

    def offer(self, rows, level, scores_Bp, pairs_p, top_B, shift=None) -> None:
        """Let one group of a tile compete; its pairs ascend, so the first of equal scores has the lowest pair index."""
        hopeful = np.flatnonzero(top_B >= self.value[rows, level, -1])
        if not hopeful.size:
            return
        k = self.value.shape[2]
        all_rows = len(hopeful) == len(rows)
        chosen = scores_Bp if all_rows else scores_Bp[hopeful]
        if shift is not None:
            chosen = chosen + shift
        elif all_rows and k > 1:
            chosen = chosen.copy()
        value, pair = _largest(chosen, pairs_p, k)
        rows = rows[hopeful]
        last, last_pair = self.value[rows, : level + 1, -1], self.pair[rows, : level + 1, -1]
        ahead = (value[:, :1] > last) | ((value[:, :1] == last) & (pair[:, :1] < last_pair))
        which, at = np.nonzero(ahead)
        rows, value, pair = rows[which], value[which], pair[which]
        if k > 1:
            values = np.concatenate([self.value[rows, at], value], axis=1)
            pairs = np.concatenate([self.pair[rows, at], pair], axis=1)
            value, pair = best_of(values, pairs, k)
        self.value[rows, at], self.pair[rows, at] = value, pair


def best_of(values: np.ndarray, pairs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row by score descending, then pair index ascending: values and pairs [n, m] -> [n, k]."""
    rows, order = np.arange(len(values))[:, None], np.lexsort((pairs, -values), axis=1)[:, :k]
    return values[rows, order], pairs[rows, order]


def _largest(scores_Rp, pairs_p, k):
    """The k largest of each row, the first of equal ones first; overwrites its argument."""
    count, rows = len(scores_Rp), np.arange(len(scores_Rp))
    value, pair = np.full((count, k), -np.inf, np.float32), np.full((count, k), -1, np.int32)
    for i in range(min(k, len(pairs_p))):
        place = scores_Rp.argmax(axis=1)
        value[:, i], pair[:, i] = scores_Rp[rows, place], pairs_p[place]
        if i + 1 < k:
            scores_Rp[rows, place] = -np.inf
    return value, pair
