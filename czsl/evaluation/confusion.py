"""Confusions: named labels at an operating point, their confusion, and accuracies per attribute, object and composition.

Letters: N images, P pairs, C labels of one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from czsl.evaluation.calibration import named_group
from czsl.evaluation.extremes import Extremes


def named_labels(e: Extremes, pairs: np.ndarray, bias: float = 0.0) -> np.ndarray:
    """Return the attribute and object that each image is given with a bias on unseen pairs.

    Parameters
    ----------
    e : Extremes
        Level 0 is used.
    pairs : int [P, 2]
        The candidates' pairs.
    bias : float
        Added to the score of unseen pairs.

    Returns
    -------
    int64 [N, 2]
        -1 for an image that no pair may name.
    """
    _, pair_N = named_group(e, bias)
    return np.where((pair_N >= 0)[:, None], pairs[np.maximum(pair_N, 0)], -1)


def confusion(true_N: np.ndarray, named_N: np.ndarray, count: int) -> np.ndarray:
    """Return how many images of each label (rows) were given each label (columns), int64 [C, C]; unnamed images are left out."""
    known = named_N >= 0
    flat = np.bincount(true_N[known] * count + named_N[known], minlength=count * count)
    return flat.reshape(count, count)


def largest_confusions(matrix_CC: np.ndarray, names: Sequence[str], limit: int = 10) -> list[dict[str, Any]]:
    """Return the largest entries off the diagonal: ``true``, ``named``, ``images``, and ``share`` of the images of the true label.

    Ordered by images, then by names' order; entries of 0 are left out.
    """
    wrong = matrix_CC.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    found = []
    for place in order.tolist():
        true, named = divmod(place, len(names))
        if wrong[true, named]:
            share = wrong[true, named] / matrix_CC[true].sum()
            found.append({"true": names[true], "named": names[named], "images": int(wrong[true, named]), "share": float(share)})
    return found


def per_label(matrix_CC: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return accuracy per label that occurs: ``name``, ``images``, ``acc``, ``taken_for`` (its most frequent wrong name, or "")."""
    found = []
    for i, name in enumerate(names):
        images = int(matrix_CC[i].sum())
        if not images:
            continue
        others = matrix_CC[i].copy()
        right, others[i] = int(others[i]), 0
        worst = int(np.argmax(others))
        found.append({"name": name, "images": images, "acc": right / images, "taken_for": names[worst] if others[worst] else ""})
    return found
