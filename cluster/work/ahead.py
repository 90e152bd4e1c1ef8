"""Batches prepared one ahead: while a GPU computes with one, the next is gathered, copied and augmented.

A batch is a function of its rows, the seed and the epoch, so preparing it earlier changes nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Rows = TypeVar("Rows")
Batch = dict[str, Any]


class Side(Protocol):
    """A place for work next to that of the calling thread."""

    def prepared(self, prepare: Callable[[Rows], Batch], rows: Rows) -> tuple[Batch, Any]:
        """Prepare a batch; return it with a mark that is passed once its work is done."""
        ...

    def handed_over(self, batch: Batch, mark: Any) -> Batch:
        """Let the calling thread's work wait for the mark, without the host waiting."""
        ...


class SideStream:
    """A stream of a GPU next to the one on which the step computes; it is not used while another thread holds ``quiet``."""

    def __init__(self, device: torch.device, quiet: Lock | None = None):
        self.device, self.stream, self.quiet = device, torch.cuda.Stream(device), quiet or Lock()

    def prepared(self, prepare: Callable[[Rows], Batch], rows: Rows) -> tuple[Batch, Any]:
        """See :class:`Side`."""
        with self.quiet, torch.cuda.stream(self.stream):
            return prepare(rows), self.stream.record_event()

    def handed_over(self, batch: Batch, mark: Any) -> Batch:
        """See :class:`Side`. The memory of the batch is not used again before the step's stream is done with it."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(mark)
        for value in batch.values():
            if isinstance(value, Tensor) and value.is_cuda:
                value.record_stream(current)
        return batch


def side_of(device: torch.device, quiet: Lock | None = None) -> Side | None:
    """Return a GPU's side stream; None on a CPU, whose cores are the same for both kinds of work."""
    return SideStream(device, quiet) if device.type == "cuda" else None


def prepared_ahead(prepare: Callable[[Rows], Batch], batches: Sequence[Rows], side: Side | None) -> Generator[Batch]:
    """Yield ``prepare(rows)`` for each of ``batches``, in order; with a side, the next one is being prepared meanwhile.

    Parameters
    ----------
    prepare : callable
        Makes a batch of its rows. With a side it runs in a thread of its own.
    batches : sequence
        Rows of each batch.
    side : Side, optional
        See :func:`side_of`.
    """
    if side is None or not batches:
        yield from map(prepare, batches)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="czsl-ahead") as thread:
        coming = thread.submit(side.prepared, prepare, batches[0])
        for place in range(len(batches)):
            batch, mark = coming.result()
            if place + 1 < len(batches):
                coming = thread.submit(side.prepared, prepare, batches[place + 1])
            yield side.handed_over(batch, mark)
