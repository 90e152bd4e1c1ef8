import dense
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_problems import make_problem, problems

from czsl.evaluation import Candidates, Curve, evaluate, reduce_scores

EXACT = ("auc", "hm", "seen", "unseen")


def _curve(problem, k=1):
    candidates = Candidates.build(problem.space, problem.pairs, open_world=problem.open_world)
    return Curve(reduce_scores(problem.scores, problem.labels, candidates, k))


@settings(max_examples=25, deadline=None)
@given(problems(), st.integers(1, 5))
def test_exact_curve_is_the_dense_one(problem, k):
    expected, _ = dense.exact(problem.scores, problem.seen, problem.allowed, problem.true, k)
    result = evaluate(**problem.inputs(), topk=k)
    assert {key: result[key] for key in EXACT} == pytest.approx(expected, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(problems(), st.integers(1, 3))
def test_the_bias_reaches_the_harmonic_mean(problem, k):
    result = evaluate(**problem.inputs(), topk=k)
    assume(result["hm"] > 0)  # else the bias is 0, where a tie that the order of pairs decides may do better
    s, u = dense.accuracies(problem.scores, problem.seen, problem.allowed, problem.true, result["bias"], k, np.float64)
    s, u = s.mean(), u.mean()
    assert (2 * s * u / (s + u) if s + u else 0.0) == pytest.approx(result["hm"], abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(problems(), st.integers(1, 3))
def test_reference_numbers_are_the_dense_ones(problem, k):
    expected = dense.reference(problem.scores, problem.seen, problem.allowed, problem.true, problem.pairs, problem.labels, k)
    result = evaluate(**problem.inputs(), topk=k)
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-12)


def test_rounding_at_the_right_end_decides():
    problem = make_problem(0, "cosine", images=12)
    unseen = np.flatnonzero(problem.allowed & ~problem.seen)
    true = unseen[0]
    problem.labels[:] = problem.pairs[true]
    problem.labels[0] = problem.pairs[np.flatnonzero(problem.seen)[0]]
    problem.scores[:] = 0.1
    problem.scores[:, true] = 0.2
    problem.scores[:, unseen[1]] = 0.2 + 1e-5  # better, and equal to the first one at +1000
    result = evaluate(**problem.inputs())
    assert (result["unseen"], result["unseen_ref20"]) == (0.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(problems(kinds=("ties", "negative")), st.integers(-8, 8), st.integers(1, 3))
def test_adding_a_constant_changes_nothing(problem, shift, k):
    # Grids of 1/2 stay exact in float32, at +1000 too.
    before = evaluate(**problem.inputs(), topk=k)
    after = evaluate(**{**problem.inputs(), "scores": problem.scores + np.float32(shift)}, topk=k)
    assert after == before


@settings(max_examples=25, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(problem, random):
    order = random.sample(range(len(problem.labels)), len(problem.labels))
    inputs = {**problem.inputs(), "scores": problem.scores[order], "labels": problem.labels[order]}
    assert evaluate(**inputs) == evaluate(**problem.inputs())


@settings(max_examples=25, deadline=None)
@given(problems(kinds=("smooth",)), st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(problem, random):
    order = random.sample(range(len(problem.pairs)), len(problem.pairs))
    inputs = {**problem.inputs(), "scores": problem.scores[:, order], "pairs": problem.pairs[order]}
    assert evaluate(**inputs) == evaluate(**problem.inputs())


@settings(max_examples=25, deadline=None)
@given(problems(kinds=("ties", "smooth")), st.integers(1, 4))
def test_power_of_two_scales_the_bias_only(problem, power):
    before = evaluate(**problem.inputs())
    after = evaluate(**{**problem.inputs(), "scores": problem.scores * np.float32(2**power)})
    assert all(after[key] == before[key] for key in EXACT)
    curve = _curve(problem)
    inside = len(curve.flips) and curve.flips[0] < before["bias"] < curve.flips[-1]
    if inside and before["hm"] > 0:
        assert after["bias"] == before["bias"] * 2**power


@settings(max_examples=25, deadline=None)
@given(problems())
def test_the_curve_falls_and_the_ends_are_the_groups(problem):
    seen, unseen = _curve(problem).points()
    assert (np.diff(seen) <= 0).all() and (np.diff(unseen) >= 0).all()
    assert unseen[0] == 0 and seen[-1] == 0
    left, right = problem.scores.copy(), problem.scores.copy()
    left[:, ~problem.seen] = right[:, problem.seen] = -1e9
    left[:, ~problem.allowed] = right[:, ~problem.allowed] = -1e9
    is_seen = problem.seen[problem.true]
    assert seen[0] == (left.argmax(1) == problem.true)[is_seen].mean()
    assert unseen[-1] == (right.argmax(1) == problem.true)[~is_seen].mean()


def test_top_k_grows_with_k():
    problem = make_problem(11, "smooth", True, 12)
    values = [evaluate(**problem.inputs(), topk=k) for k in (1, 2, 4, len(problem.pairs))]
    for key in ("auc", "seen", "unseen", "attr_acc", "obj_acc"):
        assert values[0][key] <= values[1][key] <= values[2][key] <= values[3][key] == pytest.approx(1)
