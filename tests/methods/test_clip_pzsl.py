"""CLIP-PZSL (our reading) against formulas written out: assignment, block, losses, closed form, and what training may not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from czsl.classes import ClassSpace
from czsl.compositions import CompositionSpace
from czsl.data.files.partial_labels import padded
from methods.building import build
from methods.clip_pzsl.config import ClipPzslConfig
from methods.clip_pzsl.losses import alignment, anchor, classification, outside, relevance
from methods.clip_pzsl.mining import Mining, assignment, gathered
from methods.parts.label_confidences import LabelConfidences
from methods.presets import load_presets

B, C, D = 7, 5, 16


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def candidate_sets(count: int, classes: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return padded([sorted({i % classes, *rng.integers(0, classes, 3).tolist()}) for i in range(count)])


def weights_for(method, count: int, index=None, **settings) -> LabelConfidences:
    space = method.space
    index = candidate_sets(count, len(space.train_pairs)) if index is None else index
    sizes = space.num_attributes, space.num_objects
    return LabelConfidences(index, space.train_pairs, *sizes, dtype=method.clip.mean.dtype, **settings)


def features(method, count: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, method.clip.dim, generator=torch.Generator().manual_seed(seed))


def step(method, batch: dict) -> torch.Tensor:
    return torch.stack(list(method.training_step(batch).values())).sum()


@pytest.fixture
def method(small_clip, small_space):
    torch.manual_seed(0)
    return build("clip-pzsl", small_space, small_clip, {})


# -- assignment and what it gathers --------------------------------------------------------------------------------------
def test_a_point_belongs_to_the_largest_of_its_allowed_logits(draw):
    logits, allowed = draw(B, C), draw(B, C) > 0
    allowed[:, 0] |= ~allowed.any(1)
    for mask in (None, allowed):
        given = assignment(logits, mask, "argmax")
        for row in range(B):
            inside = [c for c in range(C) if mask is None or mask[row, c]]
            best = max(inside, key=lambda c: float(logits[row, c]))
            assert given[row].tolist() == [float(c == best) for c in range(C)]


@pytest.mark.parametrize("kind", ["argmax", "soft"])
def test_the_gradient_is_that_of_the_softmax(draw, kind):
    logits, towards = draw(B, C).requires_grad_(), draw(B, C)
    (assignment(logits, None, kind) * towards).sum().backward()
    plain = logits.detach().clone().requires_grad_()
    (plain.softmax(1) * towards).sum().backward()
    torch.testing.assert_close(logits.grad, plain.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["gumbel_logits", "gumbel_probs"])
def test_noisy_assignments_stay_allowed_and_follow_the_generator(draw, kind):
    logits, allowed = draw(B, C), torch.ones(B, C, dtype=torch.bool)
    allowed[:, 1] = False
    torch.manual_seed(4)
    one = assignment(logits, allowed, kind)
    torch.manual_seed(4)
    assert torch.equal(one, assignment(logits, allowed, kind))
    assert (one.sum(1) == 1).all()
    assert not one[:, 1].any()


def test_noise_on_probabilities_is_chance_and_on_logits_is_not(draw):
    """The predecessor's trap: with 50 centres the largest probability is hardly ever the one chosen."""
    logits, classes = 4 * draw(4000, 50), 50
    torch.manual_seed(0)
    agree = {
        k: (assignment(logits, None, k).argmax(1) == logits.argmax(1)).double().mean() for k in ("gumbel_logits", "gumbel_probs")
    }
    assert agree["gumbel_probs"] < 6 / classes
    assert agree["gumbel_logits"] > 0.5


def test_gathering_is_the_sum_or_the_mean_of_a_labels_points(draw):
    points, given = draw(B, D), F.one_hot(torch.tensor([0, 0, 3, 1, 3, 3, 0]), C).double()
    sums = torch.stack([sum((points[b] for b in range(B) if given[b, c]), torch.zeros(D, dtype=torch.float64)) for c in range(C)])
    torch.testing.assert_close(gathered(given, points, "sum"), sums)
    means = sums / torch.tensor([3, 1, 1, 3, 1])[:, None]
    torch.testing.assert_close(gathered(given, points, "mean"), means)
    assert not gathered(given, points, "mean")[2].any()  # no points


def test_a_layer_is_the_formula(draw):
    """KMT-PLL's dC = dense(A^T x) with our residual step, in plain loops; W_v is the identity."""
    torch.manual_seed(1)
    layer = Mining(D, ClipPzslConfig(reduce="sum")).double()
    torch.nn.init.normal_(layer.out.weight)
    torch.nn.init.normal_(layer.ffn[2].weight)
    centres, points = F.normalize(draw(C, D), dim=1), F.normalize(draw(B, D), dim=1)
    seen = F.layer_norm(points, (D,)) @ F.layer_norm(centres, (D,)).T / D**0.5
    moved = centres.clone()
    for b in range(B):
        moved[seen[b].argmax()] += 0.1 * layer.out.weight @ points[b]
    expected = torch.stack([x + layer.ffn(layer.norm_ffn(x)) for x in moved])
    torch.testing.assert_close(layer(centres, points, None), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("only", [None, 2])
def test_odd_batches_stay_finite(draw, rows, only):
    """One point; all points in one class, so that the others have none."""
    layer = Mining(D, ClipPzslConfig()).double()
    torch.nn.init.normal_(layer.out.weight)
    centres, points = draw(C, D), draw(rows, D)
    allowed = None if only is None else F.one_hot(torch.full((rows,), only), C).bool()
    out = layer(centres, points, allowed)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    if only is not None:
        empty = [c for c in range(C) if c != only]
        assert torch.equal(out[empty], layer.alone(centres)[empty])


# -- losses ----------------------------------------------------------------------------------------------------------------
def test_one_hot_weights_give_cross_entropy(draw):
    logits, labels = draw(B, C), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    one_hot = F.one_hot(labels, C).double()
    torch.testing.assert_close(classification(logits, one_hot), F.cross_entropy(logits, labels), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(outside(logits, one_hot > 0), F.cross_entropy(logits, labels), rtol=1e-6, atol=1e-9)


def test_uniform_weights_on_everything_give_the_mean_log_softmax(draw):
    logits = draw(B, C)
    weight = torch.full((B, C), 1 / C, dtype=torch.float64)
    torch.testing.assert_close(classification(logits, weight), -logits.log_softmax(1).mean(), rtol=1e-6, atol=1e-9)
    assert outside(logits, weight > 0).abs() < 1e-12


def test_the_predecessors_loss_by_hand(draw):
    """-(1/B) sum_ij rel_ij w_ij log p_ij with multi-hot weights; rel = 0.5 + 0.5 cos."""
    images, labels, logits = F.normalize(draw(B, D), dim=1), F.normalize(draw(C, D), dim=1), draw(B, C)
    multihot = (draw(B, C) > 0).double()
    total = 0.0
    for i in range(B):
        for j in range(C):
            rel = 0.5 + 0.5 * float(F.cosine_similarity(images[i], labels[j], dim=0))
            total -= rel * float(multihot[i, j]) * float(logits[i].log_softmax(0)[j])
    got = classification(logits, multihot, relevance(images, labels))
    assert float(got) == pytest.approx(total / B, rel=1e-6)


def test_alignment_and_anchor_are_cosines(draw):
    images, labels = F.normalize(draw(B, D), dim=1), F.normalize(draw(C, D), dim=1)
    weight = draw(B, C).softmax(1)
    towards = weight @ labels
    torch.testing.assert_close(alignment(images, weight, labels), (1 - F.cosine_similarity(images, towards)).mean())
    torch.testing.assert_close(anchor(images[:C], labels), (1 - F.cosine_similarity(images[:C], labels)).mean())
    assert anchor(labels, labels).abs() < 1e-12


# -- the method ------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_before_the_first_step_it_is_clip(method, small_clip, small_space):
    pairs = torch.from_numpy(small_space.closed_pairs)
    frozen = build("zero-shot", small_space, small_clip, {}).eval()
    x = features(method, 4)
    method.eval()
    torch.testing.assert_close(method.encode_compositions(pairs).pair, frozen.encode_compositions(pairs).pair, rtol=0, atol=1e-6)
    ours = method.scores(method.embed_images(x), method.encode_compositions(pairs)) * method.config.tau
    clip = frozen.scores(frozen.embed_images(x), frozen.encode_compositions(pairs)) / small_clip.logit_scale
    torch.testing.assert_close(ours, clip, rtol=0, atol=1e-6)


def train(method, x, weights, steps: int = 5, labels=None, lr: float = 1e-2):
    method.confidences = weights
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr)
    losses = []
    method.train()
    for i in range(steps):
        rows = torch.arange(len(x)).roll(i)[:6]
        batch = {"features": x[rows], "index": rows}
        if labels is not None:
            batch |= {k: v[rows] for k, v in labels.items()}
        method.comm.step_seed = i
        loss = step(method, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_sets_of_one_are_training_with_true_labels_exactly(small_clip, small_space):
    pairs, place = small_space.train_pairs, np.arange(12) % len(small_space.train_pairs)
    labels = {"attr": pairs[place, 0], "obj": pairs[place, 1], "pair": place}
    runs = []
    for weighted in (True, False):
        torch.manual_seed(0)
        method = build("clip-pzsl", small_space, small_clip, {"adapter": 8})
        weights = weights_for(method, 12, place[:, None], momentum=0.3) if weighted else None
        named = None if weighted else {k: torch.from_numpy(v.copy()) for k, v in labels.items()}
        losses = train(method, features(method, 12), weights, labels=named)
        runs.append((losses, method.state_dict()))
        if weighted:
            assert torch.equal(weights.weight_NS, torch.ones(12, 1))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(v, runs[1][1][k]) for k, v in runs[0][1].items())


def test_every_parameter_is_trained_and_saved(small_clip, small_space):
    """The predecessor kept its blocks in a list: random, frozen, never saved."""
    torch.manual_seed(0)
    method = build("clip-pzsl", small_space, small_clip, {"adapter": 8, "depth": 2})
    start = {k: v.clone() for k, v in method.state_dict().items()}
    train(method, features(method, 12), weights_for(method, 12), steps=8)
    moved = {k for k, v in method.state_dict().items() if not torch.equal(v, start[k])}
    # The keys' norm has an offset that is the same for all centres of a point, which softmax does not see.
    assert set(start) - moved <= {f"blocks.{i}.norm_centres.bias" for i in range(2)}
    assert {name for name, _ in method.named_parameters()} <= set(start)


@torch.no_grad()
def test_evaluation_is_deterministic_and_unseen_embeddings_know_no_batch(method, small_space):
    with torch.enable_grad():
        train(method, features(method, 12), weights_for(method, 12))
    method.eval()
    pairs = torch.from_numpy(small_space.closed_pairs)
    before = method.encode_compositions(pairs).pair
    assert torch.equal(before, method.encode_compositions(pairs).pair)
    blocks = {k: v.clone() for k, v in method.blocks.state_dict().items()}
    method.train()
    method.confidences = None
    method.losses(method.embed_images(features(method, 6, 9)), method.encode_compositions(torch.from_numpy(small_space.train_pairs.copy())),
                  weights_for(method, 6).targets(torch.arange(6)))  # fmt: skip
    method.eval()
    after, seen = method.encode_compositions(pairs).pair, torch.from_numpy(small_space.seen_mask(small_space.closed_pairs))
    assert all(torch.equal(v, method.blocks.state_dict()[k]) for k, v in blocks.items())
    assert torch.equal(before[~seen], after[~seen])
    assert not torch.equal(before[seen], after[seen])  # the running average went on


@torch.no_grad()
def test_symmetric_inference_treats_seen_as_unseen(small_clip, small_space):
    torch.manual_seed(0)
    method = build("clip-pzsl", small_space, small_clip, {"seen_inference": "symmetric"})
    with torch.enable_grad():
        train(method, features(method, 12), weights_for(method, 12))
    method.eval()
    pairs = torch.from_numpy(small_space.closed_pairs)
    words = method.words(pairs)
    torch.testing.assert_close(method.encode_compositions(pairs).pair, F.normalize(method.layers[0].alone(words), dim=1))


def test_nothing_grows_over_a_thousand_steps(small_clip, small_space):
    """The predecessor's centres kept their graph: each backward walked the whole history."""
    import gc

    torch.manual_seed(0)
    method = build("clip-pzsl", small_space, small_clip, {})
    x, weights = features(method, 12), weights_for(method, 12)
    train(method, x, weights, steps=10)

    def living() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    before = living()
    train(method, x, weights, steps=1000, lr=1e-4)
    assert living() <= before + 5
    assert method.average.grad_fn is None
    assert weights.weight_NS.grad_fn is None


def test_weights_find_the_true_labels_of_separable_images(small_clip, small_space):
    """Images near to their true words: the top-1 candidates become the true ones, which fixed weights cannot do."""
    torch.manual_seed(0)
    method = build("clip-pzsl", small_space, small_clip, {})
    classes = len(small_space.train_pairs)
    truth = torch.arange(140) % classes
    prototypes = torch.randn(classes, method.clip.dim, generator=torch.Generator().manual_seed(1))
    x = prototypes[truth] + 0.3 * features(method, 140)
    weights = weights_for(method, 140, candidate_sets(140, classes), momentum=0.5)
    before = (weights.top1(torch.arange(140)) == truth).double().mean()
    method.confidences = weights
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    method.train()
    for _ in range(60):
        loss = step(method, {"features": x, "index": torch.arange(140)})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = (weights.top1(torch.arange(140)) == truth).double().mean()
    assert before < 0.6
    assert after > 0.85


def plain_em(images, words, sets, rho, tau, rounds):
    """The closed form, image by image."""
    images, labels = F.normalize(images, dim=1), words
    w = [{j: 1 / len(s) for j in s} for s in sets]
    for last in range(rounds)[::-1]:
        new = []
        for c in range(len(words)):
            share = sum(wi.get(c, 0.0) for wi in w)
            mean = sum((wi.get(c, 0.0) * x for wi, x in zip(w, images, strict=True)), torch.zeros_like(words[0])) / max(
                share, 1e-6
            )
            new.append(F.normalize(words[c] + rho * mean, dim=0))
        labels = torch.stack(new)
        for i, s in enumerate(sets) if last else ():
            p = {j: float(torch.exp(images[i] @ labels[j] / tau) * (0.5 + 0.5 * images[i] @ labels[j])) for j in s}
            w[i] = {j: v / sum(p.values()) for j, v in p.items()}
    return labels


@torch.no_grad()
def test_the_closed_form_is_its_loop(small_clip, small_space):
    method = build("clip-pzsl", small_space, small_clip, {"em_rounds": 4, "em_rho": 0.5})
    assert method.needs_initialisation
    x, index = features(method, 20), candidate_sets(20, len(small_space.train_pairs))
    method.confidences = weights_for(method, 20, index, momentum=1.0)
    method.eval()
    method.initialise(x, *(torch.zeros(20, dtype=torch.int64),) * 2)
    words = method.words(torch.from_numpy(small_space.train_pairs.copy()))
    sets = [[j for j in row if j >= 0] for row in index.tolist()]
    torch.testing.assert_close(method.average, plain_em(x, words, sets, 0.5, 0.05, 4), rtol=1e-4, atol=1e-5)
    assert not method.needs_initialisation
    assert torch.equal(method.encode_compositions(torch.from_numpy(small_space.train_pairs.copy())).pair, method.average)


@torch.no_grad()
def test_embeddings_follow_names_into_other_spaces(method, small_space):
    with torch.enable_grad():
        train(method, features(method, 12), weights_for(method, 12))
    method.eval()
    a, o = small_space.attributes, small_space.objects
    pairs = np.array([[0, 0], [1, 1]])
    here = method.encode_compositions(torch.from_numpy(small_space.train_pairs[[0, 5]].copy())).pair
    names = [small_space.pair_names(small_space.train_pairs[i]) for i in (0, 5)]
    attributes, objects = tuple(n[0] for n in names), tuple(n[1] for n in names)
    assert len(set(attributes)) == len(set(objects)) == 2
    for seen in (np.zeros((0, 2)), pairs, pairs[:1]):
        other = method.for_space(CompositionSpace(attributes, objects, seen, np.zeros((0, 2)), np.zeros((0, 2)))).eval()
        there = other.encode_compositions(torch.from_numpy(pairs)).pair
        torch.testing.assert_close(there[0], here[0])
        if len(seen) != 1:
            torch.testing.assert_close(there[1], here[1])
        again = other.for_space(CompositionSpace(a, o, small_space.train_pairs, *([np.zeros((0, 2))] * 2))).eval()
        back = again.encode_compositions(torch.from_numpy(small_space.train_pairs[[0]].copy())).pair
        torch.testing.assert_close(back[0], here[0])


def test_classes_are_pairs_without_an_attribute(small_clip):
    space = ClassSpace.of(["cat", "dog", "sea_lion", "zebra"], ["cat", "dog", "sea_lion"])
    torch.manual_seed(0)
    method = build("clip-pzsl", space, small_clip, {})
    assert [method.pair_prompt(pair) for pair in space.train_pairs] == ["a photo of cat", "a photo of dog", "a photo of sea lion"]
    weights = weights_for(method, 12, momentum=0.5)
    losses = train(method, features(method, 12), weights, steps=30)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    torch.testing.assert_close(weights.targets(torch.arange(12)).attribute, torch.ones(12, 1))


def test_presets_and_fields(small_clip, small_space):
    presets = load_presets("clip-pzsl")["presets"]
    assert set(presets) == {"default", "ours", "kmt", "proden", "em"}
    assert presets["default"] == {**presets["ours"], "adapter": 256, "adapter_scale": 1.0}
    from czsl.errors import UsageError

    for odd in ({"tau": 0.0}, {"mu": 2}, {"assign": "nearest"}, {"depth": -1}):
        with pytest.raises(UsageError, match=r"CLIP-PZSL|is not a choice"):
            build("clip-pzsl", small_space, small_clip, odd)
