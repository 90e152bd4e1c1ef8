"""Confidence intervals by bootstrap over images, from the extremes only, and the paired comparison of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from czsl.errors import DataError
from czsl.evaluation.curve import Curve, harmonic_mean, primitive_hits, right_at
from czsl.evaluation.extremes import Extremes

KEYS = ("auc", "hm", "seen", "unseen")
POINT_KEYS = ("op_seen", "op_unseen", "op_hm", "op_acc")


def bootstrap_intervals(e: Extremes, pairs: np.ndarray, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict:
    """Percentile bootstrap intervals over images (Efron and Tibshirani, 1993, chapter 13).

    Parameters
    ----------
    e : Extremes
        Its level 0 is used.
    pairs : int [P, 2]
        The candidates' pairs.
    resamples : int
    seed : int
    level : float
        Coverage, between 0 and 1.

    Returns
    -------
    dict
        ``resamples``, ``level``, and ``[low, high]`` for ``auc, hm, seen, unseen, attr_acc, obj_acc``; None if undefined.
    """
    curve, hits_N2 = Curve(e), primitive_hits(e, pairs)

    def numbers(weight: np.ndarray) -> dict[str, float]:
        values = curve.numbers(weight)
        return {key: values[key] for key in KEYS} | dict(zip(("attr_acc", "obj_acc"), weight @ hits_N2 / len(e), strict=True))

    return resampled_intervals(numbers, len(e), resamples, seed, level)


def resampled_intervals(
    numbers: Callable[[np.ndarray], dict[str, float]], images: int, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict:
    """Intervals ``[low, high]`` of what ``numbers`` makes of weights of the images; None if undefined.

    Beside them ``resamples`` and ``level``. One seed draws the same images for whatever is computed of them.
    """
    rows = [numbers(weight) for weight in _resampled_counts(images, resamples, seed)]
    intervals = {key: percentile_interval(np.array([row[key] for row in rows]), level) for key in rows[0]}
    return {"resamples": resamples, "level": level, **intervals}


def compare(
    first: Extremes,
    second: Extremes,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    biases: tuple[float, float] | None = None,
) -> dict:
    """Second run minus first run on the same images, by paired bootstrap: both use the same resamples.

    Parameters
    ----------
    first, second : Extremes
        Extremes of the same images in the same order; candidates and thresholds may differ. Their level 0 is used.
    resamples, seed, level
        As in :func:`bootstrap_intervals`.
    biases : (float, float), optional
        Biases of the runs' operating points.

    Returns
    -------
    dict
        For ``auc, hm, seen, unseen`` and, with biases, ``op_seen, op_unseen, op_hm, op_acc``: ``{"first", "second", "difference",
        "interval": [low, high], "holds"}``, and ``resamples``, ``level``, ``images``. An interval that contains 0 shows no
        difference: ``holds`` is False then, None if undefined.

    Raises
    ------
    DataError
        If the images or their labels differ.
    """
    if not np.array_equal(first.index, second.index) or not np.array_equal(first.labels, second.labels):
        raise DataError(
            "the two runs were not evaluated on the same images",
            f"{len(first)} and {len(second)} images, or other labels",
            "evaluate both on one split of one dataset",
        )
    if not np.array_equal(first.true_seen, second.true_seen):
        raise DataError(
            "the two runs do not agree on which pairs are seen",
            "they were trained on other pairs",
            "compare runs that were trained in one label space",
        )
    runs = [_Measured(e, bias) for e, bias in zip((first, second), biases or (None, None), strict=True)]
    keys = KEYS if biases is None else (*KEYS, *POINT_KEYS)
    differences = []
    for weight in _resampled_counts(len(first), resamples, seed):
        one, other = (run.numbers(weight) for run in runs)
        differences.append([other[key] - one[key] for key in keys])
    one, other = (run.numbers(np.ones(len(first))) for run in runs)
    result: dict = {"images": len(first), "resamples": resamples, "level": level}
    for key, column in zip(keys, np.array(differences).T, strict=True):
        values = {"first": one[key], "second": other[key], "difference": other[key] - one[key]}
        result[key] = {name: float(v) if np.isfinite(v) else None for name, v in values.items()}
        interval = percentile_interval(column, level)
        result[key] |= {"interval": interval, "holds": None if interval is None else interval[0] > 0 or interval[1] < 0}
    return result


class _Measured:
    """The numbers of one run for weights of its images, with those at a bias if there is one."""

    def __init__(self, e: Extremes, bias: float | None):
        self.curve, self.seen = Curve(e), e.true_seen
        self.right = None if bias is None else right_at(e, bias)

    def numbers(self, weight: np.ndarray) -> dict[str, float]:
        """Return the numbers of :data:`KEYS` and, with a bias, of :data:`POINT_KEYS`."""
        values = self.curve.numbers(weight)
        if self.right is None:
            return values
        with np.errstate(invalid="ignore", divide="ignore"):
            seen, unseen = (weight[g] @ self.right[g] / weight[g].sum() for g in (self.seen, ~self.seen))
        at_point = (seen, unseen, float(harmonic_mean(*np.array([seen, unseen]))), weight @ self.right / weight.sum())
        return values | dict(zip(POINT_KEYS, at_point, strict=True))


def pair_accuracies(runs: Sequence[Extremes]) -> list[dict]:
    """Accuracy of each composition for several runs on the same images, each run at the bias of its best harmonic mean.

    Returns
    -------
    list of dict
        ``label`` (attribute and object index), ``seen``, ``images`` and ``acc`` (one value a run) of each composition that occurs;
        first those where most images were won or lost between any run and the first.
    """
    first = runs[0]
    _, where, pair_N, images = np.unique(first.true_pair, return_index=True, return_inverse=True, return_counts=True)
    right_RM = np.array([np.bincount(pair_N, Curve(e).right_at_best(), minlength=len(images)) for e in runs])
    moved_M = np.abs(right_RM - right_RM[0]).max(axis=0)
    order = np.lexsort((images, -moved_M))
    return [
        {
            "label": first.labels[where[m]].tolist(),
            "seen": bool(first.true_seen[where[m]]),
            "images": int(images[m]),
            "acc": [float(right / images[m]) for right in right_RM[:, m]],
        }
        for m in order
    ]


def _resampled_counts(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield for each resample how often each image was drawn, float64 [N]."""
    if resamples < 1:
        raise ValueError(f"a bootstrap of {resamples} resamples; take at least 1, better 1000")
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(images, size=images), minlength=images).astype(np.float64)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> list[float] | None:
    """``[low, high]`` of resampled values; None if none is defined."""
    # A resample without an unseen (or seen) image leaves its numbers undefined; it says nothing about them.
    defined = values[np.isfinite(values)]
    if not defined.size:
        return None
    return [float(v) for v in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])]
