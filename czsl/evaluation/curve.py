"""The seen/unseen curve: exact, by one sort, and as the field's programs sample it with 20 biases.

For one image exactly one runner-up decides. A seen image is right as long as its true score beats the biased score of the
(k - r)-th best unseen pair, where r seen pairs rank before the true one; an unseen image the other way round. So each image
changes at most once along the bias axis, and the curve is a cumulative sum over the sorted changes.

Functions here take :class:`Extremes` and look at its level 0 (see ``thresholds.at_threshold`` for the others). What is
undefined (no unseen image, no seen image) is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from czsl.evaluation.extremes import RIGHT_END, Extremes, best_of

MARGIN = np.float32(1e-4)  # by which the reference evaluator puts each bias below its flip
NUM_BINS = 20


@dataclass(frozen=True)
class _Duels:
    """Return what decides each image: ``able`` [N] the true pair is among the k best of its group; the runner-up's score and pair."""

    able: np.ndarray
    runner_up_score: np.ndarray
    runner_up_pair: np.ndarray


def _duels(e: Extremes, unseen_pair: np.ndarray) -> _Duels:
    rows, unseen_score = np.arange(len(e)), e.unseen_score[:, 0]
    seen_N1 = e.true_seen[:, None]
    match = np.where(seen_N1, e.seen_pair, unseen_pair) == e.true_pair[:, None]
    place = e.k - 1 - match.argmax(axis=1)
    score = np.where(seen_N1, unseen_score, e.seen_score)[rows, place]
    pair = np.where(seen_N1, unseen_pair, e.seen_pair)[rows, place]
    return _Duels(match.any(axis=1), score, pair)


class Curve:
    """The exact curve over every bias from minus to plus infinity.

    All images that flip at the same bias cross it together: equal flips are joined by a straight line, and no result depends on
    whether a seen pair stands before the unseen one that it ties with. The left end predicts seen pairs only, the right end
    unseen pairs only.

    Parameters
    ----------
    extremes : Extremes
    """

    def __init__(self, extremes: Extremes):
        duels = _duels(extremes, extremes.unseen_pair[:, 0])
        self.is_seen = extremes.true_seen
        own = extremes.true_score.astype(np.float64)  # in float64 the difference of two like-sized float32 is exact
        with np.errstate(invalid="ignore"):  # -inf - -inf, where neither the true pair nor a runner-up competes
            gap = np.where(self.is_seen, own - duels.runner_up_score, duels.runner_up_score - own)
        flips = duels.able & np.isfinite(gap)
        # Without a runner-up, an image that can be right is right at every bias.
        self.always = duels.able & ~flips
        self.flips, step = np.unique(gap[flips], return_inverse=True)
        self._flipping = np.flatnonzero(flips)
        self._lost = self.is_seen[self._flipping]
        self._step = step

    def points(self, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Seen and unseen accuracy between consecutive flips, from the left end to the right end, float64 [M + 1] each.

        Parameters
        ----------
        weight : float [N], optional
            Weight of each image (bootstrap counts, macro averages); default 1.
        """
        weight_N = np.ones(len(self.is_seen)) if weight is None else weight
        weight_m, count = weight_N[self._flipping], len(self.flips)
        drop = np.bincount(self._step[self._lost], weight_m[self._lost], minlength=count)
        rise = np.bincount(self._step[~self._lost], weight_m[~self._lost], minlength=count)
        seen = np.append(np.cumsum(drop[::-1])[::-1], 0.0) + weight_N[self.always & self.is_seen].sum()
        unseen = np.append(0.0, np.cumsum(rise)) + weight_N[self.always & ~self.is_seen].sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            return seen / weight_N[self.is_seen].sum(), unseen / weight_N[~self.is_seen].sum()

    def numbers(self, weight: np.ndarray | None = None) -> dict[str, float]:
        """``auc``, ``hm``, ``seen``, ``unseen`` and ``bias``.

        ``bias`` is the middle of the first interval of biases that reaches ``hm``; 0 if ``hm`` is 0.
        """
        seen, unseen = self.points(weight)
        hm = harmonic_mean(seen, unseen)
        best = int(np.argmax(hm))
        # The first point may lie right of 0 (images right at every bias); the curve is level up to there.
        auc = np.trapezoid(seen, unseen) + seen[0] * unseen[0]
        bias = self.middle(best) if hm[best] > 0 else hm[best]
        return {"auc": auc, "hm": hm[best], "seen": seen[0], "unseen": unseen[-1], "bias": bias}

    def right_at_best(self) -> np.ndarray:
        """Return which images are right in the first interval of biases that reaches ``hm``, bool [N]."""
        best = int(np.argmax(harmonic_mean(*self.points())))
        right = self.always.copy()
        right[self._flipping] = np.where(self._lost, self._step >= best, self._step < best)
        return right

    def middle(self, interval: int) -> float:
        """The bias in the middle of an interval between flips, counted from the left end as in :meth:`points`."""
        if not len(self.flips):
            return 0.0
        low = self.flips[interval - 1] if interval else self.flips[0] - 2
        high = self.flips[interval] if interval < len(self.flips) else self.flips[-1] + 2
        return float(low + high) / 2


def reference_curve(e: Extremes) -> dict[str, float]:
    """The field's numbers: 20 to 39 sampled biases and the right end at +1000, all in float32.

    Equal to the evaluator that CSP, Troika, MSCI and ClusPro share, up to unseen pairs that float32 makes equal only after an
    inner bias was added. Biases are taken from unseen images that are right at +1000: highest seen score minus true score
    minus 1e-4, sorted, every ``max(n // 20, 1)``-th. If no such image exists, ``seen_ref20`` is the value at +1000.
    """
    shifted = _duels(e, e.shifted_pair[:, 0])
    right = _right_at(e, shifted, RIGHT_END)
    base = right & ~e.true_seen
    margins = np.sort((e.seen_score[base, -1] - e.true_score[base]) - MARGIN)
    margins = margins[np.isfinite(margins)]
    biases = margins[:: max(len(margins) // NUM_BINS, 1)]
    plain = _duels(e, e.unseen_pair[:, 0])
    ends = [_right_at(e, plain, bias) for bias in biases] + [right]
    with np.errstate(invalid="ignore"):
        seen = np.array([_mean32(hit, e.true_seen) for hit in ends])
        unseen = np.array([_mean32(hit, ~e.true_seen) for hit in ends])
    hm = harmonic_mean(seen, unseen)
    best = int(np.argmax(hm))
    values = {
        "auc_ref20": np.trapezoid(seen, unseen),
        "hm_ref20": hm[best],
        "bias_ref20": float(np.append(biases, RIGHT_END)[best]),
        "hm_seen_ref20": seen[best],
        "hm_unseen_ref20": unseen[best],
    }
    if not np.isfinite(hm[best]):
        values = dict.fromkeys(values, np.nan)
    return {**values, "seen_ref20": seen.max(), "unseen_ref20": unseen.max()}


def right_at(e: Extremes, bias: float) -> np.ndarray:
    """Return which images are right with a bias on the unseen pairs, in float64; of equal scores the lower pair wins. bool [N]."""
    return _right_at(e, _duels(e, e.unseen_pair[:, 0]), np.float64(bias))


def right_among_own(e: Extremes) -> np.ndarray:
    """Return which images are right if only the pairs of their own group (seen or unseen) compete, bool [N]."""
    return _duels(e, e.unseen_pair[:, 0]).able


def _right_at(e: Extremes, duels: _Duels, bias: np.floating) -> np.ndarray:
    """Return which images are right with a bias, in the precision of the bias (at least float32), bool [N]."""
    own = np.where(e.true_seen, e.true_score, e.true_score + bias)
    runner_up = np.where(e.true_seen, duels.runner_up_score + bias, duels.runner_up_score)
    return duels.able & ((own > runner_up) | ((own == runner_up) & (e.true_pair < duels.runner_up_pair)))


def _mean32(hit: np.ndarray, among: np.ndarray) -> float:
    """A mean as float32 has it, so that equal harmonic means tie as in the reference."""
    return float(np.float32(np.count_nonzero(hit & among)) / np.float32(np.count_nonzero(among)))


def harmonic_mean(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Harmonic mean of non-negative values; 0 if one of them is 0."""
    total = first + second
    return 2 * first * second / np.where(total == 0, 1, total)


def predictions(e: Extremes) -> np.ndarray:
    """The k best pairs without a bias, best first, -1 if there are fewer. int [N, k]."""
    scores = np.concatenate([e.seen_score, e.unseen_score[:, 0]], axis=1)
    pairs = np.concatenate([e.seen_pair, e.unseen_pair[:, 0]], axis=1)
    return best_of(scores, pairs, e.k)[1]


def primitive_hits(e: Extremes, pairs: np.ndarray) -> np.ndarray:
    """Return whether attribute and object of the true pair are among those of the k predicted pairs, bool [N, 2].

    Parameters
    ----------
    e : Extremes
    pairs : int [P, 2]
        The candidates' pairs.
    """
    predicted = predictions(e)
    return ((pairs[predicted] == e.labels[:, None, :]) & (predicted >= 0)[:, :, None]).any(axis=1)
