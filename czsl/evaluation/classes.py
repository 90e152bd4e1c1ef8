"""Ordinary zero-shot recognition: accuracies of seen and unseen classes in which each class counts once.

Measures of Xian et al. (TPAMI 2019): mean over classes of top-1 accuracy. Calibration of Chao et al. (ECCV 2016): gamma is taken from
the scores of seen classes, which ranks as a bias on the unseen ones does, so that the extremes of an image hold everything.
"""

from __future__ import annotations

import numpy as np

from czsl.evaluation.curve import harmonic_mean, right_among_own, right_at
from czsl.evaluation.extremes import Extremes


def class_numbers(e: Extremes, gamma: float = 0.0, weight: np.ndarray | None = None) -> dict[str, float]:
    """Accuracies of plain classes at level 0 of the extremes; NaN if no image shows such a class.

    Parameters
    ----------
    e : Extremes
        With k > 1 an image counts when its class is among the k best.
    gamma : float
        Taken from the scores of seen classes for S, U and H.
    weight : float [N], optional
        Weight of each image (bootstrap counts); default 1.

    Returns
    -------
    dict
        ``top1``: share of images, all classes compete, no gamma. Means over the classes that occur: ``T1``, unseen images among the
        unseen classes only; ``S``, ``U``, images of seen and unseen classes among all classes, and ``H``, their harmonic mean; ``S0``,
        ``U0``, ``H0``, the same without gamma. ``gamma`` itself.
    """
    weight_N = np.ones(len(e)) if weight is None else weight
    plain, seen_N = right_at(e, 0.0), e.true_seen
    values = {
        "top1": weight_N @ plain / weight_N.sum(),
        "T1": _class_mean(right_among_own(e), e.true_pair, weight_N * ~seen_N),
    }
    for suffix, right in (("", right_at(e, gamma)), ("0", plain)):
        seen, unseen = (_class_mean(right, e.true_pair, weight_N * group) for group in (seen_N, ~seen_N))
        values |= {f"S{suffix}": seen, f"U{suffix}": unseen, f"H{suffix}": float(harmonic_mean(*np.array([seen, unseen])))}
    return {**values, "gamma": gamma}


def _class_mean(right_N: np.ndarray, class_N: np.ndarray, weight_N: np.ndarray) -> float:
    total = np.bincount(class_N, weight_N)
    hit = np.bincount(class_N, weight_N * right_N)
    return float(np.mean(hit[total > 0] / total[total > 0])) if total.any() else float("nan")
