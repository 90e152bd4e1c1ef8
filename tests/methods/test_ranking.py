"""Rankings against sorting and summing in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from methods.parts.ranking import marginals, rank_compositions, top_pairs


@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=5), st.integers(1, 6))
def test_the_best_come_first_and_ties_in_order_of_place(rows, k):
    values, places = top_pairs(torch.tensor(rows, dtype=torch.float32), k)
    for row, value, place in zip(rows, values.tolist(), places.tolist(), strict=True):
        expected = sorted(range(4), key=lambda i: (-row[i], i))[:k]
        assert place == expected
        assert value == [row[i] for i in expected]


@given(st.integers(0, 2**32 - 1))
def test_marginals_are_sums_of_the_softmax(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(3, 6)) * 30, rng.integers(0, 4, 6)
    found = marginals(torch.from_numpy(scores).float().double().softmax(1), torch.from_numpy(labels), 4).tolist()
    for row, probabilities in zip(scores.astype(np.float32).tolist(), found, strict=True):
        weights = [math.exp(s - max(row)) for s in row]
        for label in range(4):
            share = sum(w for w, own in zip(weights, labels, strict=True) if own == label) / sum(weights)
            assert probabilities[label] == pytest.approx(share, abs=1e-9)


def test_marginals_of_large_scores_stay_finite():
    found = marginals(torch.tensor([[1000.0, 999.0, -1000.0]]).double().softmax(1), torch.tensor([0, 1, 1]), 3)
    e = math.exp(-1)
    torch.testing.assert_close(found, torch.tensor([[1 / (1 + e), e / (1 + e), 0.0]], dtype=torch.float64))


def test_records_name_pairs_and_primitives(small_space):
    pairs = np.array([[0, 0], [1, 0], [0, 1]])  # wet dog, dry dog, wet cat
    scores = torch.log(torch.tensor([[1.0, 2.0, 5.0], [6.0, 1.0, 1.0]]))
    first, second = rank_compositions(scores, scores.double().softmax(1), pairs, small_space, k=2)
    assert [(p["attr"], p["obj"]) for p in first["predictions"]] == [("wet", "cat"), ("dry", "dog")]
    assert first["predictions"][0]["score"] == pytest.approx(math.log(5), rel=1e-6)
    assert first["attributes"] == [{"name": "wet", "prob": 0.75}, {"name": "dry", "prob": 0.25}]
    assert first["objects"] == [{"name": "cat", "prob": 0.625}, {"name": "dog", "prob": 0.375}]
    assert [(p["attr"], p["obj"]) for p in second["predictions"]] == [("wet", "dog"), ("dry", "dog")]  # a tie: the first


def test_more_than_there_are_gives_all(small_space):
    (record,) = rank_compositions(torch.zeros(1, 2), torch.full((1, 2), 0.5), np.array([[0, 0], [1, 1]]), small_space, k=50)
    assert len(record["predictions"]) == 2
    assert len(record["attributes"]) == small_space.num_attributes


def test_no_images_give_no_records(small_space):
    assert rank_compositions(torch.zeros(0, 2), torch.zeros(0, 2), np.array([[0, 0], [1, 1]]), small_space, k=5) == []
