"""Probabilities that mean something: their temperature and bias by likelihood, and how far they can be trusted.

Temperature scaling: Guo et al., "On calibration of modern neural networks" (ICML 2017). Expected calibration error in bins of equal mass:
Nguyen and O'Connor (EMNLP 2015). Risk against coverage: Geifman and El-Yaniv (NeurIPS 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from czsl.evaluation.extremes import Extremes
from czsl.evaluation.operating import KINDS, OperatingPoint, Scaling
from czsl.evaluation.sums import Sums

BINS = 15
COVERAGES = (100, 90, 80, 50)
PRECISIONS = (90, 95)
COARSE_IMAGES = 1000
_GOLDEN = (5**0.5 - 1) / 2


# -- fitting -------------------------------------------------------------------------------------------------------------
def fit_scaling(sums: Sums, true_seen: np.ndarray, kind: str = "composition") -> Scaling:
    """The temperature of the grid and the bias with the best likelihood of the true labels.

    For compositions the likelihood is log-concave in (1 / T, bias), so the best of the grid is found for certain. If no image, or every
    image, shows an unseen pair, the bias has no optimum and stays 0.

    Parameters
    ----------
    sums : Sums
        Sums of the validation split, on a grid of temperatures.
    true_seen : bool [N]
    kind : {"composition", "attribute", "object"}
    """
    known = np.isfinite(sums.true_weight)
    if not known.any():
        return Scaling()
    both = true_seen[known].any() and not true_seen[known].all()
    places = np.argsort(sums.temperatures)
    some = np.flatnonzero(known)[:: max(int(known.sum()) // COARSE_IMAGES, 1)]  # enough to find the neighbourhood

    def best_bias(i: int, rows: np.ndarray, steps: int) -> tuple[float, float]:
        place = int(places[i])
        right, total = (x[rows].T for x in (sums.numerator(kind, place, true_seen), sums.all_pairs(place)))

        def loss(bias: float) -> float:
            with np.errstate(invalid="ignore"):
                log_prob = np.logaddexp(right[0], right[1] + bias) - np.logaddexp(total[0], total[1] + bias)
            return float(-log_prob.mean()) if not np.isnan(log_prob).any() else float("inf")

        if not both:
            return loss(0.0), 0.0
        gap = total[0] - total[1]
        gap = gap[np.isfinite(gap)]
        grid = np.linspace(gap.min() - 1, gap.max() + 1, 17) if gap.size else np.linspace(-1, 1, 17)
        found = [loss(bias) for bias in grid]
        at = int(np.argmin(found))
        if not steps:
            return found[at], float(grid[at])
        return _golden(loss, float(grid[max(at - 1, 0)]), float(grid[min(at + 1, 16)]), steps)

    start = min(range(0, len(places), 4), key=lambda i: best_bias(i, some, 0)[0])
    near = range(max(start - 4, 0), min(start + 5, len(places)))
    best = min(near, key=lambda i: best_bias(i, some, 12)[0])
    rows = np.flatnonzero(known)
    final = range(max(best - 1, 0), min(best + 2, len(places)))
    _, bias, i = min((*best_bias(i, rows, 32), i) for i in final)
    return Scaling(float(sums.temperatures[places[i]]), bias)


def _golden(loss, low: float, high: float, steps: int = 32) -> tuple[float, float]:
    """Loss and place of a minimum between two places, by golden-section search."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(steps):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return (at_left, left) if at_left <= at_right else (at_right, right)


# -- what an answer is worth ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Answers:
    """The named composition of each image: its probability ``confidence`` [N] and whether it is ``right`` [N]."""

    confidence: np.ndarray
    right: np.ndarray


def answers(e: Extremes, sums: Sums, point: OperatingPoint) -> Answers:
    """Predictions at an operating point: the pair with the best score plus bias, and its probability."""
    group, pair = named_group(e, point.bias)
    rows = np.arange(len(e))
    weight = sums.best_weight.astype(np.float64).max(axis=1)[rows, group]
    scaling = point.composition
    log_prob = weight / scaling.temperature + scaling.bias * group - log_total(sums, scaling)
    return Answers(np.exp(np.minimum(log_prob, 0.0)), pair == e.true_pair)


def named_group(e: Extremes, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """Group (0 seen, 1 unseen) and pair of the best of score plus bias, int64 [N] each; equal scores: the lower pair."""
    seen, unseen = e.seen_score[:, 0].astype(np.float64), e.unseen_score[:, 0, 0] + np.float64(bias)
    seen_pair, unseen_pair = e.seen_pair[:, 0], e.unseen_pair[:, 0, 0]
    group = ((unseen > seen) | ((unseen == seen) & (unseen_pair < seen_pair))).astype(np.int64)
    return group, np.where(group == 1, unseen_pair, seen_pair)


def log_total(sums: Sums, scaling: Scaling, temperature: float | None = None, bias: float | None = None) -> np.ndarray:
    """log of what probabilities are divided by, float64 [N]."""
    t = scaling.temperature if temperature is None else temperature
    total = sums.all_pairs(sums.place(t))
    return np.logaddexp(total[:, 0], total[:, 1] + (scaling.bias if bias is None else bias))


def log_likelihood(sums: Sums, true_seen: np.ndarray, scaling: Scaling, kind: str = "composition") -> np.ndarray:
    """Log-probability of each image's true label of a kind, float64 [N]; -inf if the label is not a candidate."""
    right = sums.numerator(kind, sums.place(scaling.temperature), true_seen)
    return np.logaddexp(right[:, 0], right[:, 1] + scaling.bias) - log_total(sums, scaling)


def brier_scores(sums: Sums, true_seen: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Sum over compositions of (probability - truth) squared, float64 [N]: from the sums at T and at T / 2."""
    squares = np.exp(log_total(sums, scaling, scaling.temperature / 2, 2 * scaling.bias) - 2 * log_total(sums, scaling))
    return squares - 2 * np.exp(log_likelihood(sums, true_seen, scaling)) + 1


def temperatures_of(points: Sequence[OperatingPoint]) -> list[float]:
    """The temperatures at which :func:`calibration_numbers` needs sums."""
    found = {t for point in points for s in point.scalings for t in (s.temperature,)}
    return sorted(found | {point.composition.temperature / 2 for point in points})


def reliability(a: Answers, bins: int = BINS) -> list[dict[str, float | int]]:
    """Mean confidence and accuracy in bins of equal mass, from the least to the most confident."""
    order = np.argsort(a.confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if part.size]
    return [
        {"confidence": float(a.confidence[part].mean()), "accuracy": float(a.right[part].mean()), "images": int(part.size)}
        for part in parts
    ]


def expected_calibration_error(a: Answers, bins: int = BINS) -> float:
    """Mean distance of confidence and accuracy over bins of equal mass."""
    rows = reliability(a, bins)
    return sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(a.right)


def risk_numbers(a: Answers) -> dict[str, float]:
    """Accuracy of the most confident images at several coverages, the area under the risk, and coverage at several precisions.

    Images of equal confidence are named together or not at all if a precision is required, as with a threshold.
    """
    order = np.argsort(-a.confidence, kind="stable")
    right = np.cumsum(a.right[order])
    precision = right / np.arange(1, len(order) + 1)
    ends = np.append(np.diff(a.confidence[order]) != 0, True)
    values = {f"acc_at_{c}": float(precision[max(int(np.ceil(c * len(order) / 100)), 1) - 1]) for c in COVERAGES}
    values["aurc"] = float(np.mean(1 - precision))
    for p in PRECISIONS:
        enough = np.flatnonzero(ends & (precision >= p / 100))
        values[f"coverage_at_p{p}"] = float(enough[-1] + 1) / len(order) if enough.size else 0.0
    return values


def confidence_for(a: Answers, precision: float) -> tuple[float, float, float] | None:
    """The smallest threshold of confidence above which names are right often enough, the precision and the coverage; None if none is."""
    order = np.argsort(-a.confidence, kind="stable")
    share = np.cumsum(a.right[order]) / np.arange(1, len(order) + 1)
    ends = np.append(np.diff(a.confidence[order]) != 0, True)
    enough = np.flatnonzero(ends & (share >= precision))
    if not enough.size:
        return None
    last = enough[-1]
    return float(a.confidence[order[last]]), float(share[last]), float(last + 1) / len(order)


def best_precision(a: Answers) -> float:
    """The highest precision that a threshold reaches."""
    order = np.argsort(-a.confidence, kind="stable")
    share = np.cumsum(a.right[order]) / np.arange(1, len(order) + 1)
    return float(share[np.append(np.diff(a.confidence[order]) != 0, True)].max())


def calibration_numbers(
    e: Extremes, sums: Sums, marginals: np.ndarray | None, before: OperatingPoint, after: OperatingPoint
) -> dict:
    """ECE, NLL and Brier score before and after, the reliability curves, and risk against coverage.

    Parameters
    ----------
    e, sums : Extremes, Sums
        Both for the same images in the same order.
    marginals : float [N, 2 (before, after), 2 (attribute, object), 4], optional
        Result of :class:`czsl.evaluation.sums.Marginals`; None for plain classes, which have no attribute.
    before, after : OperatingPoint

    Returns
    -------
    dict
        ``ece, nll, brier`` and the same with ``_before``; with ``attr_`` and ``obj_`` before the name those of marginals; the keys of
        :func:`risk_numbers` and, with ``_before``, its ``aurc``; ``ece_bins``; ``reliability`` with the curves ``before`` and ``after``.
        NLL and Brier score are means over images whose true label is a candidate.
    """
    known = np.isfinite(sums.true_weight)
    values: dict = {"ece_bins": BINS}
    curves = {}
    for place, (suffix, point) in enumerate((("_before", before), ("", after))):
        a = answers(e, sums, point)
        curves[suffix.removeprefix("_") or "after"] = reliability(a)
        values[f"ece{suffix}"] = expected_calibration_error(a)
        values[f"nll{suffix}"] = -_mean(log_likelihood(sums, e.true_seen, point.composition)[known])
        values[f"brier{suffix}"] = _mean(brier_scores(sums, e.true_seen, point.composition)[known])
        if suffix:
            values["aurc_before"] = risk_numbers(a)["aurc"]
        else:
            values |= risk_numbers(a)
        for c, name in enumerate(("attr", "obj") if marginals is not None else ()):
            assert marginals is not None
            log_true, squares, confidence, right = marginals[:, place, c].T
            values[f"{name}_ece{suffix}"] = expected_calibration_error(Answers(confidence, right))
            values[f"{name}_nll{suffix}"] = -_mean(log_true[known])
            values[f"{name}_brier{suffix}"] = _mean((squares - 2 * np.exp(log_true) + 1)[known])
    return {**values, "reliability": curves}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def fit_point(e: Extremes, sums: Sums, point: OperatingPoint) -> OperatingPoint:
    """The point with the scales of its probabilities, chosen on the same images."""
    composition, attribute, obj = (fit_scaling(sums, e.true_seen, kind) for kind in KINDS)
    return replace(point, composition=composition, attribute=attribute, object=obj)
