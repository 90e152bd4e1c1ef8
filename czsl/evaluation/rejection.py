"""None of these: images that show no candidate at all, measured by taking objects out of the candidate list.

The protocol: the objects are dealt into four folds by seed 0. One fold after the other leaves the candidate list: all compositions of its
objects. Images of its objects then show no candidate, all others do, and a detector has to tell them apart by what the remaining
candidates score. Numbers are means over the folds. Scores stay those of the whole list: for methods with branches the probabilities of
primitives are among all of them. Energy: Liu et al. (NeurIPS 2020); the largest probability: Hendrycks and Gimpel (ICLR 2017).
"""

from __future__ import annotations

import numpy as np

from czsl.evaluation.operating import OperatingPoint
from czsl.evaluation.sums import FOLD_SEED, Sums

DETECTORS = ("probability", "score", "energy")


def detector_values(sums: Sums, point: OperatingPoint, left_out: int | None = None) -> dict[str, np.ndarray]:
    """For each detector a value per image that is high if a candidate is shown, float64 [N].

    ``probability``: the largest one; ``score``: the largest score with the bias; ``energy``: log of the sum of exp(log_weight / T + bias).

    Parameters
    ----------
    sums : Sums
    point : OperatingPoint
    left_out : int, optional
        A fold whose objects are not candidates; default: all objects are.
    """
    kept = [f for f in range(sums.best_weight.shape[1]) if f != left_out]
    scaling = point.composition
    group = np.arange(2)
    total = np.logaddexp.reduce(sums.total[:, sums.place(scaling.temperature)][:, kept].astype(np.float64), axis=1)
    log_total = np.logaddexp.reduce(total + scaling.bias * group, axis=1)
    best = (sums.best_weight[:, kept].astype(np.float64).max(axis=1) / scaling.temperature + scaling.bias * group).max(axis=1)
    score = (sums.best_score[:, kept].astype(np.float64).max(axis=1) + point.bias * group).max(axis=1)
    with np.errstate(invalid="ignore"):
        probability = np.exp(best - log_total)
    return {"probability": probability, "score": score, "energy": log_total + sums.top / scaling.temperature}


def rejection_numbers(sums: Sums, point: OperatingPoint) -> dict | None:
    """AUROC and the false-positive rate at 95 % of each detector, means over folds; None if there are fewer than two objects.

    Returns
    -------
    dict
        ``folds``, ``seed``, and for each detector ``auroc`` and ``fpr95``: the share of images without a candidate that pass where 95 % of
        those with one pass.
    """
    known = np.isfinite(sums.true_weight)
    folds = sums.best_weight.shape[1]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in DETECTORS}
    for fold in range(folds if folds > 1 else 0):
        inside, outside = known & (sums.fold != fold), known & (sums.fold == fold)
        if not inside.any() or not outside.any():
            continue
        for name, values in detector_values(sums, point, fold).items():
            found[name].append((auroc(values[inside], values[outside]), false_positive_rate(values[inside], values[outside])))
    if not found[DETECTORS[0]]:
        return None
    rows = {name: dict(zip(("auroc", "fpr95"), np.mean(pairs, axis=0).tolist(), strict=True)) for name, pairs in found.items()}
    return {"folds": folds, "seed": FOLD_SEED, **rows}


def best_detector(numbers: dict | None) -> str | None:
    """The detector with the best AUROC, the first of equal ones; None if it is no better than chance (0.5)."""
    if numbers is None:
        return None
    name = max(DETECTORS, key=lambda d: numbers[d]["auroc"])
    return name if numbers[name]["auroc"] > 0.5 else None


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Probability that an image with a candidate has the higher value, ties counting half."""
    values = np.concatenate([inside, outside])
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    n, m = len(inside), len(outside)
    return float((rank[:n].sum() - n * (n + 1) / 2) / (n * m))


def false_positive_rate(inside: np.ndarray, outside: np.ndarray, share: float = 0.95) -> float:
    """The share of images without a candidate that pass the threshold which at least ``share`` of those with one pass."""
    return float(np.mean(outside >= threshold_for(inside, 1 - share)))


def threshold_for(values: np.ndarray, share: float) -> float:
    """The value below which at most a ``share`` of images lie: they are rejected."""
    ordered = np.sort(values)
    return float(ordered[min(int(np.floor(share * len(ordered) + 1e-9)), len(ordered) - 1)])
