"""LaZSL's transport: plans against the POT library, the algebra that decides the implementation, candidates solved together."""

from dataclasses import replace

import ot
import pytest
import torch
from torch.nn.functional import normalize

from methods.lazsl.config import LaZSLConfig
from methods.lazsl.phrases import bank_of
from methods.lazsl.regions import region_features
from methods.lazsl.scoring import PhraseFeatures, local_scores, mixed_scores, transported_scores
from methods.lazsl.solver import interaction, plan_of, scaling_plan

THETA, EPS = 0.8, 0.1
STRENGTH = THETA / EPS
SOLVERS = ("sinkhorn", "log", "second_order", "uniform")


def problem(N=7, R=20, spread=0.05, seed=0, dropped=6):
    """Similarities [1, N, R] around 0.25, phrase weights, region masses of which some are 0; float64."""
    make = torch.Generator().manual_seed(seed)
    s = 0.25 + spread * torch.randn(1, N, R, dtype=torch.float64, generator=make)
    weight = torch.rand(1, N, dtype=torch.float64, generator=make) + 0.2
    mass = torch.ones(1, R, dtype=torch.float64)
    mass[0, torch.randperm(R, generator=make)[:dropped]] = 0
    return s, weight / weight.sum(), mass / mass.sum()


def features_of(counts, images=3, regions=12, dim=32, seed=0):
    """Packed image features and a bank of labels with these numbers of phrases, in float64, alike as CLIP's are."""
    make = torch.Generator().manual_seed(seed)
    common = torch.randn(dim, dtype=torch.float64, generator=make)
    phrases = normalize(common + torch.randn(sum(counts), dim, dtype=torch.float64, generator=make), dim=-1)
    whole = torch.randn(images, 1, dim, dtype=torch.float64, generator=make) + 0.3 * common
    views = whole + 0.7 * torch.randn(images, 1 + regions, dim, dtype=torch.float64, generator=make)
    texts = [str(i) for i in range(sum(counts))]
    return views.flatten(1), bank_of([str(i) for i in range(len(counts))], texts, phrases, counts)


def class_text(bank):
    return PhraseFeatures(torch.arange(len(bank.count))[:, None], bank.mean, banks=(bank,), shares=(1.0,))


def pair_text(attributes, objects, share, pairs=None):
    pairs = (
        torch.cartesian_prod(torch.arange(len(attributes.count)), torch.arange(len(objects.count))) if pairs is None else pairs
    )
    whole = share * attributes.mean[pairs[:, 0]] + (1 - share) * objects.mean[pairs[:, 1]]
    return PhraseFeatures(pairs, whole, banks=(attributes, objects), shares=(share, 1 - share))


def plain_score(whole, regions, phrases, weight, config, rounds=2000):
    """Steps 4 to 7 of the method for one image and one candidate, written out; local and full score."""
    kept = []
    likeness = [float(r @ whole) for r in regions]
    for r, rho in zip(regions, likeness, strict=True):
        if rho >= sum(likeness) / len(likeness) + config.select_shift - 1e-6:
            kept.append(r)
    kept = torch.stack(kept or list(regions))
    s, q = kept @ phrases.T, phrases @ whole
    h = config.theta * s + (1 - config.theta) * q
    a = torch.full((len(kept),), 1 / len(kept), dtype=h.dtype)
    kernel = torch.exp(-(1 - h) / config.eps)
    v = torch.ones_like(weight)
    for _ in range(rounds):
        u = a / (kernel @ v)
        v = weight / (kernel.T @ u)
    plan = u[:, None] * kernel * v
    return float((plan * s).sum()), float((plan * h).sum())


# -- plans ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("N", [1, 2, 7])
def test_plans_are_those_of_the_pot_library(seed, N):
    s, weight, mass = problem(N=N, seed=seed)
    kept = mass[0] > 0
    q = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    cost = 1 - (THETA * s[0].T + (1 - THETA) * q)  # the paper's hybrid cost, regions by phrases
    theirs = ot.sinkhorn(mass[0, kept].numpy(), weight[0].numpy(), cost[kept].numpy(), reg=EPS, stopThr=1e-14, numItermax=10_000)
    for solver in ("sinkhorn", "log"):
        plan = plan_of(solver, s, weight, mass, STRENGTH, 1e-13)[0].T
        assert (plan[kept] - torch.from_numpy(theirs)).abs().max() < 1e-10
        assert (plan[~kept] == 0).all()


@pytest.mark.parametrize("eps", [0.1, 0.02, 0.005])
def test_the_log_domain_agrees_with_scaling_and_with_pot_where_eps_is_small(eps):
    s, weight, mass = problem(spread=0.1)
    kept = mass[0] > 0
    log = plan_of("log", s, weight, mass, THETA / eps)
    if eps >= 0.01:  # below, 100 rounds of scaling are not enough, and the settings refuse it
        assert (log - plan_of("sinkhorn", s, weight, mass, THETA / eps, 1e-13)).abs().max() < 1e-6
    theirs = ot.bregman.sinkhorn_log(
        mass[0, kept].numpy(), weight[0].numpy(), -THETA * s[0].T[kept].numpy(), reg=eps, stopThr=1e-13, numItermax=100_000
    )
    assert (log[0].T[kept] - torch.from_numpy(theirs)).abs().max() < 1e-10


@pytest.mark.parametrize("solver", SOLVERS)
def test_margins(solver):
    s, weight, mass = problem()
    plan = plan_of(solver, s, weight, mass, STRENGTH, 1e-13)
    assert (plan.sum(2) - weight).abs().max() < 1e-14
    assert (plan.sum(1) - mass).abs().max() < 1e-13


def test_a_similarity_of_the_whole_image_changes_no_plan():
    s, weight, mass = problem()
    q = torch.randn(1, 7, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hybrid = plan_of("sinkhorn", s + (1 - THETA) / THETA * q, weight, mass, STRENGTH, 1e-14)
    assert (hybrid - plan_of("sinkhorn", s, weight, mass, STRENGTH, 1e-14)).abs().max() < 1e-14


def test_without_strength_the_plan_is_the_product_of_its_margins():
    s, weight, mass = problem()
    product = weight[:, :, None] * mass[:, None]
    for solver in ("sinkhorn", "second_order", "uniform"):
        assert (plan_of(solver, s, weight, mass, 0.0) - product).abs().max() < 1e-16
    assert (plan_of("sinkhorn", s, weight, mass, 1e-9) - product).abs().max() < 1e-9  # eps without end


def test_one_phrase_takes_the_mean_of_the_kept_regions():
    s, weight, mass = problem(N=1)
    for solver in SOLVERS:
        score = (plan_of(solver, s, weight, mass, STRENGTH) * s).sum()
        assert abs(score - s[0, 0, mass[0] > 0].mean()) < 1e-7


def test_problems_of_a_batch_do_not_touch_each_other():
    parts = [problem(spread=0.01 * 4**i, seed=i) for i in range(4)]
    s, weight, mass = (torch.cat(x) for x in zip(*parts, strict=True))
    together = scaling_plan(s.float(), weight.float(), mass.float(), STRENGTH)
    for i, (s_1, weight_1, mass_1) in enumerate(parts):
        assert torch.equal(together[i : i + 1], scaling_plan(s_1.float(), weight_1.float(), mass_1.float(), STRENGTH))


# -- the expansion -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spread", [0.01, 0.02, 0.04])
def test_the_expansion_is_off_by_the_cube_of_the_interaction(spread):
    s, weight, mass = problem(N=6, R=45, spread=spread)
    exact = (plan_of("sinkhorn", s, weight, mass, STRENGTH, 1e-13) * s).sum()
    expanded = (plan_of("second_order", s, weight, mass, STRENGTH) * s).sum()
    centred = interaction(s, weight, mass)
    product = weight[:, :, None] * mass[:, None]
    assert abs(exact - expanded) < STRENGTH**2 * (product * centred.abs() ** 3).sum()
    # and the expansion is mean + strength * variance of the interaction
    assert abs(expanded - (product * s).sum() - STRENGTH * (product * centred**2).sum()) < 1e-14


@pytest.mark.parametrize("share", [0.5, 0.8, 0.0, 1.0])
def test_the_factorised_table_is_the_expansion_of_each_pair(share):
    packed, attributes = features_of([3, 1, 5], seed=1)
    _, objects = features_of([2, 6, 4, 1], seed=2)
    config = LaZSLConfig(solver="second_order", attribute_share=share)
    images, text = region_features(packed, 32, config), pair_text(attributes, objects, share)
    table = local_scores(images, text, config)
    one_by_one = transported_scores(images, text, config)
    assert (table - one_by_one).abs().max() < 1e-13
    mean = local_scores(images, text, replace(config, solver="uniform"))
    assert (mean - transported_scores(images, text, replace(config, solver="uniform"))).abs().max() < 1e-13
    assert (table - mean).abs().max() > 1e-4  # transport does something here


# -- whole scores --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("solver", ["sinkhorn", "log"])
def test_scores_of_classes_are_those_of_a_plain_loop(solver):
    packed, bank = features_of([1, 4, 7, 10, 4, 2])
    config = LaZSLConfig(solver=solver)
    views = normalize(packed.view(3, 13, 32), dim=-1)
    got = mixed_scores(region_features(packed, 32, config), class_text(bank), config)
    phrases = bank.features.split(bank.count.tolist())
    for b in range(3):
        for c, own in enumerate(phrases):
            weight = torch.full((len(own),), 1 / len(own), dtype=torch.float64)
            assert abs(plain_score(views[b, 0], views[b, 1:], own, weight, config)[1] - got[b, c]) < 1e-6


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_scores_of_pairs_are_those_of_a_plain_loop(share):
    packed, attributes = features_of([3, 1, 5], seed=1)
    _, objects = features_of([2, 6], seed=2)
    config = LaZSLConfig(attribute_share=share)
    views = normalize(packed.view(3, 13, 32), dim=-1)
    text = pair_text(attributes, objects, share)
    got = mixed_scores(region_features(packed, 32, config), text, config)
    own_a, own_o = (bank.features.split(bank.count.tolist()) for bank in (attributes, objects))
    for b in range(3):
        for p, (a, o) in enumerate(text.pairs.tolist()):
            sides = (own_a[a], share), (own_o[o], 1 - share)
            weight = torch.cat([torch.full((len(x),), w / len(x), dtype=torch.float64) for x, w in sides])
            plain = plain_score(views[b, 0], views[b, 1:], torch.cat([own_a[a], own_o[o]]), weight, config)[1]
            assert abs(plain - got[b, p]) < 1e-6


def test_the_score_splits_into_the_description_baseline_and_the_regions():
    packed, bank = features_of([1, 4, 7])
    config, text = LaZSLConfig(), class_text(bank)
    images = region_features(packed, 32, config)
    baseline = torch.stack([(images.pair @ own.T).mean(1) for own in bank.features.split([1, 4, 7])], dim=1)
    got = mixed_scores(images, text, config)
    assert (got - 0.2 * baseline - 0.8 * local_scores(images, text, config)).abs().max() < 1e-14
    assert (mixed_scores(images, text, LaZSLConfig(theta=0.0)) - baseline).abs().max() < 1e-14
    alone = region_features(packed[:, :32], 32, config)  # no regions: the whole image is the only one
    assert (mixed_scores(alone, text, config) - baseline).abs().max() < 1e-7


@pytest.mark.parametrize("solver", ["sinkhorn", "second_order"])
def test_chunks_and_tiles_change_nothing(solver, monkeypatch):
    packed, attributes = features_of([3, 1, 5, 3], seed=1)
    _, objects = features_of([2, 6, 4, 2], seed=2)
    config = LaZSLConfig(solver=solver)
    images, text = region_features(packed.float(), 32, config), pair_text(attributes, objects, 0.5)
    for bank in (attributes, objects):
        bank.features, bank.mean = bank.features.float(), bank.mean.float()
    text = pair_text(attributes, objects, 0.5)
    whole = mixed_scores(images, text, config)
    tiles = [mixed_scores(images, text.tile(s, s + 5), config) for s in range(0, len(text), 5)]
    assert (torch.cat(tiles, dim=1) - whole).abs().max() < 1e-6
    monkeypatch.setattr("methods.lazsl.scoring.CHUNK_CPU", 100)
    assert (mixed_scores(region_features(packed.float(), 32, config), text, config) - whole).abs().max() < 1e-6


def test_an_empty_list_of_candidates_or_images_has_no_scores():
    packed, bank = features_of([2, 3])
    config, text = LaZSLConfig(), class_text(bank)
    assert mixed_scores(region_features(packed, 32, config), text.tile(0, 0), config).shape == (3, 0)
    assert mixed_scores(region_features(packed[:0], 32, config), text, config).shape == (0, 2)
