"""Operations of a training step with few kernels and little memory; values are those of the plain forms, gradients to the last digits.

A GPU starts a kernel about as quickly as it computes a small one, so a step of thousands of small kernels waits for their starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SHORTEST = 1e-12  # a row that is shorter is not stretched to length 1


class _QuickGelu(torch.autograd.Function):
    """x * sigmoid(1.702 x), of which the backward pass needs one tensor and one kernel.

    With z = 1.702 x the derivative is sigmoid(z) (1 + z (1 - sigmoid(z))): that of silu at z.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        z = 1.702 * x
        ctx.save_for_backward(z)
        return x * torch.sigmoid(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, z)


class QuickGELU(nn.Module):
    """The activation of OpenAI's CLIP: x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of ``x``."""
        return _QuickGelu.apply(x)


def use_lean_activations(blocks: Any) -> None:
    """Put :class:`QuickGELU` in the place of open_clip's in all blocks of a tower; the values stay the same."""
    for block in blocks:
        if type(block.mlp.gelu).__name__ == QuickGELU.__name__:
            block.mlp.gelu = QuickGELU()


class _Unit(torch.autograd.Function):
    """x / max(|x|, SHORTEST) along the last dimension; the backward pass needs four kernels instead of fourteen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(SHORTEST)
        y = x / length
        ctx.save_for_backward(y, length)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, length = ctx.saved_tensors
        along = (grad * y).sum(-1, keepdim=True)
        return torch.addcmul(grad, along, y, value=-1) / length


def unit(x: Tensor) -> Tensor:
    """Return rows [..., D] of length 1, as ``torch.nn.functional.normalize`` with ``dim=-1``; zeros stay zeros."""
    return _Unit.apply(x)


class _Converted(torch.autograd.Function):
    """Tensors in another format; they, and their gradients on the way back, are converted by one operation."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.formats = [x.dtype for x in tensors]
        ctx.set_materialize_grads(False)
        return _copies(tensors, [dtype] * len(tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = [(i, g) for i, g in enumerate(grads) if g is not None]
        out: list[Tensor | None] = [None] * len(grads)
        for (i, _), copy in zip(found, _copies([g for _, g in found], [ctx.formats[i] for i, _ in found]), strict=True):
            out[i] = copy
        return None, *out


def _copies(tensors: Sequence[Tensor], formats: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
    out = tuple(torch.empty_like(x, dtype=dtype) for x, dtype in zip(tensors, formats, strict=True))
    if out:
        torch._foreach_copy_(out, list(tensors))
    return out


def converted(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return trained tensors in another format, with gradients in their own: the values of ``x.to(dtype)`` for each, in one operation."""
    return cast(tuple[Tensor, ...], _Converted.apply(dtype, *tensors))


def under_autocast(*weights: Tensor) -> tuple[Tensor, ...]:
    """Return trained weights as autocast wants them, converted together; outside of autocast as they are.

    Autocast itself converts them one by one: a kernel for each, forward and backward.
    """
    device = weights[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return converted(torch.get_autocast_dtype(device), *weights)
    return weights
