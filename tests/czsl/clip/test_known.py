"""Towers by their notes: the same answers, nothing loaded that is not used, nothing believed that has changed."""

from __future__ import annotations

import json
import os

import pytest
import torch

from czsl.clip.known import known_clip
from czsl.clip.loading import load_clip
from czsl.data.caches import caches

PROMPTS = ["a photo of wet dog", "a photo of dry cat"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CZSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def weights(tmp_path, open_clip_model):
    path = tmp_path / "small.pt"
    torch.save(open_clip_model.state_dict(), path)
    return path


class Loader:
    def __init__(self, name):
        self.name, self.calls = str(name), 0

    def __call__(self):
        self.calls += 1
        return load_clip(self.name, features=True)

    def known(self):
        return known_clip(self.name, None, self)


def test_a_second_question_about_known_texts_loads_nothing(cache, weights):
    plain = load_clip(str(weights), features=True)
    first = Loader(weights)
    with torch.no_grad():
        assert torch.equal(first.known().text.encode(PROMPTS), plain.text.encode(PROMPTS))
    assert first.calls == 1
    later = Loader(weights)
    clip = later.known()
    assert torch.equal(clip.text.encode(PROMPTS), plain.text.encode(PROMPTS))
    assert clip.text.encode([]).shape == (0, plain.dim)
    for fact in ("sha256", "dim", "architecture", "image_size", "device", "pixels"):
        assert getattr(clip, fact) == getattr(plain, fact), fact
    for number in ("logit_scale", "mean", "std"):
        assert torch.equal(getattr(clip, number), getattr(plain, number)), number
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(clip.normalise(images), plain.normalise(images))
    assert later.calls == 0
    assert not clip.loaded
    with torch.no_grad():
        assert torch.equal(clip.visual(clip.normalise(images)), plain.visual(plain.normalise(images)))
        assert torch.equal(clip.text.encode(PROMPTS[:1]), plain.text.encode(PROMPTS[:1]))
    assert later.calls == 1
    assert clip.text.context_length == plain.text.context_length


def test_moving_takes_the_towers_along_whenever_they_are_loaded(cache, weights):
    Loader(weights).known()
    clip = Loader(weights).known().double()
    assert clip.visual(torch.zeros(1, 3, 64, 64, dtype=torch.float64)).dtype == torch.float64
    clip.float()
    assert clip.visual(torch.zeros(1, 3, 64, 64)).dtype == torch.float32
    assert next(iter(clip.towers.parameters())).dtype == torch.float32


def test_changed_weights_are_loaded(cache, weights):
    before = Loader(weights).known().sha256
    state = torch.load(weights, weights_only=True)
    state["visual.proj"] = state["visual.proj"] * 1.001
    torch.save(state, weights)
    again = Loader(weights)
    assert again.known().sha256 != before
    assert again.calls == 1
    status = weights.stat()
    torch.save({k: v * 1.001 if k == "visual.proj" else v for k, v in state.items()}, weights)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    third = Loader(weights)
    third.known()
    assert third.calls == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{}",
        b"[]",
        b"{" * 100,
        {"mean": [1, 2]},
        {"logit_scale": "x"},
        {"files": 7},
        {"files": [["/gone", 1, 2, 3]]},
        {"sha256": None},
        {"pixels": {"size": 0}},
        {"format": 0},
        {"logit_scale": float("nan")},
    ],
)
def test_damaged_notes_are_written_again(cache, weights, damage):
    Loader(weights).known()
    (file,) = (cache / "towers").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage if isinstance(damage, bytes) else json.dumps({**json.loads(whole), **damage}).encode())
    loader = Loader(weights)
    loader.known()
    assert loader.calls == 1
    assert file.read_bytes() == whole


def test_notes_are_a_kind_of_cache_and_never_needed(cache, weights):
    Loader(weights).known().text.encode(PROMPTS)
    kinds = {c.kind: len(c.entries) for c in caches()}
    assert (kinds["towers"], kinds["photographs"]) == (1, 1)
    for c in caches():
        c.clear()
    cache.chmod(0o500)
    try:
        assert Loader(weights).known().text.encode(PROMPTS).shape == (2, 32)
    finally:
        cache.chmod(0o700)
