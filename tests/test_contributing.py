"""CONTRIBUTING's method, taken from its text, goes through the contract and through training as a registered one does."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from methods.building import build
from methods.registry import METHODS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def offsets(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "offsets.py"
    file.write_text(blocks[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("methods.offsets", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "methods.offsets", module)
    spec.loader.exec_module(module)
    name, target = re.search(r'"(\w+)": "([\w.:]+)"', blocks[1]).groups()
    monkeypatch.setitem(METHODS, name, target)
    return name


def test_the_method_of_the_guide_trains_and_predicts(offsets, small_clip, small_space):
    method = build(offsets, small_space, small_clip, {"scale": 2.0})
    images = torch.randint(0, 256, (8, 3, small_clip.image_size, small_clip.image_size), dtype=torch.uint8)
    pairs = torch.from_numpy(small_space.train_pairs.copy())
    place = torch.arange(8) % len(pairs)
    with torch.no_grad():
        features = method.image_features({"images": images})
    batch = {"features": features, "attr": pairs[place, 0], "obj": pairs[place, 1], "pair": place}
    optimizer = torch.optim.Adam(method.parameters(), lr=0.05)
    method.train()
    losses = []
    for _ in range(100):
        loss = torch.stack(list(method.training_step(batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    method.eval()
    best = method.score_images(images, pairs).argmax(1)
    assert (best == place).float().mean() > 0.8
