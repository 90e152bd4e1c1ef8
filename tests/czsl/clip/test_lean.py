"""Operations with lean backward passes against autograd on the plain forms; weights converted together, against one by one."""

from __future__ import annotations

import functools

import pytest
import torch

from czsl.clip.lean import QuickGELU, converted, unit
from methods.parts.adapters import BlockAdapters


def values_and_gradient(way, x, grad):
    leaf = x.clone().requires_grad_()
    out = way(leaf)
    out.backward(grad)
    return out.detach(), leaf.grad


def formula(x):
    return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_values_are_the_formula_and_gradients_its_derivative(dtype, close):
    torch.manual_seed(0)
    x = torch.cat([4 * torch.randn(500), torch.tensor([0.0, -80.0, 80.0])]).to(dtype)
    grad = torch.randn(len(x)).to(dtype)
    (value, found), (plain, expected) = (values_and_gradient(way, x, grad) for way in (QuickGELU(), formula))
    assert torch.equal(value, plain)
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    torch.testing.assert_close(found[-2:], grad[-2:] * torch.tensor([0.0, 1.0], dtype=dtype))  # far out nothing overflows


def test_one_tensor_is_kept_for_the_backward_pass(small_clip):
    kept = []
    x = torch.randn(5, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        QuickGELU()(x)
    assert kept == [40]
    assert all(isinstance(b.mlp.gelu, QuickGELU) for tower in (small_clip.visual, small_clip.text) for b in tower.blocks)


def test_weights_converted_together_are_those_converted_one_by_one():
    torch.manual_seed(0)
    weights = [torch.randn(3, 4, requires_grad=True), torch.randn(5, requires_grad=True), torch.randn(2, requires_grad=True)]
    half = converted(torch.bfloat16, *weights)
    assert all(torch.equal(h, w.to(torch.bfloat16)) for h, w in zip(half, weights, strict=True))
    (half[0].sin().sum() + half[2].sum()).backward()
    leaf = weights[0].detach().clone().requires_grad_()
    leaf.to(torch.bfloat16).sin().sum().backward()
    assert torch.equal(weights[0].grad, leaf.grad)
    assert weights[0].grad.dtype == torch.float32
    assert weights[1].grad is None  # not used, as autograd has it
    assert weights[2].grad.tolist() == [1.0, 1.0]


def test_adapters_have_the_digits_of_autocast_that_converts_one_by_one():
    torch.manual_seed(0)
    adapters, x, onto = BlockAdapters(2, 16, 4, 0.0), torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    grads = []
    for together in (True, False):
        adapters.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if together:
                add = adapters.for_pass(range(len(adapters) // 2))
                out = add(3, add(0, x, onto), onto)
            else:
                out = x
                for i in (0, 3):
                    a = adapters[i]
                    out = torch.add(onto, a.up_proj(a.down_proj(out).relu()), alpha=0.1)
        out.square().sum().backward()
        grads.append([out.detach(), *(p.grad for p in adapters.parameters() if p.grad is not None)])
    assert len(grads[0]) == 9
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_of_length_one_are_torchs_in_values_and_gradients(dtype):
    torch.manual_seed(0)
    x = torch.randn(4, 6, 16, dtype=dtype)
    x[1, 2] = 0.0
    x[2] *= 1e-8
    grad, plain_unit = torch.randn_like(x), functools.partial(torch.nn.functional.normalize, dim=-1)
    (value, found), (plain, expected) = (values_and_gradient(way, x, grad) for way in (unit, plain_unit))
    assert torch.equal(value, plain)
    torch.testing.assert_close(found, expected, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=1e-6)
    assert unit(torch.zeros(0, 3)).shape == (0, 3)
