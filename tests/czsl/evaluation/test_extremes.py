import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_problems import make_problem, problems

from czsl.errors import DataError
from czsl.evaluation import Candidates, Extremes, ExtremesAccumulator, reduce_scores


def _candidates(problem, with_feasibility=True):
    feasibility = problem.feasibility if with_feasibility and problem.open_world else None
    return Candidates.build(problem.space, problem.pairs, open_world=problem.open_world, feasibility=feasibility)


def _assert_same(first, second):
    for field in dataclasses.fields(Extremes):
        one, other = getattr(first, field.name), getattr(second, field.name)
        assert one.dtype == other.dtype, field.name
        np.testing.assert_array_equal(one, other, err_msg=field.name)


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(1, 4))
def test_every_number_by_full_sorting(problem, k):
    candidates = _candidates(problem)
    e = reduce_scores(problem.scores, problem.labels, candidates, k)
    for i, scores in enumerate(problem.scores):
        groups = [(problem.seen, scores, e.seen_score[i], e.seen_pair[i])]
        for level, threshold in enumerate([-np.inf, *candidates.thresholds]):
            unseen = problem.allowed & ~problem.seen & (problem.feasibility >= threshold)
            groups.append((unseen, scores, e.unseen_score[i, level], e.unseen_pair[i, level]))
            groups.append((unseen, scores + np.float32(1000), None, e.shifted_pair[i, level]))
        for mask, values, got_values, got_pairs in groups:
            columns = np.flatnonzero(mask)
            best = columns[np.argsort(-values[columns], kind="stable")][:k]
            assert got_pairs[: len(best)].tolist() == best.tolist()
            assert (got_pairs[len(best) :] == -1).all()
            if got_values is not None:
                assert got_values[: len(best)].tolist() == values[best].tolist()
                assert np.isneginf(got_values[len(best) :]).all()
        true = problem.true[i]
        assert e.true_score[i] == (scores[true] if problem.allowed[true] else -np.inf)


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(1, 3), st.data())
def test_any_tiling_gives_the_same_bits(problem, k, data):
    candidates = _candidates(problem)
    whole = reduce_scores(problem.scores, problem.labels, candidates, k)
    width = len(problem.pairs)
    columns = np.array(data.draw(st.permutations(range(width))))
    cuts = sorted(data.draw(st.sets(st.integers(1, width - 1), max_size=4)))
    accumulator = ExtremesAccumulator(candidates, problem.labels, k)
    for tile in np.split(columns, cuts):
        split = data.draw(st.integers(0, len(problem.labels)))
        for rows in (slice(0, split), np.arange(split, len(problem.labels))):
            accumulator.update(rows, tile, problem.scores[rows][:, tile])
    _assert_same(accumulator.result(), whole)


@settings(max_examples=20, deadline=None)
@given(problems(), st.data())
def test_workers_join_to_the_same_bits(problem, data):
    candidates = _candidates(problem)
    whole = reduce_scores(problem.scores, problem.labels, candidates)
    images = np.array(data.draw(st.permutations(range(len(problem.labels)))))
    parts = []
    for share in np.array_split(images, min(3, len(images))):
        accumulator = ExtremesAccumulator(candidates, problem.labels[share], index=share)
        for tile in candidates.tiles(16):
            accumulator.update(slice(None), tile, problem.scores[share][:, tile])
        parts.append(accumulator.result())
    _assert_same(Extremes.concatenate(parts), whole)


def test_blocks_inside_an_update(monkeypatch):
    problem = make_problem(5, "ties", True, 12)
    whole = reduce_scores(problem.scores, problem.labels, _candidates(problem), 2)
    monkeypatch.setattr("czsl.evaluation.extremes.BLOCK", 40)
    _assert_same(reduce_scores(problem.scores, problem.labels, _candidates(problem), 2), whole)


def test_tiles_cover_what_competes_and_are_wide():
    problem = make_problem(1, open_world=False)
    candidates = _candidates(problem)
    assert sorted(np.concatenate(list(candidates.tiles(16)))) == np.flatnonzero(problem.allowed).tolist()
    group = candidates.group[candidates.order]
    assert (np.diff(group) <= 0).all()
    with pytest.raises(ValueError, match="tiles of 8"):
        next(candidates.tiles(8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_score_that_is_no_float32_number_is_named(value):
    problem = make_problem(3)
    problem.scores = problem.scores.astype(np.float64)
    problem.scores[4, 2] = value
    with pytest.raises(DataError) as error:
        reduce_scores(problem.scores, problem.labels, _candidates(problem), source="run.npz")
    message = str(error.value)
    assert "run.npz" in message and "image 4" in message and "pair 2" in message
    assert problem.space.pair_name(problem.pairs[2]) in message


def test_missing_and_doubled_tiles_are_refused():
    problem = make_problem(3, open_world=True)
    accumulator = ExtremesAccumulator(_candidates(problem), problem.labels)
    accumulator.update(slice(None), 0, problem.scores[:, :5])
    with pytest.raises(ValueError, match="got 5 scores"):
        accumulator.result()
    accumulator.update(slice(None), 5, problem.scores[:, 5:])
    accumulator.result()
    accumulator.update(slice(0, 1), 0, problem.scores[:1, :5])
    with pytest.raises(ValueError, match="feed every tile once"):
        accumulator.result()


def test_misshapen_tile():
    problem = make_problem(3)
    accumulator = ExtremesAccumulator(_candidates(problem), problem.labels)
    with pytest.raises(ValueError, match="a tile of shape"):
        accumulator.update(slice(0, 2), [0, 1, 2], problem.scores[:2, :2])


def test_concatenate_refuses_doubles_and_strangers():
    problem = make_problem(3)
    one = reduce_scores(problem.scores, problem.labels, _candidates(problem))
    with pytest.raises(ValueError, match="image 0 was evaluated twice"):
        Extremes.concatenate([one, one])
    with pytest.raises(ValueError, match="differ in top-k"):
        Extremes.concatenate([one, reduce_scores(problem.scores, problem.labels, _candidates(problem), 2)])
    with pytest.raises(DataError, match="no image"):
        Extremes.concatenate([])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 0], [9, 0]], "image 1 has attribute 9"),
        ([[0, 0], [0, -1]], "image 1 has object -1"),
        (np.empty((0, 2), int), "no images"),
        ([[0.0, 1.0]], "give integers"),
        (([0, 1], [0]), "two vectors of one length"),
    ],
)
def test_bad_labels(labels, message):
    problem = make_problem(3, open_world=True)
    with pytest.raises((DataError, ValueError), match=message):
        ExtremesAccumulator(_candidates(problem), labels)


def test_a_true_pair_without_a_column():
    problem = make_problem(3)
    there = problem.space.locate(problem.labels, problem.pairs)
    keep = np.arange(len(problem.pairs)) != there[0]
    candidates = Candidates.build(problem.space, problem.pairs[keep])
    with pytest.raises(DataError, match=r"image 0 shows .* not a candidate"):
        ExtremesAccumulator(candidates, problem.labels)
