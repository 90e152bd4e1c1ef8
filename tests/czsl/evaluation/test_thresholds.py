import dense
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_problems import make_problem, problems

from czsl.evaluation import Candidates, at_threshold, choose_threshold, evaluate, reduce_scores, threshold_grid

REFERENCE = ("auc_ref20", "hm_ref20", "seen_ref20", "unseen_ref20", "bias_ref20", "attr_acc", "obj_acc")


@settings(max_examples=15, deadline=None)
@given(problems(worlds=(True,)), st.sampled_from(["exclude", "reference"]), st.integers(1, 3))
def test_every_row_is_a_dense_evaluation(problem, rule, k):
    result = evaluate(**problem.inputs(), feasibility=problem.feasibility, rule=rule, topk=k)
    assert len(result["thresholds"]) == 50
    assert result["threshold"] is None
    for row in result["thresholds"][:: 7 if rule == "exclude" else 5]:
        scores, allowed = dense.apply_threshold(problem.scores, problem.seen, problem.feasibility, row["threshold"], rule)
        expected = dense.reference(scores, problem.seen, allowed, problem.true, problem.pairs, problem.labels, k)
        expected |= dense.exact(scores, problem.seen, allowed, problem.true, k)[0]
        assert {key: row[key] for key in expected} == pytest.approx(expected, abs=1e-12)


def test_the_fields_grid():
    feasibility = np.array([0, 0.25, -0.1, 0.7, 0], np.float32)
    seen = np.array([True, False, False, False, True])
    grid = threshold_grid(feasibility, seen)
    assert grid.dtype == np.float32 and len(grid) == 50
    assert (grid[0], grid[-1]) == (np.float32(-0.1), np.float32(0.7))
    np.testing.assert_array_equal(grid, np.linspace(np.float32(-0.1), np.float32(0.7), 50, dtype=np.float32))


@settings(max_examples=10, deadline=None)
@given(problems(worlds=(True,)), st.sampled_from(["exclude", "reference"]), st.floats(-1, 1.5))
def test_a_named_threshold_is_in_use(problem, rule, threshold):
    inputs = {**problem.inputs(), "feasibility": problem.feasibility, "rule": rule}
    result = evaluate(**inputs, threshold=threshold)
    assert result["threshold"] == float(np.float32(threshold))
    searched = evaluate(**inputs)["thresholds"]
    assert result["thresholds"] == searched
    scores, allowed = dense.apply_threshold(problem.scores, problem.seen, problem.feasibility, threshold, rule)
    expected = dense.reference(scores, problem.seen, allowed, problem.true, problem.pairs, problem.labels)
    assert {key: result[key] for key in REFERENCE} == pytest.approx({key: expected[key] for key in REFERENCE})


@pytest.mark.parametrize("rule", ["exclude", "reference"])
def test_val_chooses_and_test_is_reported(rule):
    test, val = make_problem(5, "smooth", True, 12), make_problem(5, "smooth", True, 12)
    val.scores = np.random.default_rng(1).normal(20, 3, val.scores.shape).astype(np.float32)
    val.scores[np.arange(12), val.true] += 4
    val.scores[:, ~val.seen & (val.feasibility < 0.2)] += 3
    result = evaluate(**test.inputs(), feasibility=test.feasibility, val=(val.scores, val.labels), rule=rule)
    on_val = evaluate(**val.inputs(), feasibility=val.feasibility, rule=rule)["thresholds"]
    key = "auc" if rule == "exclude" else "auc_ref20"
    best = next(row["threshold"] for row in on_val if row[key] == max(other[key] for other in on_val))
    assert result["threshold"] == best > on_val[0]["threshold"]
    row = next(row for row in result["thresholds"] if row["threshold"] == best)
    assert {key: result[key] for key in row} == row


def test_choice_is_strict_and_starts_at_zero():
    rows = [{"threshold": t, "auc": a, "auc_ref20": b} for t, a, b in ((0.1, 0.2, 0.0), (0.2, 0.3, None), (0.3, 0.3, 0.0))]
    assert choose_threshold(rows) == 0.2
    assert choose_threshold(rows, "reference") is None


def test_rules_and_thresholds_are_checked():
    problem = make_problem(7, open_world=True)
    candidates = Candidates.build(problem.space, problem.pairs, open_world=True, feasibility=problem.feasibility, threshold=0.3)
    extremes = reduce_scores(problem.scores, problem.labels, candidates)
    assert len(candidates.thresholds) == 51 and len(candidates.grid) == 50
    at_threshold(extremes, candidates, 0.3)
    with pytest.raises(ValueError, match="were not reduced"):
        at_threshold(extremes, candidates, 0.123)
    with pytest.raises(ValueError, match="unknown feasibility rule"):
        at_threshold(extremes, candidates, None, "maybe")


@settings(max_examples=10, deadline=None)
@given(problems(kinds=("smooth",), worlds=(True,)), st.randoms(use_true_random=False))
def test_thresholds_do_not_depend_on_the_order_of_pairs_and_images(problem, random):
    images = random.sample(range(len(problem.labels)), len(problem.labels))
    pairs = random.sample(range(len(problem.pairs)), len(problem.pairs))
    shuffled = {
        **problem.inputs(),
        "scores": problem.scores[images][:, pairs],
        "labels": problem.labels[images],
        "pairs": problem.pairs[pairs],
    }
    for rule in ("exclude", "reference"):
        before = evaluate(**problem.inputs(), feasibility=problem.feasibility, rule=rule)
        assert evaluate(**shuffled, feasibility=problem.feasibility[pairs], rule=rule) == before


@settings(max_examples=10, deadline=None)
@given(problems(kinds=("ties", "negative"), worlds=(True,)), st.integers(-8, 8))
def test_a_constant_changes_no_threshold(problem, shift):
    """Excluding pairs knows no zero; the literature's rule does, so a constant may change it."""
    inputs = {**problem.inputs(), "feasibility": problem.feasibility}
    assert evaluate(**{**inputs, "scores": problem.scores + np.float32(shift)}) == evaluate(**inputs)
