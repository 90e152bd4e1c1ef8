"""True labels of images: checked against the label space and found among the candidates."""

from __future__ import annotations

import numpy as np

from czsl.errors import DataError
from czsl.evaluation.candidates import Candidates


def check_labels(labels, candidates: Candidates, source: str = "scores") -> np.ndarray:
    """Labels as int64 [N, 2] from [N, 2] or a tuple of two vectors.

    Raises
    ------
    ValueError
        Another shape or type.
    DataError
        No label, or one outside the space; the first is named.
    """
    if isinstance(labels, tuple):
        if len(labels) != 2 or len(labels[0]) != len(labels[1]):
            raise ValueError(f"{source}: labels are not two vectors of one length; give (attributes, objects)")
        labels = np.stack([np.asarray(part) for part in labels], axis=1)
    labels_N2 = np.asarray(labels)
    if labels_N2.size == 0:
        raise DataError(f"{source}: the split has no images", "the list of labels is empty", "choose a split that has images")
    if labels_N2.ndim != 2 or labels_N2.shape[1] != 2 or not np.issubdtype(labels_N2.dtype, np.integer):
        raise ValueError(f"{source}: labels of shape {list(labels_N2.shape)} and type {labels_N2.dtype}; give integers [N, 2]")
    space = candidates.space
    for column, (kind, limit) in enumerate((("attribute", space.num_attributes), ("object", space.num_objects))):
        bad = np.flatnonzero((labels_N2[:, column] < 0) | (labels_N2[:, column] >= limit))
        if bad.size:
            raise DataError(
                f"{source}: image {bad[0]} has {kind} {labels_N2[bad[0], column]}",
                f"the space has {limit} {kind}s; {bad.size} labels are outside",
                "do the labels belong to this space?",
            )
    return labels_N2.astype(np.int64)


def locate_labels(labels_N2: np.ndarray, candidates: Candidates, source: str = "scores") -> np.ndarray:
    """Column of each label's pair, int64 [N]; DataError names the first label whose pair is not a candidate."""
    columns_N = candidates.space.locate(labels_N2, candidates.pairs)
    missing = np.flatnonzero(columns_N < 0)
    if missing.size:
        raise DataError(
            f"{source}: image {missing[0]} shows {candidates.space.pair_name(labels_N2[missing[0]])!r}, which is not a candidate",
            f"{missing.size} of {len(labels_N2)} images have a pair without a score",
            "score every pair that occurs in the split",
        )
    return columns_N
