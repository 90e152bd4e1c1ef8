"""Confusion of labels against the plain count, image by image."""

from __future__ import annotations

import numpy as np
import pytest

from czsl.evaluation import Candidates
from czsl.evaluation.confusion import confusion, largest_confusions, named_labels, per_label
from czsl.evaluation.curve import right_at
from czsl.evaluation.report import reduce_scores


@pytest.mark.parametrize("bias", [-1.0, 0.0, 0.37, 50.0])
def test_named_labels_are_the_best_of_score_plus_bias(small_space, bias):
    candidates = Candidates.build(small_space, split="test")
    rng = np.random.default_rng(1)
    labels = small_space.test_pairs[rng.integers(len(small_space.test_pairs), size=50)]
    scores = rng.normal(size=(50, len(candidates.pairs))).astype(np.float32)
    e = reduce_scores(scores, labels, candidates)
    shifted = np.where(candidates.allowed, scores + np.float64(bias) * ~candidates.seen, -np.inf)
    plain = candidates.pairs[shifted.argmax(axis=1)]
    named = named_labels(e, candidates.pairs, bias)
    np.testing.assert_array_equal(named, plain)
    np.testing.assert_array_equal((named == labels).all(axis=1), right_at(e, bias))


def test_counts_and_names_of_confusions():
    true, named = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, -1, 0])
    matrix = confusion(true, named, 4)
    plain = np.zeros((4, 4), int)
    for t, n in zip(true, named, strict=True):
        if n >= 0:
            plain[t, n] += 1
    np.testing.assert_array_equal(matrix, plain)
    names = ["a", "b", "c", "d"]
    assert largest_confusions(matrix, names) == [
        {"true": "a", "named": "b", "images": 2, "share": pytest.approx(2 / 3)},
        {"true": "c", "named": "a", "images": 1, "share": 1.0},
    ]
    assert len(largest_confusions(matrix, names, limit=1)) == 1
    rows = per_label(matrix, names)
    assert [(r["name"], r["images"], r["taken_for"]) for r in rows] == [("a", 3, "b"), ("b", 1, ""), ("c", 1, "a")]
