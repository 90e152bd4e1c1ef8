"""Rankings against sorting and summing in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from czsl.evaluation.operating import OperatingPoint, Scaling
from methods.parts.ranking import Ranking, top_pairs


@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=5), st.integers(1, 6))
def test_the_best_come_first_and_ties_in_order_of_place(rows, k):
    values, places = top_pairs(torch.tensor(rows, dtype=torch.float32), k)
    for row, value, place in zip(rows, values.tolist(), places.tolist(), strict=True):
        expected = sorted(range(4), key=lambda i: (-row[i], i))[:k]
        assert place == expected
        assert value == [row[i] for i in expected]


def ranked(scores, pairs, space, k, widths=None):
    """Records from scores whose softmax is the probability, added in tiles of these widths."""
    ranking = Ranking(pairs, space, k)
    for tile in scores.split(widths or [scores.shape[1]], dim=1):
        ranking.add(tile, tile.double())
    return ranking.records()


@given(st.integers(0, 2**32 - 1), st.integers(1, 29), st.integers(1, 8))
def test_any_tiles_give_the_ranking_of_plain_python(small_space, seed, cut, k):
    """Ties, large scores, and the largest one in any tile."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(small_space.open_pairs)
    scores = torch.from_numpy(rng.integers(-4, 4, (2, len(pairs))) * rng.choice([1.0, 0.1, 400.0])).float()
    whole = ranked(scores, pairs, small_space, k)
    tiled = ranked(scores, pairs, small_space, k, [cut, len(pairs) - cut])
    for row, record, other in zip(scores.tolist(), whole, tiled, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        assert [(p["attr"], p["obj"], p["score"]) for p in record["predictions"]] == [
            (*small_space.pair_names(pairs[i]), row[i]) for i in order
        ]
        weights = [math.exp(s - max(row)) for s in row]
        for found, i in zip(record["predictions"], order, strict=True):
            assert found["prob"] == pytest.approx(weights[i] / sum(weights), abs=2e-6)
        for found, same in zip(other["predictions"], record["predictions"], strict=True):
            assert found == {**same, "prob": pytest.approx(same["prob"], abs=2e-6)}  # sums of tiles round on their own
        for kind, column, names in (("attributes", 0, small_space.attributes), ("objects", 1, small_space.objects)):
            share = {
                n: sum(w for w, p in zip(weights, pairs, strict=True) if names[p[column]] == n) / sum(weights) for n in names
            }
            for found in (record[kind], other[kind]):
                assert len(found) == min(k, len(names))
                assert all(x["prob"] == pytest.approx(share[x["name"]], abs=2e-6) for x in found)
                assert found[0]["prob"] == pytest.approx(max(share.values()), abs=2e-6)


def test_the_probability_of_one_candidate_is_among_all(small_space):
    scores = torch.tensor([[1.0, 2.0, 0.0, 5.0]])
    ranking = Ranking(small_space.open_pairs[:4], small_space, 1)
    for tile in scores.split([1, 2, 1], dim=1):
        ranking.add(tile, tile.double())
    torch.testing.assert_close(ranking.probability(scores.double()), scores.double().softmax(1))


def test_records_name_pairs_and_primitives(small_space):
    pairs = np.array([[0, 0], [1, 0], [0, 1]])  # wet dog, dry dog, wet cat
    scores = torch.log(torch.tensor([[1.0, 2.0, 5.0], [6.0, 1.0, 1.0]]))
    first, second = ranked(scores, pairs, small_space, 2)
    assert [(p["attr"], p["obj"]) for p in first["predictions"]] == [("wet", "cat"), ("dry", "dog")]
    assert first["predictions"][0]["score"] == pytest.approx(math.log(5), rel=1e-6)
    assert first["attributes"] == [{"name": "wet", "prob": 0.75}, {"name": "dry", "prob": 0.25}]
    assert first["objects"] == [{"name": "cat", "prob": 0.625}, {"name": "dog", "prob": 0.375}]
    assert [(p["attr"], p["obj"]) for p in second["predictions"]] == [("wet", "dog"), ("dry", "dog")]  # a tie: the first


def test_more_than_there_are_gives_all(small_space):
    (record,) = ranked(torch.zeros(1, 2), np.array([[0, 0], [1, 1]]), small_space, 50)
    assert len(record["predictions"]) == 2
    assert len(record["attributes"]) == small_space.num_attributes


def test_no_images_give_no_records(small_space):
    assert ranked(torch.zeros(0, 2), np.array([[0, 0], [1, 1]]), small_space, 5) == []


@given(st.integers(0, 2**32 - 1), st.integers(1, 29), st.floats(-3, 3))
def test_a_point_ranks_with_its_bias_and_scales_probabilities(small_space, seed, cut, bias):
    """Against the softmax, written out; log-weights that are not the scores, any tiles."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(small_space.open_pairs)
    scores = torch.from_numpy(rng.integers(1, 9, (2, len(pairs))) * rng.choice([1.0, 30.0])).float()
    unseen = ~small_space.seen_mask(pairs)
    point = OperatingPoint(bias, "val", composition=Scaling(0.5, 1.0), attribute=Scaling(2.0, -0.5), object=Scaling(0.5, 1.0))
    ranking = Ranking(pairs, small_space, 4, point, unseen)
    weights = scores.double().log()
    for tile, own in zip(scores.split([cut, len(pairs) - cut], 1), weights.split([cut, len(pairs) - cut], 1), strict=True):
        ranking.add(tile, own)
    probs = [(weights / s.temperature + s.bias * torch.from_numpy(unseen).double()).softmax(1) for s in point.scalings]
    calibrated = scores.double() + bias * torch.from_numpy(unseen).double()
    detectors = ranking.detectors()
    for b, record in enumerate(ranking.records()):
        order = sorted(range(len(pairs)), key=lambda i: (-float(calibrated[b, i]), i))[:4]
        for found, i in zip(record["predictions"], order, strict=True):
            assert (found["attr"], found["obj"]) == small_space.pair_names(pairs[i])
            assert found["score"] == float(scores[b, i])
            assert found["calibrated"] == float(calibrated[b, i])
            assert found["prob"] == pytest.approx(float(probs[0][b, i]), abs=2e-6)
        assert float(ranking.confidence()[b]) == pytest.approx(float(probs[0][b, order[0]]))
        for kind, column, prob in (("attributes", 0, probs[1]), ("objects", 1, probs[2])):
            names = small_space.vocabulary[kind]
            share = {name: float(prob[b, pairs[:, column] == i].sum()) for i, name in enumerate(names)}
            assert all(x["prob"] == pytest.approx(share[x["name"]], abs=2e-6) for x in record[kind])
        z = weights[b] / 0.5 + torch.from_numpy(unseen)
        assert float(detectors["energy"][b]) == pytest.approx(float(z.logsumexp(0)))
        assert float(detectors["probability"][b]) == pytest.approx(float(probs[0][b].max()))
        assert float(detectors["score"][b]) == float(calibrated[b].max())
