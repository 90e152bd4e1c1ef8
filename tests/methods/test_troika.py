"""Troika's parts against their plain forms, and what its streaming may not change."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from czsl.clip.lean import QuickGELU
from czsl.errors import UsageError
from methods.building import build
from methods.features import Targets
from methods.parts import cross_attention as module
from methods.parts.cross_attention import CrossAttention, CrossAttentionLayers, moved_cosines

B, N, L, D, HEADS = 3, 7, 5, 32, 4


@pytest.fixture
def stack():
    torch.manual_seed(0)
    traction = CrossAttentionLayers(D, 2, HEADS, 0.0).double()
    for parameter in traction.parameters():
        nn.init.normal_(parameter, std=0.3)
    return traction.eval()


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_attention(attn, q_nD, tokens_LD):
    """One image, one head after the other, softmax written out."""
    q, k, v = attn.q_proj(q_nD), attn.k_proj(tokens_LD), attn.v_proj(tokens_LD)
    width, out = D // attn.heads, []
    for h in range(attn.heads):
        part = slice(h * width, (h + 1) * width)
        weights = (q[:, part] @ k[:, part].T / width**0.5).exp()
        out.append((weights / weights.sum(1, keepdim=True)) @ v[:, part])
    return attn.proj(torch.cat(out, dim=1))


def plain_traction(traction, text_nD, tokens_LD):
    q = text_nD
    for layer in traction:
        q = q + plain_attention(layer.cross_attn, q, tokens_LD)
        h = layer.mlp[0](layer.norm(q))
        q = q + layer.mlp[3](h / (1 + (-1.702 * h).exp()))
    return q


def test_keys_and_queries_computed_once_change_nothing(stack):
    text, tokens = drawn(N, D), drawn(B, L, D, seed=2)
    memory = stack.memory(tokens)
    got = stack(text, memory)
    for b in range(B):
        torch.testing.assert_close(got[b], plain_traction(stack, text, tokens[b]), rtol=1e-12, atol=1e-12)
    # Queries of their own for each image, as later layers have them.
    torch.testing.assert_close(stack(text.expand(B, N, D), memory), got, rtol=1e-12, atol=1e-12)


def test_the_shared_layer_is_made_as_the_public_one(stack):
    names = set(dict(stack[0].named_parameters()))
    projections = {f"cross_attn.{p}_proj.weight" for p in "qkv"} | {"cross_attn.proj.weight", "cross_attn.proj.bias"}
    assert names == projections | {"norm.weight", "norm.bias", *(f"mlp.{i}.{k}" for i in (0, 3) for k in ("weight", "bias"))}
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + (-1.702 * x).exp()))
    assert CrossAttention(128, 2, 0.0).heads == 2
    assert CrossAttentionLayers(768, 1)[0].cross_attn.heads == 12  # heads of width 64


def test_dropout_falls_behind_the_attention_and_in_the_mlp():
    torch.manual_seed(0)
    layer = CrossAttentionLayers(D, 1, HEADS, 1.0).train()[0]  # everything dropped: the text alone is left
    text = torch.randn(N, D)
    memory = layer.cross_attn.memory(torch.randn(B, L, D))
    assert torch.equal(layer(text, memory), text.expand(B, N, D))
    assert torch.equal(layer.cross_attn(text, memory), torch.zeros(B, N, D))


def test_tiles_of_texts_change_neither_cosines_nor_gradients(stack, monkeypatch):
    images, tokens = F.normalize(drawn(B, D), dim=-1), drawn(B, L, D, seed=2)
    calls = []

    def run(elements):
        monkeypatch.setattr(module, "TILE_ELEMENTS", elements)
        traction, text, own = copy.deepcopy(stack), drawn(70, D, seed=3).requires_grad_(), tokens.clone().requires_grad_()
        memory = traction.memory(own)

        def move(text_mD):
            calls.append(len(text_mD))
            return text_mD + 0.3 * traction(text_mD, memory)

        cosines = moved_cosines(images, text, move)
        cosines.square().sum().backward()
        return [cosines.detach(), text.grad, own.grad, *(p.grad for p in traction.parameters())]

    whole, calls[:] = run(1 << 20), []
    tiled = run(1)
    assert calls[:5] == [16, 16, 16, 16, 6]
    assert sorted(calls[5:]) == [6, 16, 16, 16, 16]  # and again in the backward pass
    for one, other in zip(whole, tiled, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        memory = stack.memory(tokens)
        plain = drawn(70, D, seed=3) + 0.3 * stack(drawn(70, D, seed=3), memory)
        torch.testing.assert_close((F.normalize(plain, dim=-1) * images[:, None]).sum(-1), whole[0], rtol=1e-10, atol=1e-10)


# -- the method ------------------------------------------------------------------------------------------------------
@pytest.fixture
def method(small_space, small_clip):
    torch.manual_seed(0)
    made = build("troika", small_space, small_clip, {"adapter_dim": 4, "traction_heads": 2})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_are_cosines_with_texts_that_saw_the_image(method, images):
    pairs = torch.from_numpy(method.space.closed_pairs)
    text = method.encode_compositions(pairs)
    tokens = method.image_features({"images": images})
    assert tokens.shape == (4, 17, 32)  # all tokens, class token first
    torch.testing.assert_close(tokens[:, 0], method.clip.visual(method.clip.normalise(images), adapters=method.adapters))
    pair, attr, obj = method.logits(method.embed_images(tokens), text)
    heads = [lambda x: x, method.disentanglers["attribute"], method.disentanglers["object"]]
    for got, own, head in zip((pair, attr, obj), (text.pair, text.attribute, text.object), heads, strict=True):
        for b in range(4):
            moved = own + method.traction_scale * _plain(method, own, tokens[b])
            cosines = F.normalize(head(tokens[b : b + 1, 0]), dim=-1) @ F.normalize(moved, dim=-1).T
            torch.testing.assert_close(got[b : b + 1], method.clip.logit_scale * cosines, rtol=1e-4, atol=1e-4)


def _plain(method, text_nD, tokens_LD):
    traction = copy.deepcopy(method.traction).double()
    memory = traction.memory(copy.deepcopy(method.patch_norm).double()(tokens_LD[None].double()))
    return traction(text_nD.double(), memory)[0].float()


@torch.no_grad()
def test_the_public_norm_is_applied_once_more_for_each_branch(small_space, small_clip, images):
    torch.manual_seed(0)
    once = build("troika", small_space, small_clip, {})
    with torch.no_grad():
        once.patch_norm.weight.uniform_(0.5, 2)
    more = build("troika", small_space, small_clip, {"patch_norm": "cumulative"})
    more.load_state_dict(once.state_dict())
    tokens = once.image_features({"images": images})
    kept = [made.eval().embed_images(tokens).memory for made in (once, more)]
    assert kept[0][1] is kept[0][0] and kept[0][2] is kept[0][0]
    normed = tokens
    for branch in range(3):
        normed = once.patch_norm(normed)
        for (k, v), (k_own, v_own) in zip(once.traction.memory(normed), kept[1][branch], strict=True):
            torch.testing.assert_close(k_own, k)
            torch.testing.assert_close(v_own, v)


@torch.no_grad()
def test_primitives_meet_an_image_once_for_all_tiles(method, images, monkeypatch):
    text = method.encode_compositions(torch.from_numpy(method.space.open_pairs))
    encoded, seen = method.encode_images({"images": images}), []
    branch = method._branch
    monkeypatch.setattr(method, "_branch", lambda *args: seen.append(len(args[1])) or branch(*args))
    tiles = [method.scores(encoded, text.tile(s, s + 15)) for s in (0, 15)]
    assert seen == [15, 6, 5, 15]
    fresh = method.scores(method.encode_images({"images": images}), text)
    torch.testing.assert_close(torch.cat(tiles, 1), fresh, rtol=1e-5, atol=1e-5)
    other = method.encode_compositions(torch.from_numpy(method.space.open_pairs))
    method.scores(encoded, other)  # other texts are not answered with what is kept
    assert seen[4 + 3 :] == [30, 6, 5]


@torch.no_grad()
def test_the_number_of_candidates_counts_for_the_public_test_program_alone(method, images):
    pairs = torch.from_numpy(method.space.open_pairs).repeat(40, 1)  # 1,200 pairs: two chunks of the public program
    correct = method.score_images(images, pairs)
    logit = method.branch_logits(images, pairs)[0]
    method.config.primitive_repeat = "reference"
    torch.testing.assert_close(method.score_images(images, pairs), logit + (correct - logit) / 4, rtol=1e-4, atol=1e-4)


def test_losses_are_weighted_cross_entropies(method, images):
    pairs = torch.from_numpy(method.space.train_pairs.copy())
    method.config.attr_loss_weight = 0.1
    place = torch.tensor([0, 3, 5, 13])
    encoded, text = method.encode_images({"images": images}), method.encode_compositions(pairs)
    terms = method.losses(encoded, text, Targets(pairs[place, 0], pairs[place, 1], place))
    pair, attr, obj = method.logits(encoded, text)
    assert set(terms) == {"pair", "attr", "obj"}
    torch.testing.assert_close(terms["pair"], F.cross_entropy(pair, place))
    torch.testing.assert_close(terms["attr"], 0.1 * F.cross_entropy(attr, pairs[place, 0]))
    torch.testing.assert_close(terms["obj"], F.cross_entropy(obj, pairs[place, 1]))


def test_every_trained_tensor_is_reached(method, images):
    pairs = torch.from_numpy(method.space.train_pairs[[0, 4, 9, 13]].copy())
    labels = {"attr": pairs[:, 0], "obj": pairs[:, 1], "pair": torch.tensor([0, 4, 9, 13])}
    torch.stack(list(method.train().training_step({"images": images, **labels}).values())).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


@pytest.mark.parametrize(
    "wrong",
    [{"traction_dropout": 1.5}, {"traction_layers": -1}, {"traction_heads": 5}, {"patch_norm": "twice"}, {"adapter_dim": -1}],
)
def test_impossible_settings_are_refused(small_space, small_clip, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        build("troika", small_space, small_clip, wrong)


def test_without_adapters_the_tower_is_clips_own(small_space, small_clip, images):
    plain = build("troika", small_space, small_clip, {"adapter_dim": 0}).eval()
    assert not plain.frozen_images  # all tokens of all images would be kept
    expected = small_clip.visual(small_clip.normalise(images), tokens=True)
    torch.testing.assert_close(plain.image_features({"images": images}), expected)


# -- between epochs --------------------------------------------------------------------------------------------------
def test_the_public_loop_loses_training_mode_after_the_first_epoch(small_space, small_clip):
    for settings, later in (({}, {True}), ({"train_mode": "reference"}, {False})):
        made = build("troika", small_space, small_clip, {"adapter_dim": 4, "traction_heads": 2, **settings})
        for epoch, expected in ((0, {True}), (1, later), (2, later)):
            made.eval()  # a validation
            made.begin_epoch(epoch)
            assert made.training  # workers still share their work
            assert {m.training for m in made.modules() if m is not made} == expected


def test_released_is_the_public_loops_mode_and_default_the_correct_one():
    from czsl_cli.config import resolve

    for method in ("troika", "msci"):
        assert resolve({"method": method, "preset": "released", "data": "mine"}).model["train_mode"] == "reference"
        assert resolve({"method": method, "data": "mine"}).model["train_mode"] == "correct"


def test_the_traction_starts_from_torchs_defaults():
    """Linear layers uniform within 1 / sqrt(width of their input), norms one and zero: the public program's, which sets none of them."""
    torch.manual_seed(0)
    for module_ in CrossAttentionLayers(D, 2, HEADS).modules():
        if isinstance(module_, nn.Linear):
            bound = module_.in_features**-0.5
            assert 0.95 * bound < module_.weight.abs().max() <= bound
            assert module_.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
            assert module_.bias is None or 0 < module_.bias.abs().max() <= bound
        elif isinstance(module_, nn.LayerNorm):
            assert torch.equal(module_.weight, torch.ones(D)) and torch.equal(module_.bias, torch.zeros(D))
