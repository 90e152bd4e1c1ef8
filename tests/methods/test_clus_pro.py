"""ClusPro's settings, losses, scores and training on features with known clusters."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from clus_pro_fixtures import PRESETS, clustered, preset
from hsic_plain import plain_hsic, plain_kernel
from torch.nn import functional as F

from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from czsl.runs.config import RunConfig
from methods.clus_pro import contrast
from methods.clus_pro.contrast import prototype_contrast
from methods.clus_pro.hsic import normalised_hsic
from methods.clus_pro.model import ClusPro, ClusProConfig
from methods.parts.heads import Disentangler

NAMES = ("default", "paper", "released")


def make(space, clip, name="default", **changes):
    torch.manual_seed(0)
    return ClusPro(space, clip, preset(name, **{"adapter_dim": 0, **changes}))


def batch_of(data, rows):
    return {k: v[rows] for k, v in zip(("features", "attr", "obj", "pair"), data, strict=True)}


# -- settings ------------------------------------------------------------------------------------------------------
def test_every_key_of_the_presets_is_a_field():
    known = set(ClusProConfig.__dataclass_fields__) | set(RunConfig.field_names())
    assert set(PRESETS) == {"presets", "recipes", "search"}
    assert set(PRESETS["presets"]) == set(NAMES)
    assert set(PRESETS["recipes"]) == {"mit-states", "ut-zappos", "cgqa", "small", "toy"}
    for kind in (PRESETS["presets"], PRESETS["recipes"]):
        for name, settings in kind.items():
            assert set(settings) <= known, name
            RunConfig(**{k: v for k, v in settings.items() if k in RunConfig.field_names()})
            ClusProConfig(**{k: v for k, v in settings.items() if k in ClusProConfig.__dataclass_fields__})


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 3},
        {"cost": "cosine"},
        {"momentum": 1.5},
        {"pcl_tau": 0.0},
        {"pdl_terms": (1.0,)},
        {"object_branch_bug": True},
        {"bn_mode": "released", "heads": 1},
        {"num_prototypes": 0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ClusProConfig(**wrong)


# -- losses --------------------------------------------------------------------------------------------------------
def contrast_by_copies(z, rows, targets, tau, keep):
    """As the public program does it: a copy of the prototypes for each image, masked, then cosines."""
    total = 0.0
    for anchors, own in zip(z, targets, strict=True):
        logits = [F.cosine_similarity(a[None], rows * keep[b] / 0.5, dim=1) / tau for b, a in enumerate(anchors)]
        total = total + F.cross_entropy(torch.stack(logits), own)
    return total


@pytest.mark.parametrize("chunk", [10**9, 800])
def test_contrast_with_dropout_is_that_of_copies_under_their_own_masks(chunk, monkeypatch):
    monkeypatch.setattr(contrast, "MASKED_ELEMENTS", {"cpu": chunk})
    draw = torch.Generator().manual_seed(0)
    z, rows = torch.randn(2, 6, 40, generator=draw), torch.randn(9, 40, generator=draw).relu()
    targets = torch.randint(9, (2, 6), generator=draw)
    inputs = [x.double().requires_grad_() for x in (z, rows, z, rows)]
    torch.manual_seed(4)
    keep = torch.cat([kept for _, kept in contrast.masks(6, inputs[1], 0.5, int(torch.randint(2**62, ())))])
    assert keep.shape == (6, 9, 40)
    torch.manual_seed(4)
    ours = prototype_contrast(inputs[0], inputs[1], targets, 0.1, 0.5)
    ours.backward()
    expected = contrast_by_copies(inputs[2], inputs[3], targets, 0.1, keep)
    expected.backward()
    torch.testing.assert_close(ours, expected)
    for got, wanted in zip(inputs[:2], inputs[2:], strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_masks_keep_their_share_and_nothing_repeats(dropout):
    kept = torch.cat([m for _, m in contrast.masks(300, torch.ones(9, 40), dropout, seed=3)])
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert float(kept.mean()) == pytest.approx(1 - dropout, abs=0.005)
    for axis in (0, 1, 2):  # independent along images, rows and elements
        a, b = kept.narrow(axis, 0, kept.shape[axis] - 1), kept.narrow(axis, 1, kept.shape[axis] - 1)
        assert float((a * b).mean()) == pytest.approx((1 - dropout) ** 2, abs=0.01)
    assert torch.equal(kept, torch.cat([m for _, m in contrast.masks(300, torch.ones(9, 40), dropout, seed=3)]))


def test_an_image_that_keeps_nothing_of_a_row_has_no_gradient_through_it():
    z, rows = torch.ones(1, 2, 3, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    cosines = contrast.MaskedCosines.apply(z, rows, 0.5, 0)
    cosines.sum().backward()
    assert torch.equal(cosines, torch.zeros(1, 2, 4))
    assert z.grad.isfinite().all()
    assert rows.grad.isfinite().all()


def test_unbiased_hsic_is_the_mean_over_quadruples_of_images():
    x, y = (torch.randn(6, 4, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    k, l = plain_kernel(x), plain_kernel(y)

    def over_quadruples(k, l):
        from itertools import permutations

        terms = [k[a, b] * (l[a, b] + l[c, d] - 2 * l[a, c]) for a, b, c, d in permutations(range(6), 4)]
        return torch.stack(terms).mean()

    expected = over_quadruples(k, l) / (over_quadruples(k, k) * over_quadruples(l, l)).sqrt()
    torch.testing.assert_close(normalised_hsic(x, y, "unbiased"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 9, 24])
def test_hsic_and_its_gradients_are_those_of_the_plain_form(images, estimator, dtype):
    """Several dependencies at once; some with equal images, some constant, some with images of zeros."""
    draw = torch.Generator().manual_seed(images)
    x, y = (torch.randn(5, images, 7, generator=draw, dtype=dtype) for _ in range(2))
    x[1, images // 2 :] = x[1, 0]
    y[2] = 1.0
    y[4] = 2 * x[4]
    if images > 3:  # of fewer images the value does not depend on the features, and gradients are rounding errors
        x[3, 0] = 0.0
    weights = torch.randn(5, generator=draw, dtype=dtype)
    found, plain = ([t.clone().requires_grad_() for t in (x, y)] for _ in range(2))
    values = normalised_hsic(*found, estimator)
    expected = torch.stack([plain_hsic(a, b, estimator) for a, b in zip(*plain, strict=True)])
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(values, expected, **close)
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, **close)


def test_hsic_of_independent_and_equal_features():
    draw = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(64, 256, generator=draw).relu(), torch.randn(64, 256, generator=draw).relu()) for _ in range(20)]
    biased = torch.stack([normalised_hsic(x, y, "biased") for x, y in pairs]).mean()
    unbiased = torch.stack([normalised_hsic(x, y, "unbiased") for x, y in pairs]).mean()
    assert float(biased) > 0.8
    assert abs(float(unbiased)) < 0.05
    for estimator in ("biased", "unbiased"):
        assert float(normalised_hsic(pairs[0][0], 3 * pairs[0][0], estimator)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("images", [1, 2, 3, 8])
def test_hsic_of_few_images_or_constant_features_is_finite(estimator, images):
    x = torch.randn(images, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = normalised_hsic(x, torch.ones(images, 8), estimator) + normalised_hsic(x, x.detach() * 2, estimator)
    value.backward()
    assert value.isfinite()
    assert x.grad.isfinite().all()


# -- batch norm ----------------------------------------------------------------------------------------------------
def test_follow_equals_copies_through_batch_norm():
    torch.manual_seed(0)
    mlp = Disentangler(6, 0.0).train()
    other, rows = copy.deepcopy(mlp), torch.randn(7, 6)
    mlp.follow(rows, copies=4)
    other(rows.repeat(4, 1))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(mlp.bn1_fc, name), getattr(other.bn1_fc, name))
    before = copy.deepcopy(mlp.bn1_fc.state_dict())
    torch.testing.assert_close(mlp.activate(rows, track=False), other.activate(rows))
    assert all(torch.equal(v, before[k]) for k, v in mlp.bn1_fc.state_dict().items())


def test_a_single_row_uses_the_running_statistics():
    torch.manual_seed(0)
    mlp = Disentangler(6, 0.0).train()
    mlp(torch.randn(9, 6))
    before, row = copy.deepcopy(mlp.state_dict()), torch.randn(1, 6)
    assert torch.equal(mlp(row), copy.deepcopy(mlp).eval()(row))
    assert all(torch.equal(v, before[k]) for k, v in mlp.state_dict().items())


# -- training ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_training_learns_and_survives_every_batch_size(name, small_space, small_clip):
    method = make(small_space, small_clip, name, num_prototypes=3)
    data = clustered(small_space, small_clip.dim)
    assert method.needs_initialisation == (name != "released")
    if method.needs_initialisation:
        method.initialise(*data[:3])
    assert not method.needs_initialisation
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3, weight_decay=1e-5)
    method.train()
    seen = []
    for step in range(25):
        rows = torch.arange(step * 32, (step + 1) * 32) % 400
        rows = rows[: {5: 1, 10: 2, 15: 3}.get(step, 32)]
        terms = method.training_step(batch_of(data, rows))
        assert all(v.isfinite() and v.ndim == 0 for v in terms.values()), (step, terms)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters()), step
        optimizer.step()
        seen.append(float((terms["attr"] + terms["obj"]).detach()))
    assert np.mean(seen[-5:]) < 0.95 * np.mean(seen[:5])
    assert 1 <= method.metrics()["effective_k"] <= 3
    assert set(terms) == {"pair", "attr", "obj", "pcl"} | ({"pdl"} if name != "released" else set())


def test_metrics_before_any_prototype(small_space, small_clip):
    assert make(small_space, small_clip, "released").metrics() == {}


def test_first_pass_leaves_the_statistics_and_the_mode_alone(small_space, small_clip):
    method, data = make(small_space, small_clip).eval(), clustered(small_space, small_clip.dim)
    before = copy.deepcopy(method.hidden_mlps.state_dict())
    with torch.inference_mode():
        method.initialise(*data[:3])
    assert not method.training
    assert all(torch.equal(v, before[k]) for k, v in method.hidden_mlps.state_dict().items())
    method.train()
    sum(method.training_step(batch_of(data, torch.arange(16))).values()).backward()


def test_a_primitive_without_images_is_no_negative(small_space, small_clip):
    """Its zero prototypes would all look alike behind the MLP; the released preset keeps them, as the public program does."""
    data = clustered(small_space, small_clip.dim)
    attributes, objects = data[1].unique(), data[2].unique()
    assert attributes.tolist() == [0, 1, 2, 3]  # of six
    for name, rows in (("default", 5 * (len(attributes) + len(objects))), ("released", 5 * (6 + 5))):
        method = make(small_space, small_clip, name, head_dropout=0.0).train()
        if method.needs_initialisation:
            method.initialise(*data[:3])
        labels = torch.zeros(2, 4, dtype=torch.long)
        ids = method.prototypes.ids(data[1][:4], data[2][:4]).view(2, -1)
        prototypes, targets = method._prototype_rows(ids, labels)
        assert prototypes.shape == (rows, small_clip.dim)
        gone = torch.tensor([0, 2 if name == "default" else 0])  # attributes 4 and 5 stand before the objects
        assert torch.equal(targets, 5 * (ids - gone[:, None]))


def test_image_features_are_kept_only_without_adapters(small_space, small_clip):
    assert make(small_space, small_clip).frozen_images
    adapted = make(small_space, small_clip, adapter_dim=4)
    assert not adapted.frozen_images
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        adapted.image_features({"images": images}), small_clip.visual(images)
    )  # adapters start from nothing
    with torch.no_grad():
        torch.nn.init.normal_(adapted.adapters[0].up_proj.weight)
    assert (adapted.image_features({"images": images}) - small_clip.visual(images)).abs().max() > 1e-3


def test_one_head_clusters_what_it_compares(small_space, small_clip):
    method, data = make(small_space, small_clip, "paper"), clustered(small_space, small_clip.dim)
    encoded = method.embed_images(data[0][:8])
    assert torch.equal(encoded.hidden, encoded.branches)
    assert not any(k.startswith("head_mlps") for k in method.state_dict())


def test_bfloat16_autocast_keeps_prototypes_and_transport_exact(small_space, small_clip):
    method, data = make(small_space, small_clip), clustered(small_space, small_clip.dim)
    method.initialise(*data[:3])
    method.train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.training_step(batch_of(data, torch.arange(32)))
    sum(terms.values()).backward()
    assert terms["pcl"].dtype == terms["pdl"].dtype == method.prototypes.bank.dtype == torch.float32
    lengths = method.prototypes.bank[method.prototypes.in_use()].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


# -- scores and label spaces ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("fusion", ["logit", "probability"])
@torch.no_grad()
def test_scores_are_the_formula_whatever_the_tile(fusion, small_space, small_clip):
    weights = {"pair_inference_weight": 2.0, "attr_inference_weight": 0.5, "obj_inference_weight": 3.0}
    method = make(small_space, small_clip, fusion=fusion, **weights).eval()
    features = clustered(small_space, small_clip.dim)[0][:7]
    pairs = torch.from_numpy(small_space.open_pairs)
    images, text = method.embed_images(features), method.encode_compositions(pairs)
    pair, attr, obj = method.logits(images, text)
    pair = pair.softmax(1) if fusion == "probability" else pair
    expected = 2 * pair + 0.5 * attr.softmax(1)[:, pairs[:, 0]] * 3 * obj.softmax(1)[:, pairs[:, 1]]
    torch.testing.assert_close(method.scores(images, text), expected)
    tiles = [method.scores(images, text.tile(s, s + 16)) for s in range(0, len(pairs), 16)]
    torch.testing.assert_close(torch.cat(tiles, 1), expected)


@torch.no_grad()
def test_primitives_repeated_by_text_chunks(small_space, small_clip):
    method = make(small_space, small_clip, primitive_repeat="reference", fusion="logit").eval()
    features = clustered(small_space, small_clip.dim)[0][:3]
    images, text = method.embed_images(features), method.encode_compositions(torch.from_numpy(small_space.open_pairs))
    pair = method.logits(images, text)[0]
    once = method.scores(images, text) - pair
    thrice = method.scores(images, replace(text, whole=text.pair.repeat(80, 1))) - pair  # 2400 pairs are three chunks of 1024
    torch.testing.assert_close(thrice, once / 9, atol=1e-7, rtol=1e-3)


def test_prototypes_follow_their_names_into_another_space(small_space, small_clip):
    method, data = make(small_space, small_clip), clustered(small_space, small_clip.dim)
    method.initialise(*data[:3])
    names = ("new", *small_space.attributes[::-1])
    pairs, none = np.array([[0, 0], [1, 0]]), np.zeros((0, 2), int)
    other = method.for_space(CompositionSpace(names, small_space.objects[1:], pairs, none, none))
    A = small_space.num_attributes
    assert other.prototypes.bank[0].eq(0).all()
    assert method.prototypes.bank[0].ne(0).any()
    assert torch.equal(other.prototypes.bank[1 : A + 1], method.prototypes.bank[:A].flip(0))
    assert torch.equal(other.prototypes.bank[A + 1 :], method.prototypes.bank[A + 1 :])
    batch = {
        "features": data[0][:6],
        "attr": torch.tensor([0, 1] * 3),
        "obj": torch.zeros(6).long(),
        "pair": torch.tensor([0, 1] * 3),
    }
    terms = other.train().training_step(batch)
    assert all(v.isfinite() for v in terms.values())
    assert other.prototypes.in_use()[0]  # started from this batch
