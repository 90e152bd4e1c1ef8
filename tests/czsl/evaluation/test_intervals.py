import dense
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_problems import make_problem, problems

from czsl.errors import DataError
from czsl.evaluation import Candidates, bootstrap_intervals, compare, evaluate, pair_accuracies, reduce_scores
from czsl.evaluation.curve import Curve

KEYS = ("auc", "hm", "seen", "unseen")


def _extremes(problem, scores=None, k=1):
    candidates = Candidates.build(problem.space, problem.pairs, open_world=problem.open_world)
    return reduce_scores(problem.scores if scores is None else scores, problem.labels, candidates, k)


def _with_signal(seed, images, strength):
    problem = make_problem(3, "smooth", images=images)
    rng = np.random.default_rng(seed)
    problem.scores = rng.normal(20, 3, problem.scores.shape).astype(np.float32)
    problem.scores[np.arange(images), problem.true] += strength
    return problem


def test_a_weighted_curve_is_the_curve_of_repeated_images():
    problem = _with_signal(0, 40, 2)
    counts = np.random.default_rng(1).integers(0, 4, 40)
    rows = np.repeat(np.arange(40), counts)
    repeated = evaluate(problem.scores[rows], problem.labels[rows], problem.space, problem.pairs)
    weighted = Curve(_extremes(problem)).numbers(counts.astype(float))
    assert {key: weighted[key] for key in KEYS} == pytest.approx({key: repeated[key] for key in KEYS}, abs=1e-12)


def test_intervals_are_seeded_hold_the_value_and_shrink():
    widths = []
    for images in (60, 960):
        problem = _with_signal(0, images, 3)
        result = evaluate(**problem.inputs(), bootstrap=200, seed=4)
        again = evaluate(**problem.inputs(), bootstrap=200, seed=4)
        assert result == again
        assert evaluate(**problem.inputs(), bootstrap=200, seed=5)["intervals"] != result["intervals"]
        for key in (*KEYS, "attr_acc", "obj_acc"):
            low, high = result["intervals"][key]
            assert 0 <= low <= result[key] + 0.05 and result[key] - 0.05 <= high <= 1
        low, high = result["intervals"]["seen"]
        widths.append(high - low)
    assert widths[1] < widths[0] / 2  # sixteen times the images: about a quarter of the width


def test_coverage_of_a_proportion():
    """The interval of attr_acc is that of a mean of 0/1 values: about +- 1.96 standard errors."""
    problem = _with_signal(0, 900, 2)
    accuracy = evaluate(**problem.inputs())["attr_acc"]
    low, high = bootstrap_intervals(_extremes(problem), problem.pairs, 1000)["attr_acc"]
    error = np.sqrt(accuracy * (1 - accuracy) / 900)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)


def test_compare_is_paired():
    problem = _with_signal(0, 300, 3)
    noise = np.random.default_rng(9).normal(0, 0.05, problem.scores.shape)
    near = compare(_extremes(problem), _extremes(problem, problem.scores + noise), 200)
    better = _with_signal(0, 300, 5)
    far = compare(_extremes(problem), _extremes(better), 200)
    same = compare(_extremes(problem), _extremes(problem), 20)
    for key in ("auc", "hm"):
        assert same[key]["difference"] == 0 and same[key]["interval"] == [0, 0]
        assert near[key]["interval"][0] <= 0 <= near[key]["interval"][1]
        assert far[key]["interval"][0] > 0
        assert (same[key]["holds"], near[key]["holds"], far[key]["holds"]) == (False, False, True)
        assert far[key]["difference"] == far[key]["second"] - far[key]["first"]
        # Both runs are resampled alike, so what they share cancels out.
        low, high = bootstrap_intervals(_extremes(problem), problem.pairs, 200)[key]
        assert near[key]["interval"][1] - near[key]["interval"][0] < (high - low) / 2


def test_compare_wants_the_same_images():
    one, other = make_problem(3, images=10), make_problem(3, images=9)
    with pytest.raises(DataError, match="same images"):
        compare(_extremes(one), _extremes(other))
    with pytest.raises(ValueError, match="0 resamples"):
        compare(_extremes(one), _extremes(one), 0)


def test_what_is_undefined_does_not_hold():
    problem = _with_signal(0, 60, 3)
    seen = problem.seen[problem.true]
    candidates = Candidates.build(problem.space, problem.pairs)
    one = reduce_scores(problem.scores[seen], problem.labels[seen], candidates)
    result = compare(one, one, 5)
    assert result["auc"] == {"first": None, "second": None, "difference": None, "interval": None, "holds": None}
    assert result["seen"]["holds"] is False


@settings(max_examples=25, deadline=None)
@given(problems(), st.integers(1, 3))
def test_images_right_at_the_best_bias_are_the_dense_ones(problem, k):
    curve = Curve(_extremes(problem, k=k))
    numbers = curve.numbers()
    assume(numbers["hm"] > 0)  # else the bias is 0 by definition
    predicted = dense.predict(problem.scores, problem.seen, problem.allowed, numbers["bias"], k, np.float64)
    expected = (predicted == problem.true[:, None]).any(axis=1)
    assert curve.right_at_best().tolist() == expected.tolist()


def test_accuracies_of_compositions_by_hand():
    problem, better = _with_signal(0, 300, 2), _with_signal(0, 300, 5)
    runs = [_extremes(problem), _extremes(better), _extremes(problem)]
    rows = pair_accuracies(runs)
    assert sorted(tuple(row["label"]) for row in rows) == sorted({tuple(label) for label in problem.labels.tolist()})
    assert sum(row["images"] for row in rows) == 300
    for row in rows:
        there = (problem.labels == row["label"]).all(axis=1)
        assert row["images"] == there.sum()
        assert row["seen"] == problem.seen[problem.true][there][0]
        assert row["acc"] == [Curve(e).right_at_best()[there].mean() for e in runs]
    won = [round(abs(row["acc"][1] - row["acc"][0]) * row["images"]) for row in rows]
    assert won == sorted(won, reverse=True) and won[0] > 0
