"""The bias of an operating point against a search over all biases, and its file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_problems import make_problem, problems

from czsl.compositions import CompositionSpace
from czsl.errors import DataError, UsageError
from czsl.evaluation import Aim, Candidates, OperatingPoint, choose_bias, compare, evaluate, point_numbers, reduce_scores
from czsl.evaluation.at_point import accuracies
from czsl.evaluation.operating import Scaling, candidates_sha256, point_file, seen_names, unseen_mask

HASHES = {"checkpoint_sha256": "ab", "data_sha256": "cd", "candidates_sha256": "ef"}


def dense(problem, bias):
    """Seen, unseen, all: add the bias in float64, take the best pair, count."""
    scores = np.where(problem.allowed, problem.scores.astype(np.float64) + bias * ~problem.seen, -np.inf)
    right, seen = scores.argmax(axis=1) == problem.true, problem.seen[problem.true]
    return right[seen].mean(), right[~seen].mean(), right.mean()


def every_bias(problem):
    """A bias inside of every interval in which predictions can be constant."""
    scores = problem.scores.astype(np.float64)
    gaps = scores[:, problem.allowed & problem.seen][:, :, None] - scores[:, problem.allowed & ~problem.seen][:, None, :]
    flips = np.unique(gaps)
    return np.concatenate([[flips[0] - 1], (flips[1:] + flips[:-1]) / 2, [flips[-1] + 1]])


def worth(problem, aim, bias):
    """What an aim maximises."""
    seen, unseen, everything = dense(problem, bias)
    return {
        "hm": 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0,
        "accuracy": everything,
        "unseen-share": (1 - (aim.value or 0)) * seen + (aim.value or 0) * unseen,
        "seen": unseen if seen >= (aim.value or 0) else -1.0,
    }[aim.kind]


@settings(deadline=None)
@given(
    problems(worlds=(False,)),
    st.sampled_from(["hm", "accuracy", "unseen-share=0.3", "unseen-share=1", "seen>=0.01", "seen>=0.5"]),
)
def test_no_bias_serves_the_aim_better(problem, text):
    aim = Aim.parse(text)
    e = reduce_scores(problem.scores, problem.labels, Candidates.build(problem.space, problem.pairs))
    best = max(worth(problem, aim, bias) for bias in every_bias(problem))
    try:
        bias, note = choose_bias(e, aim)
    except UsageError as error:
        assert best == -1
        assert "no bias reaches a seen accuracy" in error.what
        return
    if note:
        assert aim.kind == "hm" and best == 0 == bias
    else:
        assert worth(problem, aim, bias) == pytest.approx(best)


@pytest.mark.parametrize(
    "text", ["", "f1", "seen>=1.5", "seen>=x", "unseen-share=-0.1", "unseen-share", "seen=0.5", "unseen-share=nan"]
)
def test_an_aim_that_is_none_is_refused(text):
    with pytest.raises(UsageError):
        Aim.parse(text)
    for good in ("hm", "accuracy", "unseen-share=0.3", "seen>=0.5"):
        assert str(Aim.parse(good)) == good


@settings(deadline=None)
@given(problems(worlds=(False,)), st.integers(-192, 192).map(lambda n: n / 64))  # no addition rounds such a bias away
def test_accuracies_at_a_point_are_those_of_the_dense_evaluation(problem, bias):
    e = reduce_scores(problem.scores, problem.labels, Candidates.build(problem.space, problem.pairs))
    numbers = point_numbers(e, OperatingPoint(bias), resamples=20)
    assert [numbers[f"op_{key}"] for key in ("seen", "unseen", "acc")] == pytest.approx(dense(problem, bias))
    assert [numbers[f"none_{key}"] for key in ("seen", "unseen", "acc")] == pytest.approx(dense(problem, 0.0))
    best = [dense(problem, b) for b in every_bias(problem)]
    assert numbers["best_acc"] >= max(row[2] for row in best) - 1e-12
    # Exactly where a prediction flips, the order of pairs decides, which no interval of biases has.
    gaps = problem.scores[:, problem.seen][:, :, None].astype(float) - problem.scores[:, ~problem.seen][:, None, :]
    if bias not in gaps:
        assert numbers["op_hm_loss"] >= -1e-12 and numbers["op_acc_loss"] >= -1e-12


def test_intervals_agree_with_resampled_images():
    problem = make_problem(3, "smooth", images=400)
    e = reduce_scores(problem.scores, problem.labels, Candidates.build(problem.space, problem.pairs))
    found = point_numbers(e, OperatingPoint(0.4), resamples=4000)["op_intervals"]
    rng, rows = np.random.default_rng(1), []
    for _ in range(2000):
        weight = np.bincount(rng.integers(400, size=400), minlength=400).astype(float)
        rows.append(accuracies(e, 0.4, weight=weight))
    for key in ("seen", "unseen", "hm", "acc"):
        assert found[key] == pytest.approx(np.quantile([row[key] for row in rows], [0.025, 0.975]), abs=0.015)


def test_without_one_group_the_bias_is_0_and_that_is_said():
    problem = make_problem(0, "smooth", images=40)
    e = reduce_scores(problem.scores, problem.labels, Candidates.build(problem.space, problem.pairs))
    for group, word in ((e.true_seen, "an unseen label"), (~e.true_seen, "a seen label")):
        part = reduce_scores(problem.scores[group], problem.labels[group], Candidates.build(problem.space, problem.pairs))
        assert choose_bias(part)[0] == 0
        assert word in choose_bias(part)[1]
        numbers = point_numbers(part, OperatingPoint(), resamples=5)
        assert numbers["best_acc"] >= numbers["op_acc"]
        assert np.isnan(numbers["op_unseen" if word == "an unseen label" else "op_seen"])


def test_validation_scores_choose_the_point_of_score_files():
    test, val = make_problem(5, "smooth", images=60), make_problem(5, "smooth", images=60)
    keep = val.space.split_mask(val.labels, "val")
    given = (val.scores[keep], val.labels[keep])
    result = evaluate(**test.inputs(), val=given)
    extremes = reduce_scores(*given, Candidates.build(val.space, val.pairs, split="val"))
    assert result["op_bias"] == choose_bias(extremes)[0]
    assert result["op_acc"] == pytest.approx(dense(test, result["op_bias"])[2])
    assert {"ece", "ece_before", "nll", "brier", "attr_nll", "aurc", "reject_auroc"} <= set(result)
    other = evaluate(**test.inputs(), val=given, aim="accuracy")
    assert other["operating_point"]["for"] == "accuracy"
    assert "op_acc" not in evaluate(**test.inputs())


def test_compare_takes_the_points():
    problem = make_problem(7, "smooth", images=80)
    candidates = Candidates.build(problem.space, problem.pairs)
    first = reduce_scores(problem.scores, problem.labels, candidates)
    second = reduce_scores(problem.scores + 0.3 * problem.seen, problem.labels, candidates)
    found = compare(first, second, 30, biases=(0.2, 0.5))
    assert found["op_acc"]["difference"] == pytest.approx(0, abs=1e-12)  # 0.3 less on one side, 0.3 more on the other
    assert found["op_hm"]["first"] == pytest.approx(accuracies(first, 0.2)["hm"])
    assert "op_acc" not in compare(first, second, 3)


# -- seen pairs by name ------------------------------------------------------------------------------------------------------
def test_new_words_and_new_pairs_count_as_unseen(small_space):
    seen = seen_names(small_space)
    other = CompositionSpace(
        ("WET", "faux leather", "shiny"), ("cat", "dog", "Boots.Mid-Calf"), *(np.empty((0, 2), np.int64),) * 3
    )
    mask = unseen_mask(other, other.open_pairs, seen)
    for pair, unseen in zip(other.open_pairs, mask, strict=True):
        names = other.pair_names(pair)
        place = [
            next(
                (
                    i
                    for i, n in enumerate(known)
                    if n.lower().replace(".", " ").replace("_", " ") == name.lower().replace(".", " ")
                ),
                None,
            )
            for known, name in zip((small_space.attributes, small_space.objects), names, strict=True)
        ]
        known = None not in place and bool(small_space.seen_mask(np.array([place]))[0])
        assert unseen == (not known), names
    assert not mask.all() and mask.any()
    np.testing.assert_array_equal(
        unseen_mask(small_space, small_space.open_pairs, seen), ~small_space.seen_mask(small_space.open_pairs)
    )


def test_the_hash_of_candidates_follows_their_names_and_which_are_seen(small_space):
    own = candidates_sha256(Candidates.build(small_space, split="val"))
    assert own == candidates_sha256(Candidates.build(small_space, small_space.closed_pairs[::-1], split="val"))
    fewer = replace(small_space, val_pairs=small_space.val_pairs[:-1])
    less_seen = replace(small_space, train_pairs=small_space.train_pairs[4:])
    renamed = replace(small_space, objects=("wolf", *small_space.objects[1:]))
    others = [candidates_sha256(Candidates.build(space, split="val")) for space in (fewer, less_seen, renamed)]
    others.append(candidates_sha256(Candidates.build(small_space, open_world=True)))
    assert len({own, *others}) == 5


# -- the file ------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def point():
    scales = {"composition": Scaling(0.7, 1.5), "attribute": Scaling(0.8, -1.0), "object": Scaling(2.0, 0.0)}
    return OperatingPoint(0.95, "val", "seen>=0.5", **scales, facts={**HASHES, "images": 3}, notes=("a note",))


def test_what_is_read_is_what_was_saved(point, tmp_path):
    file = point_file(tmp_path, open_world=True, which="last")
    assert file.name == "operating-point-open-last.json"
    point.save(file)
    assert OperatingPoint.load(file) == point
    assert point.brief() == {"bias": 0.95, "how": "val", "temperature": 0.7, "prob_bias": 1.5}
    assert point.given(2).brief() == {"bias": 2.0, "how": "given", "temperature": 0.7, "prob_bias": 1.5}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 9}, {"bias": None}, {"bias": "1"}, {"bias": True}, {"how": "guess"}, {"for": 3}, {"notes": [1]}, {"notes": None},
        {"checkpoint_sha256": 5}, {"probabilities": {}}, {"probabilities": {"composition": {"temperature": 0, "bias": 0}}},
        {"probabilities": {k: {"temperature": -1.0, "bias": 0.0} for k in ("composition", "attribute", "object")}},
        {"probabilities": {k: {"temperature": 1.0, "bias": 0.0, "x": 1} for k in ("composition", "attribute", "object")}},
    ],
)  # fmt: skip
def test_a_file_that_was_edited_is_refused(point, tmp_path, change):
    file = tmp_path / "point.json"
    file.write_text(json.dumps({**point.to_json(), **change}))
    with pytest.raises(DataError, match="cannot read"):
        OperatingPoint.load(file)


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "null", '{"bias": Infinity}', "[" * 100000])
def test_a_file_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "point.json").write_text(text)
    with pytest.raises(DataError, match="cannot read"):
        OperatingPoint.load(tmp_path / "point.json")
