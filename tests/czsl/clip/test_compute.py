"""Towers that hold their matrices in bfloat16 compute, digit for digit, what autocast makes of float32 weights."""

from __future__ import annotations

import copy

import pytest
import torch

from czsl.clip.loading import load_clip
from methods.building import build
from methods.parts.adapters import BlockAdapters

PROMPTS = ["a photo of wet dog", "a photo of a very dry cat"]


@pytest.fixture
def pair(small_clip):
    """The same CLIP in float32, and converted."""
    plain, held = copy.deepcopy(small_clip), copy.deepcopy(small_clip)
    held.compute_in("bfloat16")
    return plain, held


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)


def under_autocast(work):
    with torch.autocast("cpu", torch.bfloat16):
        return work()


def test_images_have_the_digits_of_autocast(pair, images):
    plain, held = pair
    torch.manual_seed(1)
    adapter = BlockAdapters(2, plain.visual.width, 8, 0.0)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=0.1)
    for options in ({}, {"tokens": True}, {"adapters": adapter}):
        expected = under_autocast(lambda options=options: plain.visual(plain.normalise(images), **options))
        found = held.visual(held.normalise(images), **options)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        assert torch.equal(under_autocast(lambda options=options: held.visual(held.normalise(images), **options)), expected)
        assert not torch.equal(found, plain.visual(plain.normalise(images), **options))
    expected = under_autocast(lambda: plain.visual.tapped(plain.normalise(images), {0, 1}))
    found = held.visual.tapped(held.normalise(images), {0, 1})
    assert all(torch.equal(found[i], expected[i]) for i in (0, 1))
    for residual in (True, False):
        expected = under_autocast(lambda residual=residual: plain.visual.dense(plain.normalise(images), residual))
        assert all(map(torch.equal, held.visual.dense(held.normalise(images), residual), expected))


def test_texts_have_the_digits_of_autocast_and_their_norm_is_float32(pair):
    plain, held = pair
    expected = under_autocast(lambda: plain.text.encode(PROMPTS, unit=False))
    assert torch.equal(held.text.encode(PROMPTS, unit=False), expected)
    found = held.text.encode(PROMPTS)
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-6)
    assert torch.equal(held.text.name_embeddings(["wet dog"]), plain.text.name_embeddings(["wet dog"]))


def test_gradients_are_those_of_autocast(pair, images):
    plain, held = pair
    grads = []
    for clip in (plain, held):
        torch.manual_seed(1)
        adapter = BlockAdapters(2, clip.visual.width, 8, 0.0)
        for parameter in adapter.parameters():
            parameter.data.normal_(std=0.1)
        under_autocast(lambda clip=clip, adapter=adapter: clip.visual(clip.normalise(images), adapters=adapter)).sum().backward()
        grads.append([p.grad for p in adapter.parameters()])
    assert all(map(torch.equal, *grads))


def test_only_matrices_are_converted_and_the_hash_stays(pair):
    plain, held = pair
    kinds = {name: p.dtype for name, p in held.named_parameters()}
    half = {name for name, dtype in kinds.items() if dtype == torch.bfloat16}
    assert "visual.vit.conv1.weight" in half
    assert "visual.vit.proj" in half
    assert "text.text_projection" in half
    assert sum("in_proj_weight" in name for name in half) == 4
    assert {name for name in half if "embedding" in name} == {"visual.vit.class_embedding", "visual.vit.positional_embedding"}
    assert not any("ln_" in name for name in half)
    assert held.sha256 == plain.sha256
    assert held.dim == plain.dim
    held.compute_in("bfloat16")
    assert {name: p.dtype for name, p in held.named_parameters()} == kinds


def test_every_pass_of_a_tower_converts_no_frozen_weight(pair, images):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Casts(TorchDispatchMode):
        def __init__(self, frozen):
            super().__init__()
            self.frozen, self.found = {p.data_ptr(): n for n, p in frozen}, []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function.overloadpacket is torch.ops.aten._to_copy and args[0].data_ptr() in self.frozen and args[0].numel() > 1:
                self.found.append(self.frozen[args[0].data_ptr()])
            return out

    def casts(clip):
        with torch.no_grad(), Casts(clip.named_parameters()) as mode:
            under_autocast(lambda: (clip.visual(clip.normalise(images)), clip.text.encode(PROMPTS)))
        return mode.found

    plain, held = pair
    assert len(casts(plain)) > 10
    assert casts(held) == []


def test_a_tower_of_another_kind_computes_in_bfloat16(tmp_path, monkeypatch):
    clip = load_clip("RN50", "random", features=True)
    images = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    with torch.no_grad():
        plain = clip.visual(clip.normalise(images)), clip.text.encode(PROMPTS)
        clip.compute_in("bfloat16")
        half = clip.visual(clip.normalise(images)), clip.text.encode(PROMPTS)
    for a, b in zip(plain, half, strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        assert torch.nn.functional.cosine_similarity(a, b).min() > 0.98


def test_scores_of_every_method_stay_float32(small_space, pair, images):
    from methods.registry import METHODS, config_class

    _, held = pair
    pairs = torch.from_numpy(small_space.closed_pairs.copy())
    for name in METHODS:
        if not config_class(name).trains and name != "zero-shot":
            continue
        method = build(name, small_space, held, {}).eval()
        with torch.no_grad():
            scores = method.score_images(images, pairs)
        assert scores.dtype == torch.float32, name
        assert scores.isfinite().all(), name
