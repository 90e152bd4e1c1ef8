"""Optimizers by name; the one of the public programs against its formula."""

import pytest
import torch

from czsl.errors import UsageError
from czsl.runs.config import OPTIMIZERS as NAMES
from czsl.runs.config import RunConfig
from czsl.runs.optimizers import OPTIMIZERS, make_optimizer


def run(name, gradients, weight_decay=0.1):
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer, values = make_optimizer(name, [p, torch.nn.Parameter(torch.ones(1))], lr=0.01, weight_decay=weight_decay), []
    for g in gradients:
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        values.append(p.detach().clone())
    assert optimizer.param_groups[0]["params"][1].item() == 1  # no gradient, no step, no decay
    return values


def test_names_are_those_of_the_settings():
    assert set(NAMES) == set(OPTIMIZERS)
    with pytest.raises(UsageError, match="sgd"):
        RunConfig(optimizer="sgd")


def test_decay_and_eps_stand_where_the_public_programs_have_them():
    """p -= lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), then p -= lr wd p."""
    gradients = [[0.3, 1e-6], [-0.2, 2e-6], [0.1, -1e-6]]
    p, m, v = torch.tensor([1.0, -2.0], dtype=torch.float64), 0.0, 0.0
    for t, (g, got) in enumerate(zip(gradients, run("adamw", gradients), strict=True), 1):
        g = torch.tensor(g, dtype=torch.float64)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p - 0.01 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v**0.5 + 1e-6)
        p = p - 0.01 * 0.1 * p
        torch.testing.assert_close(got, p, rtol=1e-12, atol=0)
    torchs = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    torchs.grad = torch.tensor(gradients[0], dtype=torch.float64)
    torch.optim.AdamW([torchs], lr=0.01, weight_decay=0.1, eps=1e-6).step()
    assert (run("adamw", gradients[:1])[0] - torchs.detach()).abs().max() > 1e-4  # the small gradient tells them apart


def test_adam_is_torchs_with_decay_in_the_gradient():
    gradients = [[0.3, 0.1], [-0.2, 0.4]]
    other = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = torch.optim.Adam([other], lr=0.01, weight_decay=0.1)
    for g, got in zip(gradients, run("adam", gradients), strict=True):
        other.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        torch.testing.assert_close(got, other.detach(), rtol=1e-14, atol=0)
