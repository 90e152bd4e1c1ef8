"""Functions of a training step that torch.compile can make into fewer kernels; they are plain outside of :func:`compiled_functions`.

A GPU starts a kernel about as quickly as it computes a small one. The functions are the repeated parts of towers, so each is compiled
once and serves all blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from czsl.gpus import tell_once

P = ParamSpec("P")
T = TypeVar("T")

_asked: ContextVar[bool] = ContextVar("compiled", default=False)


def compilable(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function of tensors and modules, which :func:`compiled_functions` compiles where gradients are computed.

    One form serves all sizes (``dynamic``): a last, smaller batch needs no form of its own. Draws are those of the plain form
    (``fallback_random``).
    """
    form: list[Callable[P, T]] = []

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        if not (_asked.get() and torch.is_grad_enabled()):
            return function(*args, **options)
        if not form:
            form.append(torch.compile(function, dynamic=True, options={"fallback_random": True}))
        return form[0](*args, **options)

    return call


@contextmanager
def compiled_functions(asked: bool = True) -> Iterator[None]:
    """Run the compiled form of what is marked with :func:`compilable` in the block."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


@compilable
def _sample(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.gelu(layer(x)) + x


def can_compile(device: torch.device) -> bool:
    """Compile, run and differentiate a small function on a device; if that fails, say why, once, and return False."""
    try:
        with torch.random.fork_rng(), torch.enable_grad(), compiled_functions():
            layer, x = nn.Linear(8, 8).to(device), torch.randn(4, 8, device=device, requires_grad=True)
            _sample(layer, x).sum().backward()
    except Exception as error:  # a compiler can fail in any way, and eager execution is always there
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        tell_once(f"compile=auto: torch.compile does not work here ({why}); nothing is compiled")
        return False
    return True


class Use(NamedTuple):
    """The means that ``compile=auto`` uses in a run; see :func:`use_of`.

    compiled : repeated functions are compiled (:func:`compiled_functions`)
    replayed : passes through towers are recorded and replayed (`czsl.clip.captured`)
    note : what is not done, and the reason
    """

    compiled: bool = False
    replayed: bool = False
    note: str = ""


PLAIN = Use()


def use_of(setting: str, device: torch.device, recomputes: bool) -> Use:
    """Return what of a run's step is compiled and replayed.

    Parameters
    ----------
    setting : {"off", "auto"}
    device : torch.device
    recomputes : bool
        Activations are computed again in the backward pass, which must be done in the same form.
    """
    if setting == "off":
        return PLAIN
    if device.type != "cuda":
        return Use(note="compile=auto is for GPUs: on a CPU kernels cost no start")
    if recomputes:
        return Use(note="compile=auto: not with checkpoint_blocks or accumulate, which compute activations again")
    if can_compile(device):
        return Use(True, True)
    return Use(
        replayed=True, note="compile=auto: torch.compile does not work here (see the log); passes are replayed as CUDA graphs"
    )
