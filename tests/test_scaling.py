"""Bytes a training step sends: the formula behind docs/scaling.md against figures by hand and against real processes."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def scaling(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("benchmark_scaling")


@pytest.fixture
def wire(monkeypatch):
    """The script of what is sent, as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("benchmark_wire")


def test_bytes_of_a_step_by_hand(wire):
    """Three workers: shares of 3 of 7 images and 7 of 20 prompts (11 pairs, 5 attributes, 4 objects); D = 32,
    100 trained numbers in two buckets."""
    sent = wire.messages(7, 11, 5, 4, 32, [60, 40], 3)
    row = 32 * 4
    assert [m.nbytes for m in sent] == [2 * 3 * row, 2 * 7 * row, 240, 164]
    assert [m.wire(3) for m in sent][-1] == pytest.approx(164 * 4 / 3)  # a ring reduces and then gathers: 2 (W - 1) / W
    half = wire.messages(7, 11, 5, 4, 32, [60, 40], 3, text_word=2)
    assert [m.nbytes for m in half if m.what == "text"] == [m.nbytes // 2 for m in sent if m.what == "text"]
    assert wire.messages(7, 11, 5, 4, 32, [60, 40], 1) == []


@pytest.mark.slow
def test_real_workers_send_what_the_formula_says():
    """Two gloo processes, a step with its backward pass: every tensor handed to torch.distributed, in order."""
    command = [sys.executable, EXAMPLES / "benchmark_wire.py", "count"]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(x["batch"], x["precision"]) for x in lines] == [(7, "float32"), (1, "float32"), (7, "bfloat16")]
    for x in lines:
        assert x["counted"] == x["computed"]
        assert len(x["counted"]) > 6  # of which four or more are gradients


def test_one_worker_of_several_has_all_rows_of_its_text(scaling):
    """The prediction counts a worker's share with a stand-in for the others; methods split what it returns by set."""
    import torch

    own = torch.ones(3, 2, requires_grad=True)
    whole = scaling.OneOf(4).gather(own, 12)
    whole.sum().backward()
    assert whole.shape == (12, 2)
    assert whole.sum() == 6 and own.grad.sum() == 6
    assert scaling.OneOf(1).gather(own, 3) is own
