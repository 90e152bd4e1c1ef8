"""Gradients of several workers, which are averaged while the backward pass still computes the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.work.comm import Group

BUCKET_BYTES = 5 << 20


class GradientAverage:
    """Averages the gradients of parameters over the workers, in buckets that are sent as soon as they are full.

    A sum's last digits depend on the place in its buffer, so the buckets must be the same in each step, also after a resumption. They
    follow the order in which the first worker's gradients came in the first step, which the form of the loss decides. That step itself
    is sent after its backward pass.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        Those that are trained, on every worker in the same order. One that takes no part in a loss has no gradient on any worker.
    group : Group
        The workers. A single worker sends nothing.
    bucket_bytes : int, default 5 MiB
        Size from which a bucket is full.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: Group, bucket_bytes: int = BUCKET_BYTES):
        self.parameters, self.group, self.bucket_bytes = list(parameters), group, bucket_bytes
        self._came: list[int] = []  # places of the parameters whose gradients came in this step
        self._buckets: list[list[int]] = []
        self._bucket_of: dict[int, int] = {}
        self._missing: list[int] = []  # gradients that each bucket waits for
        self._sent: list[tuple[list[nn.Parameter], Tensor, Any]] = []
        if group.world > 1:
            for place, parameter in enumerate(self.parameters):
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, place))

    def finish(self, flag: float = 0.0) -> float:
        """Put the averages in the place of all gradients, after the backward pass; return the sum of a flag over the workers."""
        if self.group.world == 1:
            return flag
        if not self._buckets:
            self._buckets = self._filled(self.group.from_first(self._came))
            self._bucket_of = {place: i for i, bucket in enumerate(self._buckets) for place in bucket}
        while len(self._sent) < len(self._buckets) - 1:
            self._send(self._buckets[len(self._sent)])
        late = [place for place in range(len(self.parameters)) if place not in self._bucket_of]
        self._send([*self._buckets[-1], *late], flag * self.group.world)
        for parameters, flat, work in self._sent:
            work.wait()
            flat /= self.group.world
            numbers = [p.numel() for p in parameters]
            for parameter, average in zip(parameters, flat[: sum(numbers)].split(numbers), strict=True):
                parameter.grad = average.view_as(parameter)
        total = float(self._sent[-1][1][-1])
        self._came, self._sent = [], []
        self._missing = [len(bucket) for bucket in self._buckets]
        return total

    def _arrived(self, place: int, parameter: Tensor) -> None:
        """Note a gradient, and send the buckets that are full in their order; the last one is sent by :meth:`finish`."""
        self._came.append(place)
        if place not in self._bucket_of:
            return
        self._missing[self._bucket_of[place]] -= 1
        while len(self._sent) < len(self._buckets) - 1 and not self._missing[len(self._sent)]:
            self._send(self._buckets[len(self._sent)])

    def _send(self, places: Sequence[int], flag: float | None = None) -> None:
        """Begin to add up the gradients of some parameters, and a flag, over the workers."""
        parameters = [p for p in (self.parameters[place] for place in places) if p.grad is not None]
        pieces = [p.grad.reshape(-1) for p in parameters if p.grad is not None]
        if flag is not None:
            pieces.append(self.parameters[0].new_tensor([flag]))
        flat = torch.cat(pieces) if pieces else self.parameters[0].new_zeros(1)
        self._sent.append((parameters, flat, dist.all_reduce(flat, async_op=True)))

    def _filled(self, order: Sequence[int]) -> list[list[int]]:
        """Parameters in the order of their gradients, in buckets; the last one may be empty."""
        buckets, size = [[]], 0  # type: list[list[int]], int
        for place in order:
            if size >= self.bucket_bytes:
                buckets.append([])
                size = 0
            buckets[-1].append(place)
            size += self.parameters[place].numel() * self.parameters[place].element_size()
        return buckets
