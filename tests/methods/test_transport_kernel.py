"""Transport in one kernel: Triton's interpreter against the plain form, and what happens if the kernel cannot be trusted."""

import importlib.util
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from methods.parts import transport
from methods.parts.transport import Kernel, plain_plan

INTERPRETED = """
import json, torch
from torch.nn import functional as F
from methods.parts import transport_kernel
from methods.parts.transport import kernel_arguments, plain_plan

torch.manual_seed(0)
out = []
for C, B, K, scale in ((4, 7, 5, 1.0), (2, 5, 5, 8.0), (2, 20, 3, 40.0)):
    g, p = F.normalize(torch.randn(C, B, 16), dim=-1), F.normalize(torch.randn(C, K, 16), dim=-1) * scale
    near, alike, mask = g @ p.mT, g @ g.mT, torch.ones(C, B, dtype=torch.bool)
    mask[0, -2:] = False
    plain = plain_plan(-near, near, alike, 0.1, 2.0, mask)
    plan, steps = transport_kernel.solve(*kernel_arguments(-near, near, alike, 0.1, 2.0, mask))
    out.append([float((plan - plain.plan).abs().max()), steps.tolist(), plain.steps.tolist()])
print(json.dumps(out))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with torch's CUDA builds only")
def test_the_kernel_finds_the_plans_of_the_plain_form():
    import json

    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for difference, steps, plain_steps in found:
        assert difference < 1e-11
        assert steps == plain_steps
    assert len({n for _, steps, _ in found for n in steps}) > 2  # problems stop at different times


@pytest.fixture
def problem():
    torch.manual_seed(0)
    g = torch.nn.functional.normalize(torch.randn(3, 6, 8), dim=-1)
    near = g @ torch.nn.functional.normalize(torch.randn(3, 4, 8), dim=-1).mT
    return -near, near, g @ g.mT, 0.1, 1.0, torch.ones(3, 6, dtype=torch.bool)


def solved(cost, prior, structure, numbers, mask):
    """What a kernel finds that works."""
    assert all(x.is_contiguous() and x.dtype == torch.float64 for x in (cost, prior, structure, numbers))
    assert mask.dtype == torch.int8
    return plain_plan(cost, prior, structure, *numbers.tolist(), mask.bool())


def with_kernel(monkeypatch, solve):
    monkeypatch.setattr(transport, "_kernel_module", lambda: SimpleNamespace(solve=solve))
    return Kernel()


def test_the_first_plans_are_compared_and_then_trusted(problem, monkeypatch):
    calls = []

    def solve(*arguments):
        calls.append(1)
        found = solved(*arguments)
        return found.plan, found.steps

    kernel, plain = with_kernel(monkeypatch, solve), plain_plan(*problem)
    for _ in range(2):
        found = kernel.solve(*problem)
        assert torch.equal(found.plan, plain.plan)
        assert kernel.state == "good"
    assert len(calls) == 2
    many = torch.zeros(3, 33, 4)
    assert kernel.solve(many, many, torch.zeros(33, 33), 0.1, 1.0, None) is None  # too many samples


def failing(*_):
    raise RuntimeError("no compiler here")


def another(*arguments):
    return solved(*arguments).plan + 1e-6, torch.ones(3, dtype=torch.long)


def no_number(*arguments):
    return solved(*arguments).plan * torch.nan, torch.ones(3, dtype=torch.long)


@pytest.mark.parametrize(("solve", "why"), [(failing, "no compiler here"), (another, "differ"), (no_number, "differ")])
def test_a_kernel_that_fails_or_differs_is_given_up(problem, monkeypatch, caplog, solve, why):
    kernel = with_kernel(monkeypatch, solve)
    with caplog.at_level(logging.WARNING):
        found = kernel.solve(*problem)
    assert found is None or torch.equal(found.plan, plain_plan(*problem).plan)
    assert kernel.state == "given up"
    assert why in caplog.text
    assert kernel.solve(*problem) is None
