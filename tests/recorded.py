"""A stand-in on a CPU for ``torch.cuda.make_graphed_callables``: it records operations on addresses, and a replay repeats these.

Like a CUDA graph it knows nothing of the function after the recording: numbers of the host and tensors from outside keep what they had.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


class HostWaitsError(RuntimeError):
    """A value was read by the host, which a recording does not allow."""


class Tape(TorchDispatchMode):
    """The operations of a block with the tensors that they read and wrote."""

    def __init__(self):
        super().__init__()
        self.entries = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if any(isinstance(x, int | float | bool) for x in tree_leaves(out)):
            raise HostWaitsError(f"the host waits for {func}")
        self.entries.append((func, args, kwargs, out))
        return out

    def replay(self):
        with _disable_current_modes(), torch.no_grad():
            for func, args, kwargs, out in self.entries:
                new = func(*args, **kwargs)
                given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
                for recorded, x in zip(tree_leaves(out), tree_leaves(new), strict=True):
                    if isinstance(recorded, Tensor) and recorded.untyped_storage().data_ptr() not in given:
                        recorded.copy_(x)


def make_recorded_callable(function, samples, allow_unused_input=False):
    """The replay of a function for arguments like the samples; it runs the function three times before it records it, as torch does."""
    assert not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())
    asked = [x for x in samples if x.requires_grad]

    def gradients(out, grads):
        return torch.autograd.grad(out, asked, grads, allow_unused=allow_unused_input)

    for _ in range(3):
        out = tree_leaves(function(*samples))
        gradients(out, [torch.empty_like(x) for x in out])
    forward, backward = Tape(), Tape()
    with forward:
        static_out, spec = tree_flatten(function(*samples))
    static_grads = [torch.empty_like(x) for x in static_out]
    with backward:
        found = iter(gradients(static_out, static_grads))
    static_found = [next(found) if x.requires_grad else None for x in samples]

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            for static, x in zip(samples, inputs, strict=True):
                if static.data_ptr() != x.data_ptr():
                    static.copy_(x)
            forward.replay()
            return tuple(x.detach() for x in static_out)

        @staticmethod
        def backward(ctx, *grads):
            for static, x in zip(static_grads, grads, strict=True):
                static.copy_(x)
            backward.replay()
            return tuple(None if x is None else x.detach() for x in static_found)

    return lambda *args: tree_unflatten(Replay.apply(*args), spec)
