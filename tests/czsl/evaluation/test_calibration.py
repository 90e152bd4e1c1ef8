"""Probabilities from sums per group against the dense softmax, and what is measured of them against plain definitions."""

import numpy as np
import pytest

from czsl.compositions import CompositionSpace
from czsl.evaluation import Candidates, OperatingPoint, reduce_scores
from czsl.evaluation.calibration import (
    Answers,
    answers,
    best_precision,
    brier_scores,
    calibration_numbers,
    confidence_for,
    expected_calibration_error,
    fit_point,
    fit_scaling,
    log_likelihood,
    named_group,
    reliability,
    risk_numbers,
    temperatures_of,
)
from czsl.evaluation.operating import KINDS, Scaling
from czsl.evaluation.rejection import auroc, best_detector, detector_values, false_positive_rate, rejection_numbers, threshold_for
from czsl.evaluation.sums import GRID, Marginals, Sums, SumsAccumulator, deal_folds, join_marginals


class World:
    """Scores [N, P] with signal, a lean to seen pairs and a known temperature, in a space of 6 attributes and 9 objects."""

    def __init__(self, seed=0, images=300, scale=2.0, lean=1.5, split="val"):
        rng = np.random.default_rng(seed)
        keys = rng.permutation(54)[:40]
        pairs = np.stack(np.divmod(keys, 9), axis=1)
        self.space = CompositionSpace(
            tuple(f"a{i}" for i in range(6)), tuple(f"o{i}" for i in range(9)), pairs[:25],
            np.concatenate([pairs[:10], pairs[25:33]]), np.concatenate([pairs[5:15], pairs[33:]]),
        )  # fmt: skip
        self.candidates = Candidates.build(self.space, split=split)
        own = getattr(self.space, f"{split}_pairs")
        self.labels = own[rng.integers(len(own), size=images)]
        scores = scale * rng.normal(size=(images, 40)) + lean * self.candidates.seen
        scores[np.arange(images), self.space.locate(self.labels, self.candidates.pairs)] += 2.5
        self.scores = scores.astype(np.float32)
        self.extremes = reduce_scores(self.scores, self.labels, self.candidates)

    def sums(self, temperatures=GRID, tile=40, batch=64, log_weights=lambda s: s.astype(np.float64), order=None):
        accumulator = SumsAccumulator(self.candidates, self.labels, temperatures)
        columns = np.arange(40) if order is None else order
        for start in range(0, len(self.labels), batch):
            for first in range(0, 40, tile):
                rows, part = slice(start, start + batch), columns[first : first + tile]
                block = self.scores[rows][:, part]
                accumulator.update(rows, part, log_weights(block), block)
        return accumulator.result()

    def prob(self, scaling, log_weights=lambda s: s.astype(np.float64), without=None):
        """The softmax, written out, float64 [N, P]; 0 for what does not compete."""
        allowed = self.candidates.allowed if without is None else self.candidates.allowed & ~without
        z = log_weights(self.scores) / scaling.temperature + scaling.bias * ~self.candidates.seen
        z = np.where(allowed, z, -np.inf)
        weights = np.exp(z - z.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def right(self, kind):
        """Which pairs make a kind right, bool [N, P]."""
        same = self.candidates.pairs[None] == self.labels[:, None]
        return {"composition": same.all(axis=2), "attribute": same[:, :, 0], "object": same[:, :, 1]}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [40, 7])
@pytest.mark.parametrize("log_weights", [lambda s: s.astype(np.float64), lambda s: np.log(np.abs(s.astype(np.float64)))])
def test_the_likelihood_of_every_temperature_and_bias_is_the_dense_one(kind, tile, log_weights):
    world = World()
    sums = world.sums(tile=tile, log_weights=log_weights, order=np.random.default_rng(1).permutation(40))
    for t in (GRID[3], 1.0, GRID[-1]):
        for bias in (-2.0, 0.0, 1.3):
            scaling = Scaling(float(t), bias)
            dense = np.log((world.prob(scaling, log_weights) * world.right(kind)).sum(axis=1))
            found = log_likelihood(sums, world.extremes.true_seen, scaling, kind)
            np.testing.assert_allclose(found, dense, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_no_temperature_and_bias_are_likelier_than_the_fitted_ones(kind, seed):
    world = World(seed)
    seen = world.extremes.true_seen
    sums = world.sums()
    fitted = fit_scaling(sums, seen, kind)
    loss = -log_likelihood(sums, seen, fitted, kind).mean()
    tried = [-log_likelihood(sums, seen, Scaling(t, b), kind).mean() for t in GRID for b in np.linspace(-3, 6, 91)]
    assert loss <= min(tried) + 1e-6
    assert loss < -log_likelihood(sums, seen, Scaling(), kind).mean()


def test_a_known_temperature_and_bias_are_found():
    rng = np.random.default_rng(0)
    world = World(images=6000)
    true = Scaling(float(GRID[16]), 1.1)
    logits = 3 * rng.normal(size=(6000, 40))
    z = np.where(world.candidates.allowed, logits / true.temperature + true.bias * ~world.candidates.seen, -np.inf)
    drawn = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    world.scores, world.labels = logits.astype(np.float32), world.candidates.pairs[drawn]
    fitted = fit_scaling(world.sums(), world.candidates.seen[drawn])
    assert abs(np.log2(fitted.temperature / true.temperature)) <= 0.25
    assert fitted.bias == pytest.approx(true.bias, abs=0.15)


def test_scaling_never_reorders_a_group():
    world = World()
    order = [np.argsort(-world.prob(s)[:, world.candidates.allowed & g]) for s in (Scaling(), Scaling(3.0, 2.0)) for g in
             (world.candidates.seen, ~world.candidates.seen)]  # fmt: skip
    np.testing.assert_array_equal(order[0], order[2])
    np.testing.assert_array_equal(order[1], order[3])


def test_without_one_group_only_the_temperature_is_fitted():
    world = World()
    for group in (world.extremes.true_seen, ~world.extremes.true_seen):
        part = world.sums().arranged(np.flatnonzero(group))
        fitted = fit_scaling(part, world.extremes.true_seen[group])
        assert fitted.bias == 0
        losses = [-log_likelihood(part, world.extremes.true_seen[group], Scaling(t)).mean() for t in GRID]
        assert fitted.temperature == GRID[np.argmin(losses)]


def test_answers_and_scores_are_the_dense_ones():
    world = World()
    point = OperatingPoint(0.8, "val", composition=Scaling(1.5, 0.9), attribute=Scaling(0.7, 0.3), object=Scaling(2.0, -0.5))
    sums = world.sums(temperatures_of([OperatingPoint(), point]))
    prob = world.prob(point.composition)
    scores = np.where(world.candidates.allowed, world.scores + 0.8 * ~world.candidates.seen.astype(bool), -np.inf)
    named = scores.argmax(axis=1)
    np.testing.assert_array_equal(named_group(world.extremes, 0.8)[1], named)
    found = answers(world.extremes, sums, point)
    np.testing.assert_allclose(found.confidence, prob[np.arange(300), named], rtol=1e-4)
    np.testing.assert_array_equal(found.right, named == world.extremes.true_pair)
    truth = world.right("composition")
    np.testing.assert_allclose(
        brier_scores(sums, world.extremes.true_seen, point.composition), ((prob - truth) ** 2).sum(axis=1), rtol=1e-4, atol=1e-5
    )
    scalings = [(Scaling(), Scaling()), (point.attribute, point.object)]
    marginals = Marginals(world.candidates, world.labels, scalings)
    for start in range(0, 300, 50):
        for tile in (slice(0, 16), slice(16, 40)):
            block = world.scores[start : start + 50, tile]
            marginals.update(slice(start, start + 50), np.arange(40)[tile], block, block)
    values = join_marginals([marginals.result()])
    for i, pair in enumerate(scalings):
        for c, size in enumerate((6, 9)):
            q = world.prob(pair[c]) @ np.eye(size)[world.candidates.pairs[:, c]]
            true = world.labels[:, c]
            expected = np.stack([np.log(q[np.arange(300), true]), (q**2).sum(1), q.max(1), q.argmax(1) == true], axis=1)
            np.testing.assert_allclose(values[:, i, c], expected, rtol=1e-9)
    numbers = calibration_numbers(world.extremes, sums, values, OperatingPoint(), point)
    assert numbers["nll"] == pytest.approx(-np.log(prob[truth]).mean(), rel=1e-4)
    assert numbers["nll_before"] == pytest.approx(-np.log(world.prob(Scaling())[truth]).mean(), rel=1e-4)
    assert numbers["attr_brier_before"] == pytest.approx(
        ((world.prob(Scaling()) @ np.eye(6)[world.candidates.pairs[:, 0]] - np.eye(6)[world.labels[:, 0]]) ** 2).sum(1).mean(),
        rel=1e-6,
    )
    assert len(numbers["reliability"]["after"]) == numbers["ece_bins"] == 15


def test_workers_shares_join_to_the_same():
    world = World()
    whole, parts = world.sums(), []
    for rows in (np.arange(0, 300, 2), np.arange(1, 300, 2)):
        accumulator = SumsAccumulator(world.candidates, world.labels[rows], GRID, rows)
        accumulator.update(slice(None), np.arange(40), world.scores[rows], world.scores[rows])
        parts.append(accumulator.result())
    joined = Sums.concatenate(parts[::-1])
    np.testing.assert_array_equal(joined.index, whole.index)
    np.testing.assert_allclose(joined.total, whole.total, rtol=1e-6)


def test_expected_calibration_error_by_hand():
    confidence = np.array([0.9, 0.8, 0.1, 0.2, 0.95, 0.3])
    right = np.array([True, False, False, True, True, False])
    a = Answers(confidence, right)
    # Three bins of two: (0.1, 0.2), (0.3, 0.8), (0.9, 0.95); right: 1, 0, 2.
    assert expected_calibration_error(a, 3) == pytest.approx((abs(0.15 - 0.5) + abs(0.55 - 0) + abs(0.925 - 1)) / 3)
    assert [row["images"] for row in reliability(a, 4)] == [2, 2, 1, 1]
    assert sum(row["images"] for row in reliability(a, 15)) == 6


def test_risk_and_precision_by_hand():
    a = Answers(np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.1]), np.array([1, 1, 0, 1, 1, 0], bool))
    found = risk_numbers(a)
    assert found["acc_at_100"] == pytest.approx(4 / 6)
    assert found["acc_at_50"] == pytest.approx(2 / 3)
    assert found["aurc"] == pytest.approx(np.mean([0, 0, 1 / 3, 1 / 4, 1 / 5, 2 / 6]))
    assert found["coverage_at_p90"] == pytest.approx(2 / 6)
    assert confidence_for(a, 0.8) == pytest.approx((0.6, 4 / 5, 5 / 6))
    assert confidence_for(a, 0.75) == pytest.approx((0.6, 4 / 5, 5 / 6))  # both images of 0.6 or none
    assert confidence_for(a, 1.0) == pytest.approx((0.8, 1.0, 2 / 6))
    wrong = Answers(np.array([0.9, 0.5]), np.array([False, True]))
    assert confidence_for(wrong, 0.9) is None
    assert best_precision(wrong) == 0.5


# -- none of these -----------------------------------------------------------------------------------------------------------
def test_every_object_is_left_out_once():
    fold = deal_folds(9)
    assert sorted(np.bincount(fold)) == [2, 2, 2, 3]
    np.testing.assert_array_equal(fold, deal_folds(9))
    assert deal_folds(1).tolist() == [0]


def test_detectors_without_a_fold_are_those_of_the_shorter_list():
    world = World()
    point = OperatingPoint(0.8, "val", composition=Scaling(1.5, 0.9))
    sums, fold = world.sums([1.5]), deal_folds(9)
    for out in range(4):
        without = fold[world.candidates.pairs[:, 1]] == out
        left = world.candidates.allowed & ~without
        z = np.where(left, world.scores / 1.5 + 0.9 * ~world.candidates.seen, -np.inf)
        found = detector_values(sums, point, out)
        np.testing.assert_allclose(found["probability"], world.prob(point.composition, without=without).max(axis=1), rtol=1e-4)
        np.testing.assert_allclose(found["energy"], np.log(np.exp(z).sum(axis=1)), rtol=1e-4, atol=1e-4)
        scores = np.where(left, world.scores.astype(np.float64) + 0.8 * ~world.candidates.seen, -np.inf)
        np.testing.assert_allclose(found["score"], scores.max(axis=1), rtol=1e-6)


def test_auroc_and_its_kin_by_counting():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(2, 9, 40).astype(float), rng.integers(0, 7, 30).astype(float)
    wins = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
    assert auroc(inside, outside) == pytest.approx(wins)
    limit = max(t for t in inside if (inside >= t).mean() >= 0.95)
    assert false_positive_rate(inside, outside) == pytest.approx((outside >= limit).mean())
    values = np.arange(100.0)
    for share in (0.0, 0.05, 0.5, 1.0):
        assert (values < threshold_for(values, share)).mean() <= share
    assert (values < threshold_for(values, 0.05)).mean() == 0.05


def test_the_protocol_is_the_mean_over_folds():
    world = World(images=500)
    point = fit_point(world.extremes, world.sums(), OperatingPoint(0.5, "val"))
    sums, fold = world.sums(temperatures_of([point])), deal_folds(9)
    numbers = rejection_numbers(sums, point)
    expected = []
    for out in range(4):
        unknown = fold[world.labels[:, 1]] == out
        values = detector_values(sums, point, out)["energy"]
        expected.append(auroc(values[~unknown], values[unknown]))
    assert numbers["energy"]["auroc"] == pytest.approx(np.mean(expected))
    assert numbers["folds"] == 4 and numbers["seed"] == 0
    best = best_detector(numbers)
    assert numbers[best]["auroc"] == max(numbers[d]["auroc"] for d in ("probability", "score", "energy"))
    assert best_detector(None) is None
    assert best_detector({d: {"auroc": 0.4} for d in ("probability", "score", "energy")}) is None
