"""Averages over pairs instead of images, and the accuracy of each attribute and object."""

from __future__ import annotations

import numpy as np

from czsl.classes import ClassSpace
from czsl.evaluation.candidates import Candidates
from czsl.evaluation.curve import Curve, primitive_hits
from czsl.evaluation.extremes import Extremes

SHORT = {"attribute": "attr_acc", "object": "obj_acc", "class": "top1"}


def breakdown(e: Extremes, candidates: Candidates) -> dict:
    """Return the accuracy of each attribute, object and class, and macro averages.

    Returns
    -------
    dict
        ``macro``: ``auc, hm, seen, unseen`` of the curve whose accuracies are means over pairs (each pair that occurs counts
        once, however many images it has), and ``attr_acc, obj_acc`` as means over attributes and objects.
        ``per_attribute``, ``per_object``: ``{name: {"acc", "images"}}`` of the prediction without a bias, for those that occur.
        For plain classes there is ``per_class`` instead. Undefined numbers are None.
    """
    hits_N2 = primitive_hits(e, candidates.pairs)
    _, pair_N, images = np.unique(e.true_pair, return_inverse=True, return_counts=True)
    curve = Curve(e).numbers(1 / images[pair_N])
    macro = {key: float(curve[key]) if np.isfinite(curve[key]) else None for key in ("auc", "hm", "seen", "unseen")}
    named = {}
    kinds = [(0, "attribute", candidates.space.attributes), (1, "object", candidates.space.objects)]
    if isinstance(candidates.space, ClassSpace):
        kinds = [(1, "class", candidates.space.classes)]
    for column, key, names in kinds:
        count = np.bincount(e.labels[:, column], minlength=len(names))
        right = np.bincount(e.labels[:, column], hits_N2[:, column], minlength=len(names))
        present = np.flatnonzero(count)
        named[f"per_{key}"] = {names[i]: {"acc": float(right[i] / count[i]), "images": int(count[i])} for i in present}
        macro[SHORT[key]] = float(np.mean(right[present] / count[present]))
    return {"macro": macro, **named}
