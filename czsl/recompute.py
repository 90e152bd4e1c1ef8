"""Work whose activations are not kept for the backward pass, which computes them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch.utils.checkpoint import checkpoint

Watch = Callable[[Callable[..., Any], tuple[Any, ...]], Any]
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


def recomputed(function: Callable[..., Any], *args: Any) -> Any:
    """Return ``function(*args)``; the backward pass calls it again, with the same random draws, instead of keeping what it computes.

    The generators and the precision that are kept for the second call are those of the devices of the tensors in ``args``.
    """
    watch = _watch.get()
    return checkpoint(function, *args, use_reentrant=False) if watch is None else watch(function, args)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Call ``watch(function, args)`` in the place of each :func:`recomputed` in the block, to count what such work keeps."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)
