"""CPU threads of a worker: pinned, because the last bits of a matrix product follow from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from czsl.runs.run import Run


def threads_for(run: Run) -> int:
    """CPU threads of each worker of a job on a run: the same whatever their number, though fewer CPUs may be reserved for it."""
    return run.threads or torch.get_num_threads()


@contextlib.contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Set the number of torch's threads inside the block; 0 leaves them as they are."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)
