"""Passes through a tower that a GPU records once, as CUDA graphs, and then replays: one start instead of one for each kernel.

A replay repeats the recorded kernels on the recorded addresses. So what a pass depends on must be among its inputs, which are copied to
these addresses, or among its weights, which change in place; anything else keeps the value that it had when the pass was recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from czsl.gpus import tell_once

T = TypeVar("T")
Pass = Callable[..., Any]

# A replay runs the recorded kernels: a larger difference, relative to the largest value, means that it computes something else.
MOST = 1e-2


class Graphs:
    """The recorded passes of one training.

    A pass is recorded when it comes twice in a row in the same form (shapes, formats), so that a last, smaller batch is not: it is
    computed kernel by kernel. Before a recording is used, its results and gradients are compared with those of the plain pass. If it
    cannot be made, or differs, the pass stays plain and the reason is logged.

    Parameters
    ----------
    device : torch.device
    make : callable, default ``torch.cuda.make_graphed_callables``
        Records ``function`` for sample arguments and returns its replay, which autograd differentiates by a second recording.

    Attributes
    ----------
    quiet : Lock
        Held while a pass is recorded: other threads must not call CUDA then.
    """

    def __init__(self, device: torch.device, make: Callable[..., Pass] | None = None):
        self.device, self.quiet = device, threading.Lock()
        self._make = make or torch.cuda.make_graphed_callables
        self._last: dict[Hashable, Any] = {}
        self._recorded: dict[Hashable, tuple[Any, Pass | None]] = {}

    @property
    def count(self) -> int:
        """Passes that are replayed."""
        return sum(replay is not None for _, replay in self._recorded.values())

    def run(self, kind: Hashable, function: Pass, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        """See :func:`replayed`."""
        if not torch.is_grad_enabled() or not any(x.requires_grad for x in (*inputs, *weights)):
            return function(*inputs)
        form = (torch.is_autocast_enabled(self.device.type), *((x.shape, x.dtype, x.requires_grad) for x in inputs))
        if kind not in self._recorded:
            if self._last.get(kind) != form:
                self._last[kind] = form
                return function(*inputs)
            self._recorded[kind] = form, self._record(function, inputs, weights)
        recorded_form, replay = self._recorded[kind]
        return replay(*inputs, *weights) if replay is not None and form == recorded_form else function(*inputs)

    def _record(self, function: Pass, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Pass | None:
        """The replay of a pass, or None if there cannot be one."""
        samples = (*_leaves(inputs), *weights)
        plain = lambda *args: function(*args[: len(inputs)])  # noqa: E731  (weights are arguments for autograd's sake)
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a weight converted before the recording would not be converted in a replay
        try:
            with self.quiet, self._same_draws():
                replay = self._make(plain, samples, allow_unused_input=True)
            off = self._off_by(plain, replay, inputs, weights)
        except Exception as error:  # a driver or an operation can refuse in any way, and the plain pass is always there
            why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        else:
            if off <= MOST:
                return replay
            why = f"its result differs by {off:.1e}"
        finally:
            torch.set_autocast_cache_enabled(cached)
        tell_once(f"compile=auto: a pass cannot be replayed as a CUDA graph ({why}); its kernels are started one by one")
        return None

    def _off_by(self, plain: Pass, replay: Pass, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> float:
        """The largest difference between results and gradients of two forms of a pass, with the same draws."""
        found = []
        for form in (plain, replay):
            args = (*_leaves(inputs), *weights)
            with self._same_draws():
                out = [x for x in tree_leaves(form(*args)) if x.requires_grad]
            asked = [x for x in args if x.requires_grad]
            gradients = torch.autograd.grad(out, asked, [x.detach() for x in out], allow_unused=True)
            found.append([x.detach().clone() for x in (*out, *gradients) if x is not None])
        if len(found[0]) != len(found[1]):
            return float("inf")
        worst = [_difference(there, expected) for expected, there in zip(*found, strict=True) if expected.numel()]
        return float(torch.stack(worst).max()) if worst else 0.0

    @contextmanager
    def _same_draws(self) -> Iterator[None]:
        """Leave the generators as they were."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            yield


def _leaves(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Copies of a pass's inputs that belong to no other computation."""
    return [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]


def _difference(found: Tensor, expected: Tensor) -> Tensor:
    found, expected = found.double(), expected.double()
    off = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    return torch.where(found.isfinite().all(), off, torch.inf)


_graphs: ContextVar[Graphs | None] = ContextVar("graphs", default=None)


@contextmanager
def replayed_passes(graphs: Graphs | None) -> Iterator[None]:
    """Record and replay the passes of the block in ``graphs``; without any they are plain."""
    token = _graphs.set(graphs)
    try:
        yield
    finally:
        _graphs.reset(token)


def replaying() -> bool:
    """Return whether passes may be replayed here: in a block of :func:`replayed_passes` with graphs, where gradients are computed."""
    return _graphs.get() is not None and torch.is_grad_enabled()


def replayed(kind: Hashable, function: Callable[..., T], inputs: Sequence[Tensor], weights: Sequence[Tensor] = ()) -> T:
    """Return ``function(*inputs)``, replayed in a block of :func:`replayed_passes`.

    Parameters
    ----------
    kind : hashable
        Passes of one kind do the same with their inputs.
    function : callable
        The pass. It depends on the values of its inputs and on the weights, and on nothing else that changes.
    inputs : sequence of tensors
    weights : sequence of tensors
        Trained tensors that the function reads by itself.
    """
    graphs = _graphs.get()
    return function(*inputs) if graphs is None else cast(T, graphs.run(kind, function, inputs, weights))
