"""Workers that train together: the distributed form of a method's communicator.

Collectives of tensors run on the devices that hold them (gloo or NCCL); small Python objects of our own processes travel over gloo.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from methods.parts.comm import Communicator


class _GatherRows(torch.autograd.Function):
    """All-gather of rows. Behind it every rank computes the same loss, so the gradient of the own rows needs no exchange.

    The gradient is multiplied by the world size because `cluster.work.gradients` divides all of them by it: parameters before the
    gathering get the sum over ranks, those after it the average of equal numbers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.start, ctx.rows, ctx.world = sum(sizes[:rank]), sizes[rank], len(sizes)
        padded = x.new_zeros(max(sizes), *x.shape[1:])  # gloo wants equal shapes
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.start : ctx.start + ctx.rows] * ctx.world, None, None


class _Common(torch.autograd.Function):
    """The identity; each rank's gradient comes from its own rows, times the world size, so their mean is the whole gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, world: int) -> Tensor:
        ctx.world = world
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / ctx.world, None


class Group(Communicator):
    """The workers of a job; a world of one needs no process group."""

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world
        self._objects = dist.new_group(backend="gloo") if world > 1 else None

    def gather(self, x: Tensor, rows: int) -> Tensor:
        """The rows of all workers' shares in rank order, with a gradient to the own. The sizes of shares follow from their number."""
        if self.world == 1:
            return x
        sizes = [len(range(rows)[self.share(rows, rank)]) for rank in range(self.world)]
        return _GatherRows.apply(x.contiguous(), sizes, self.rank)

    def common(self, x: Tensor) -> Tensor:
        """A tensor that is equal on all workers, entering work that each does on its own rows."""
        return x if self.world == 1 else _Common.apply(x, self.world)

    def gather_objects(self, thing: Any) -> list[Any]:
        """A small object of each worker, in rank order."""
        if self.world == 1:
            return [thing]
        out: list[Any] = [None] * self.world
        dist.all_gather_object(out, thing, group=self._objects)
        return out

    def from_first(self, thing: Any) -> Any:
        """Rank 0's object, on every rank."""
        return self.gather_objects(thing)[0]

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of rank 0, in place."""
        for tensor in tensors if self.world > 1 else ():
            dist.broadcast(tensor, 0)
