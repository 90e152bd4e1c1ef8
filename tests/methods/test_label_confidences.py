"""Weights of candidates against loops written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from czsl.data.files.partial_labels import padded
from methods.parts.label_confidences import LabelConfidences

SETS = [[0, 2], [1], [0, 1, 3, 4], [2, 4], [3]]
PAIRS = np.array([(0, 0), (0, 1), (1, 0), (1, 2), (2, 1)])
N, C = len(SETS), len(PAIRS)


def make(dtype=torch.float64, **settings) -> LabelConfidences:
    return LabelConfidences(padded(SETS), PAIRS, 3, 3, dtype=dtype, **settings)


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(rows) -> torch.Tensor:
    return torch.stack([torch.isin(torch.arange(C), torch.tensor(SETS[r])) for r in rows])


def test_weights_start_uniform_on_the_candidates():
    every = torch.arange(N)
    inside = mask(range(N)).double()
    torch.testing.assert_close(make().dense(every), inside / inside.sum(1, keepdim=True))
    assert torch.equal(make().candidates(every), mask(range(N)))


def test_multihot_starts_with_ones():
    confidences = make()
    confidences.start_multihot()
    assert torch.equal(confidences.dense(torch.arange(N)), mask(range(N)).double())


def test_the_first_weights_of_clip_are_centred_over_images():
    generator = torch.Generator().manual_seed(1)
    images, texts = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (N, C))
    texts = F.normalize(texts, dim=1)
    confidences = make()
    confidences.start_from(images, texts)
    cosines = F.normalize(images, dim=1) @ texts.T
    for row, members in enumerate(SETS):
        powers = torch.exp((cosines[row, members] - cosines[:, members].mean(0)) / 0.05)
        torch.testing.assert_close(
            confidences.dense(torch.tensor([row]))[0, members], powers / powers.sum(), rtol=1e-9, atol=1e-12
        )
    torch.testing.assert_close(confidences.weight_NS.sum(1), torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize(("momentum", "temperature", "eta"), [(1.0, 1.0, 0.0), (0.1, 1.0, 1.0), (0.5, 2.0, 3.0)])
def test_an_update_is_the_loop_over_images(momentum, temperature, eta):
    confidences = make(momentum=momentum, temperature=temperature, relevance=eta)
    rows, x = torch.tensor([4, 2, 0]), logits(3)
    relevance = torch.rand(3, C, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = confidences.dense(torch.arange(N))
    for i, row in enumerate(rows.tolist()):
        p = x[i].softmax(0)
        new = torch.zeros(C, dtype=torch.float64)
        for j in SETS[row]:
            new[j] = p[j] ** (1 / temperature) * relevance[i, j] ** eta
        expected[row] = (1 - momentum) * expected[row] + momentum * new / new.sum()
    confidences.update(rows, x, relevance)
    torch.testing.assert_close(confidences.dense(torch.arange(N)), expected, rtol=1e-7, atol=1e-12)


def test_proden_is_the_restricted_probability():
    """m = 1, eta = 0: p * S / sum (Lv et al., ICML 2020)."""
    confidences, x = make(torch.float32, momentum=1.0, relevance=0.0), logits(N).float()
    confidences.update(torch.arange(N), x, torch.rand(N, C))
    p = x.softmax(1) * mask(range(N))
    torch.testing.assert_close(confidences.dense(torch.arange(N)), p / p.sum(1, keepdim=True), rtol=1e-6, atol=1e-7)


def test_improbable_candidates_still_share_the_weight():
    confidences = make(torch.float32, momentum=1.0)
    x = torch.zeros(1, C)
    x[0, 1] = 1e4  # all of the probability lies outside the candidates 0 and 2
    x[0, 0] = 1.0
    confidences.update(torch.tensor([0]), x)
    torch.testing.assert_close(confidences.dense(torch.tensor([0]))[0, [0, 2]], torch.tensor([1.0, 0.0]).softmax(0))


def test_a_single_candidate_keeps_all_weight_exactly():
    confidences = make(torch.float32)
    for step in range(50):
        confidences.update(torch.arange(N), logits(N, step).float())
    for row in (1, 4):
        assert torch.equal(confidences.dense(torch.tensor([row]))[0], F.one_hot(torch.tensor(SETS[row][0]), C).float())


def test_frozen_weights_and_momentum_0_stay():
    frozen, fixed = make(), make(momentum=0.0)
    frozen.frozen = True
    for confidences in (frozen, fixed):
        before = confidences.weight_NS.clone()
        confidences.update(torch.arange(N), logits(N))
        assert torch.equal(confidences.weight_NS, before)


def test_targets_are_marginals_and_the_likeliest_pair():
    confidences = make(momentum=1.0)
    confidences.update(torch.arange(N), logits(N))
    rows = torch.tensor([2, 0])
    targets, pair = confidences.targets(rows), confidences.dense(rows)
    for place in range(3):
        torch.testing.assert_close(targets.attribute[:, place], pair[:, PAIRS[:, 0] == place].sum(1))
        torch.testing.assert_close(targets.object[:, place], pair[:, PAIRS[:, 1] == place].sum(1))
    best = pair.argmax(1)
    assert torch.equal(confidences.top1(rows), best)
    assert torch.equal(torch.stack(targets.hard, 1), torch.from_numpy(PAIRS)[best])


def test_rescue_looks_beyond_the_candidates():
    confidences = make(momentum=1.0, relevance=0.0, rescue=0.05)
    every, x = torch.arange(N), logits(N)
    inside = mask(range(N)).double()
    assert torch.equal(confidences.candidates(every), mask(range(N)))
    torch.testing.assert_close(confidences.dense(every), inside / inside.sum(1, keepdim=True))
    confidences.update(every, x)
    p = x.softmax(1)
    restricted = p * inside / (p * inside).sum(1, keepdim=True)
    torch.testing.assert_close(confidences.dense(every), 0.95 * restricted + 0.05 * p)
