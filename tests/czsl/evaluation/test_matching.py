"""Right answers, re-ranking, recalls and the interval of a difference."""

import numpy as np
import pytest

from czsl.data.files.match import MatchItem
from czsl.evaluation.matching import difference_interval, recalls, reranked, right_answers

NAN = float("nan")


def test_the_right_image_must_score_higher():
    items = [
        MatchItem(str(i), ("c",), images, (None,))
        for i, images in enumerate([("a", "b"), ("b", "a"), ("a", "a"), ("a", "x"), ("x", "a")])
    ]
    scores = {("a", "c"): 0.3, ("b", "c"): 0.2, ("x", "c"): NAN}
    for kind in ("comvg", "svo"):
        # A tie is wrong, and so is what has no score.
        assert right_answers(kind, items, scores)["accuracy"].tolist() == [True, False, False, False, False]


def test_the_right_caption_must_score_higher():
    items = [MatchItem("0", ("good", "bad"), ("a",), (None, None)), MatchItem("1", ("good", "bad"), ("b",), (None, None))]
    scores = {("a", "good"): 2.0, ("a", "bad"): 1.0, ("b", "good"): 1.0, ("b", "bad"): 2.0}
    assert right_answers("vl-checklist", items, scores)["accuracy"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("matrix", "expected"),  # of captions and images
    [
        ([[2, 1], [1, 2]], (True, True, True)),
        (
            [[2, 1], [1.5, 1.2]],
            (True, False, False),
        ),  # each image prefers its caption; the second caption prefers the first image
        ([[2, 1], [2.5, 2.6]], (False, True, False)),
        ([[1, 2], [2, 1]], (False, False, False)),
        ([[2, NAN], [1, NAN]], (False, False, False)),
    ],
)
def test_winoground(matrix, expected):
    scores = {(f"i{i}", f"c{c}"): float(matrix[c][i]) for c in range(2) for i in range(2)}
    found = right_answers("winoground", [MatchItem("0", ("c0", "c1"), ("i0", "i1"), (None, None))], scores)
    assert tuple(bool(found[k][0]) for k in ("text", "image", "group")) == expected


def test_the_first_ones_are_put_in_a_new_order():
    first = [0.5, 0.9, NAN, 0.7, 0.1]
    assert reranked(first, {}, 0) == [1, 3, 0, 4, 2]
    assert reranked(first, {1: 0.1, 3: 0.2, 0: 5.0}, 2) == [3, 1, 0, 4, 2]
    assert reranked(first, {1: 0.1}, 2) == [1, 3, 0, 4, 2]  # one of them has no second score
    assert reranked(first, dict.fromkeys(range(5), 1.0), 99) == [1, 3, 0, 4, 2]
    assert reranked([], {}, 10) == []


def test_recalls_count_what_cannot_be_found():
    assert recalls([1, 2, 6, 11, None]) == {"R@1": 0.2, "R@5": 0.4, "R@10": 0.6}


def test_the_interval_of_a_difference_is_that_of_a_paired_bootstrap():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(400) < 0.7, rng.random(400) < 0.6
    low, high = difference_interval(ours, theirs)
    difference = ours.astype(float) - theirs
    means = [rng.choice(difference, 400).mean() for _ in range(2000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.012)
    assert difference_interval(ours, ours) == (0, 0)
