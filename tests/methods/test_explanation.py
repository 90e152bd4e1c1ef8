"""What methods say about one image: attention and shares against a plain computation, prototypes against their cosines."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from msci_plain import plain_images, plain_stage, plain_texts
from PIL import Image
from torch.nn import functional as F

from methods.building import build
from methods.explanation import Boxes, Examples, Figures, HeatMap, Neighbours, Shares, centre_square
from methods.registry import METHODS

MSCI = {"adapter_dim": 4, "low_blocks": 1, "high_blocks": 1, "stage1_heads": 4, "stage2_heads": 2, "stage2_layers": 2}
PAIR = ("wet", "dog")


@pytest.fixture(scope="module")
def image():
    smooth = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize((140, 100), Image.Resampling.BICUBIC)


@pytest.fixture
def make(small_clip, small_space):
    """A method none of whose tensors is at its initial value."""

    def made(name, **settings):
        torch.manual_seed(0)
        method = build(name, small_space, small_clip, settings)
        with torch.no_grad():
            for value in method.parameters():
                value.add_(0.1 * torch.randn_like(value))
        return method.eval()

    return made


def of_kind(found, kind):
    return [part for part in found.parts if isinstance(part, kind)]


def prepared(method, image):
    return method.prepare(image, "0")["images"][None]


def plain_weights(layer, q, m):
    """Attention [B, n, L] of one layer, a head at a time."""
    attn, width = layer.cross_attn, q.shape[-1] // layer.cross_attn.heads
    total = 0.0
    for h in range(attn.heads):
        own = slice(h * width, (h + 1) * width)
        scores = attn.q_proj(q)[..., own] @ attn.k_proj(m)[..., own].mT / width**0.5
        total = total + scores.softmax(-1) / attn.heads
    return total


@pytest.mark.parametrize("order", ["sequential", "parallel", "low", "high"])
@pytest.mark.parametrize("terms", ["both", "q1", "q2"])
def test_msci_shows_its_attention_and_shares_that_add_up(make, image, order, terms):
    if (order, terms) in (("low", "q2"), ("high", "q1")):
        pytest.skip("no such setting")
    method = make("msci", **MSCI, stage_order=order, residual_terms=terms)
    found = method.explain(image, PAIR)
    with torch.no_grad():
        _, features, levels = plain_images(method, prepared(method, image))
        pair, attribute, obj = plain_texts(method, torch.tensor([[0, 0]]))
        text = torch.cat([pair, attribute[:1], obj[:1]])
    maps, answers, place = of_kind(found, HeatMap), {}, 0
    assert len(maps) == 3 * len(method.stages)
    with torch.no_grad():
        for name, stage in method.stages.items():
            q = answers["low"] if name == "high" and order == "sequential" else text[None]
            m, weights, at = stage.norm(levels[name]), [], q
            for layer in stage.cross_attn_layers:
                weights.append(plain_weights(layer, at, m))
                at = layer(at, layer.cross_attn.memory(m))
            answers[name] = plain_stage(stage, q, levels[name])
            for n, label in enumerate(("wet dog", *PAIR)):
                shown, expected = maps[place], (sum(weights) / len(weights))[0, n]
                assert shown.title == label
                np.testing.assert_allclose(shown.values.reshape(-1), expected[1:], atol=1e-6)
                assert shown.values.sum() + shown.elsewhere == pytest.approx(1, abs=1e-5)
                place += 1
        moved = text + sum(gate * answers[s][0] for s, gate in method.gates.items())
        cosine = F.cosine_similarity(moved, torch.cat(features), dim=-1)
    in_text, in_cosine = of_kind(found, Shares)
    for shares in (in_text, in_cosine):
        assert list(shares.columns) == ["wet dog", *PAIR]
        np.testing.assert_allclose(shares.values.sum(0), shares.totals, atol=1e-6)
    np.testing.assert_allclose(in_text.totals, 1)
    np.testing.assert_allclose(in_cosine.totals, cosine, atol=1e-5)


def test_msci_parts_are_those_of_the_formula(make, image):
    method = make("msci", **MSCI)
    with torch.no_grad():
        features = method.encode_images({"images": prepared(method, image)})
        text = torch.randn(3, method.clip.dim)
        q = method.answers(text, features.memory)
        parts = method.shares(text, features.memory)
        low, high = method.gates["low"], method.gates["high"]
        torch.testing.assert_close(parts["text"], ((1 + low + high) * text)[None])
        torch.testing.assert_close(parts["low"], (low + high) * (q["low"] - text))
        torch.testing.assert_close(parts["high"], high * (q["high"] - q["low"]))
        torch.testing.assert_close(sum(parts.values()), method.move(text, features.memory))


@pytest.mark.parametrize("norm", ["once", "cumulative"])
def test_troika_shows_its_attention(make, image, norm):
    method = make("troika", adapter_dim=4, traction_heads=2, patch_norm=norm)
    maps = of_kind(method.explain(image, PAIR), HeatMap)
    assert [m.title for m in maps] == ["wet dog", *PAIR]
    with torch.no_grad():
        tokens = method.image_features({"images": prepared(method, image)})
        texts = [t[:1] for t in plain_texts(method, torch.tensor([[0, 0]]))]
        for times, (shown, text) in enumerate(zip(maps, texts, strict=True), 1):
            m = method.patch_norm(tokens)
            for _ in range(times - 1 if norm == "cumulative" else 0):
                m = method.patch_norm(m)
            at, weights = text[None], []
            for layer in method.traction:
                weights.append(plain_weights(layer, at, m))
                at = layer(at, layer.cross_attn.memory(m))
            expected = (sum(weights) / len(weights))[0, 0]
            np.testing.assert_allclose(shown.values.reshape(-1), expected[1:], atol=1e-6)
            assert shown.elsewhere == pytest.approx(float(expected[0]), abs=1e-6)


def test_clus_pro_shows_its_nearest_prototypes_and_their_images(make, image):
    method = make("clusPro", adapter_dim=0, num_prototypes=3)
    bank, A = method.prototypes.bank, method.space.num_attributes
    with torch.no_grad():
        bank.copy_(torch.randn_like(bank))
        bank[1] = 0  # training never saw "dry"
        pairs = torch.tensor([[0, 0], [1, 0]])
        examples = Examples(torch.randn(30, method.clip.dim), np.arange(30) % 3, np.arange(30) % 4)
        scored = method.scored_image(image, "0", method.encode_compositions(pairs))
        object.__setattr__(scored, "examples", lambda _a, _o: examples)
        found = method.explain_candidate(scored, 0)
        hidden = method.encode_images({"images": prepared(method, image)}).hidden[:, 0]
        theirs = method.embed_images(examples.features).hidden
    (table,) = [p for p in of_kind(found, Figures) if p.title == "Prototypes of the composition"]
    for branch, (kind, row) in enumerate((("attribute", 0), ("object", A))):
        expected = F.cosine_similarity(hidden[branch][None], bank[row])
        rows = [r for r in table.rows if r[0] == kind]
        assert [r[2] - 1 for r in rows] == expected.argsort(descending=True).tolist()
        assert [r[3] for r in rows] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-4)
        shown = of_kind(found, Neighbours)[2 * branch]
        near = F.cosine_similarity(theirs[branch], bank[row, rows[0][2] - 1][None])
        own = np.flatnonzero((examples.attr, examples.obj)[branch] == 0)
        assert shown.places == own[np.argsort(-near.numpy()[own])][:6].tolist()
        assert shown.cosines == pytest.approx(near.numpy()[shown.places].tolist(), abs=1e-5)
    unseen = method.explain_candidate(scored, 1)
    assert list(unseen.notes) == ["training never saw the attribute dry: it has no prototypes"]
    assert len(of_kind(unseen, Neighbours)) == 2


def test_lazsl_shows_boxes_maps_and_shares(make, image):
    method = make("lazsl", num_regions=6)
    found = method.explain(image, PAIR, "x")
    by_phrase, by_region = of_kind(found, Shares)
    np.testing.assert_allclose(by_phrase.values.sum(0), by_phrase.totals, atol=1e-12)
    assert by_phrase.totals[2] == pytest.approx(found.score)
    assert by_region.values.sum() == pytest.approx(found.score, abs=1e-12)
    (boxes,) = of_kind(found, Boxes)
    assert {tuple(box) for box in boxes.boxes} <= {tuple(box) for box in found.boxes.tolist()}
    assert of_kind(found, HeatMap)[0].extent == (0, 0, 140, 100)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_in_plain_data(make, image, name):
    method = make(name)
    text = method.encode_compositions(torch.from_numpy(method.space.closed_pairs.copy()))
    scored = method.scored_image(image, "0", text)
    with torch.inference_mode():
        found = method.explain_candidate(scored, 3)
    json.dumps([part.to_json() for part in found.parts], allow_nan=False)
    json.dumps(found.to_json(), allow_nan=False)
    for table in of_kind(found, Figures):
        assert all(len(row) == len(table.columns) for row in table.rows)
        if table.title == "What the branches say":
            logits = scored.logits[0][0]
            assert table.rows[0][3] == pytest.approx(float(logits.softmax(0)[3]), abs=1e-5)
            assert table.rows[0][4] == logits.argsort(descending=True).tolist().index(3) + 1


def test_the_square_that_clip_sees():
    assert centre_square((140, 100)) == (20, 0, 120, 100)
    assert centre_square((100, 141)) == (0, 20.5, 100, 120.5)
