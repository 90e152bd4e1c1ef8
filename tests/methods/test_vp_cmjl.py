"""VP-CMJL against plain arithmetic: its attention, its six logits, its loss, its scores."""

import numpy as np
import pytest
import torch
from plain_layers import plain_block, shaken
from torch.nn import functional as F

from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from czsl.retrieval.index import CompositionIndex
from czsl.retrieval.topk import top_compositions
from methods.features import Targets


@pytest.fixture
def make(small_space, small_clip):
    def made(**settings):
        return shaken("vp-cmjl", small_space, small_clip, {"adapter_dim": 4, "attention_heads": 4, **settings})

    return made


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def plain_logits(method, images, pairs):
    """Six logits, image by image: texts' and proxies' of pair, attribute and object."""
    clip, A = method.clip, method.space.num_attributes
    scale, words = clip.logit_scale, method.prompts.table
    raw = clip.visual(clip.normalise(images), adapters=method.adapters)
    texts = [clip.text.encode_embeddings(*method.prompts.pairs(words, pairs).flat())]
    texts += [clip.text.encode_embeddings(*tree.flat()) for tree in method.prompts.primitives(words)]
    proxies = [method.proxies[:A], method.proxies[A:]]
    joined = torch.cat([proxies[0][pairs[:, 0]], proxies[1][pairs[:, 1]]], dim=1)
    of_pairs = joined @ method.compose.weight.T + method.compose.bias
    out = [[] for _ in range(6)]
    for x in raw:
        cosine = lambda a, b: F.cosine_similarity(a[None], b)  # noqa: E731
        out[0].append(scale * cosine(x, texts[0]))
        out[3].append(scale * cosine(x, of_pairs))
        for i, branch in enumerate(("attribute", "object")):
            moved, weights = (y[0] for y in plain_block(method.attentions[branch], x[None], texts[1 + i]))
            out[1 + i].append(scale * cosine(moved, texts[1 + i]) + scale * weights)
            head = method.disentanglers[branch]
            bn = head.bn1_fc
            g = (head.fc1(x) - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
            out[4 + i].append(scale * cosine(g.relu(), proxies[i]))
    return [torch.stack(rows) for rows in out]


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["sum", "product"])
def test_logits_and_scores_are_those_of_plain_arithmetic(make, images, fusion):
    method = make(fusion=fusion)
    pairs = torch.from_numpy(method.space.open_pairs)
    text_p, text_a, text_o, proxy_p, proxy_a, proxy_o = plain_logits(method, images, pairs)
    want = [0.3 * p + 0.7 * t for p, t in ((proxy_p, text_p), (proxy_a, text_a), (proxy_o, text_o))]
    got = method.branch_logits(images, pairs)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-5)
    a, o = want[1].softmax(1)[:, pairs[:, 0]], want[2].softmax(1)[:, pairs[:, 1]]
    torch.testing.assert_close(
        method.score_images(images, pairs), want[0] + (a + o if fusion == "sum" else a * o), atol=1e-4, rtol=1e-5
    )


@torch.no_grad()
def test_an_image_attends_by_itself(make, images):
    method = make()
    text = method.encode_compositions(torch.from_numpy(method.space.open_pairs))
    raw = method.encode_images({"images": images}).raw
    moved, weights = method.attentions["attribute"].weighted(raw, text.attribute)
    alone, alone_weights = method.attentions["attribute"].weighted(raw[2:3], text.attribute)
    torch.testing.assert_close(moved[2:3], alone, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weights[2:3], alone_weights, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))


def test_the_loss_is_six_cross_entropies_and_a_divergence_that_reaches_both_sides(make, images):
    method = make(attr_dropout=0.0, adapter_dropout=0.0, head_dropout=0.0).train()
    train = torch.from_numpy(method.space.train_pairs.copy())
    place = torch.arange(5)
    targets = Targets(train[place, 0], train[place, 1], place)
    encoded = method.embed_images(method.image_features({"images": images}))
    text = method.encode_compositions(train)
    texts, proxies = method.branch_pairs(encoded, text)
    terms = method.losses(encoded, text, targets)
    labels = targets.pair, targets.attribute, targets.object
    for names, logits in ((("pair", "attr", "obj"), texts), (("pair_proxy", "attr_proxy", "obj_proxy"), proxies)):
        for name, x, y in zip(names, logits, labels, strict=True):
            torch.testing.assert_close(terms[name], -(x.softmax(1)[torch.arange(5), y].log()).mean(), atol=1e-4, rtol=1e-4)
    p, q = texts[0].detach().softmax(1), proxies[0].detach().softmax(1)
    by_hand = sum(float(p[i, j] * (p[i, j] / q[i, j]).log()) for i in range(5) for j in range(len(train))) / 5
    assert float(terms["kl"]) == pytest.approx(by_hand, rel=1e-4)
    terms["kl"].backward()
    assert method.prompts.table.grad.abs().sum() > 0
    assert method.compose.weight.grad.abs().sum() > 0 and method.proxies.grad.abs().sum() > 0


@torch.no_grad()
def test_a_share_of_zero_computes_nothing_of_its_side(make, images, monkeypatch):
    method, pairs = make(text_weight=0.0), torch.from_numpy(make().space.open_pairs)
    monkeypatch.setattr(method.prompts, "pairs", lambda *_: pytest.fail("prompts of pairs were built"))
    scores = method.score_images(images, pairs)
    assert torch.isfinite(scores).all()
    other = make(proxy_weight=0.0, text_weight=1.0)
    text_p, text_a, text_o, *_ = plain_logits(other, images, pairs)
    want = text_p + text_a.softmax(1)[:, pairs[:, 0]] + text_o.softmax(1)[:, pairs[:, 1]]
    torch.testing.assert_close(other.score_images(images, pairs), want, atol=1e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["sum", "product"])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_index_answers_with_the_dense_scores(make, images, fusion, kind):
    method = make(fusion=fusion)
    pairs = torch.from_numpy(method.space.open_pairs)
    vectors = method.encode_pairs(pairs).numpy()
    asked = method.retrieval_query(method.encode_images({"images": images}), method.encode_compositions(pairs[:0]), len(pairs))
    assert asked.combine == fusion
    parts = [x.numpy() for x in (asked.query, asked.attribute, asked.object)]
    found = top_compositions(CompositionIndex.build(vectors, pairs.numpy(), kind), *parts, k=7, combine=asked.combine)
    dense = method.score_images(images, pairs).numpy()
    np.testing.assert_allclose(found.scores, -np.sort(-dense, axis=1)[:, :7], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(dense, found.places, 1), found.scores, atol=1e-4)


@torch.no_grad()
def test_proxies_follow_names_and_a_new_one_is_clips_feature_of_the_name(make):
    method = make()
    none = np.zeros((0, 2), np.int64)
    other = method.for_space(CompositionSpace(("dry", "shiny"), ("cat",), none, none, none))
    torch.testing.assert_close(other.proxies[0], method.proxies[1], rtol=0, atol=0)
    torch.testing.assert_close(F.normalize(other.proxies[1], dim=0), method.clip.text.encode(["shiny"])[0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_literal_x_before_primitives(make, small_clip):
    method = make(primitive_prefix="x")
    x_PTW, _ = next(method.prompts.primitives(method.prompts.table)).flat()
    (token,) = small_clip.text.tokenizer.encode("x")
    assert x_PTW.shape[1] == 7
    torch.testing.assert_close(x_PTW[3, 4], small_clip.text.embed_tokens(torch.tensor(token)))
    torch.testing.assert_close(x_PTW[3, 5], method.prompts.table[3])


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"attention_heads": 5}, "do not divide"),
        ({"attention_heads": 0}, "above 0"),
        ({"proxy_weight": 0, "text_weight": 0}, "not both 0"),
        ({"text_weight": -1}, "0 or more"),
        ({"primitive_repeat": "reference"}, "once a pair"),
        ({"fusion": "mean"}, "sum, product"),
    ],
)
def test_bad_settings_are_refused(make, settings, what):
    with pytest.raises(UsageError, match=what):
        make(**settings)
