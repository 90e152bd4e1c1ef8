"""Accuracy at an operating point: what a run's answers reach, in addition to the best over all biases."""

from __future__ import annotations

import numpy as np

from czsl.evaluation.classes import class_numbers
from czsl.evaluation.curve import Curve, harmonic_mean, right_at
from czsl.evaluation.extremes import Extremes
from czsl.evaluation.intervals import percentile_interval, resampled_intervals
from czsl.evaluation.operating import OperatingPoint, class_weights

KEYS = ("seen", "unseen", "hm", "acc")
RESAMPLES = 1000


def accuracies(e: Extremes, bias: float, classes: bool = False, weight: np.ndarray | None = None) -> dict[str, float]:
    """``seen``, ``unseen``, ``hm`` and ``acc`` (all images) with a bias on unseen pairs; NaN if no image shows such a pair.

    For plain classes ``seen`` and ``unseen`` are means over classes: S, U and H with the bias as gamma.
    """
    right, weight_N = right_at(e, bias), np.ones(len(e)) if weight is None else weight
    if classes:
        found = class_numbers(e, bias, weight)
        seen, unseen = found["S"], found["U"]
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            seen, unseen = (
                float(weight_N[group] @ right[group] / weight_N[group].sum()) for group in (e.true_seen, ~e.true_seen)
            )
    hm = float(harmonic_mean(*np.array([seen, unseen])))
    return {"seen": seen, "unseen": unseen, "hm": hm, "acc": float(weight_N @ right / weight_N.sum())}


def point_numbers(e: Extremes, point: OperatingPoint, classes: bool = False, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """The accuracies at a point, at no bias, and what the point loses against the best bias for these very images.

    Parameters
    ----------
    e : Extremes
        Level 0 is used.
    point : OperatingPoint
    classes : bool
        Labels are plain classes.
    resamples, seed : int
        Number of resamples of the bootstrap over images, and its seed.

    Returns
    -------
    dict
        ``op_seen, op_unseen, op_hm, op_acc``; ``op_bias``; ``op_intervals``, 95 % each; the same four with ``none_`` at bias 0;
        ``best_acc``, the best accuracy over all biases; ``op_hm_loss`` and ``op_acc_loss``, best minus reached. Undefined numbers are NaN.
    """
    at, none = accuracies(e, point.bias, classes), accuracies(e, 0.0, classes)
    curve = Curve(e)
    seen, unseen = curve.points()
    share = float(np.mean(~e.true_seen))
    # A group without images has no accuracy and no part in the mean.
    best_acc = float(np.max((1 - share) * np.nan_to_num(seen) + share * np.nan_to_num(unseen)))
    best_hm = float(curve.numbers(class_weights(e) if classes else None)["hm"])
    values: dict = {f"op_{key}": at[key] for key in KEYS}
    values |= {"op_bias": point.bias, "op_intervals": _intervals(e, point.bias, classes, resamples, seed)}
    values |= {f"none_{key}": none[key] for key in KEYS}
    return {**values, "best_acc": best_acc, "op_hm_loss": best_hm - at["hm"], "op_acc_loss": best_acc - at["acc"]}


def _intervals(e: Extremes, bias: float, classes: bool, resamples: int, seed: int) -> dict:
    if classes:
        found = resampled_intervals(lambda weight: accuracies(e, bias, True, weight), len(e), resamples, seed)
        return {key: found[key] for key in KEYS}
    # Of an image only its group and whether it is right count, so resampled images are draws of four counts.
    right = right_at(e, bias)
    cells = np.bincount(2 * e.true_seen + right, minlength=4)
    draws = np.random.default_rng(seed).multinomial(len(e), cells / len(e), resamples).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        unseen, seen = (draws[:, 2 * i + 1] / draws[:, 2 * i : 2 * i + 2].sum(axis=1) for i in (0, 1))
    columns = {"seen": seen, "unseen": unseen, "hm": harmonic_mean(seen, unseen), "acc": draws[:, [1, 3]].sum(axis=1) / len(e)}
    return {key: percentile_interval(columns[key]) for key in KEYS}
