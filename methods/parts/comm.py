"""What a method may ask of the other workers. On one worker it is the identity; ``cluster.comm`` has the distributed form."""

from __future__ import annotations

from torch import Tensor


class Communicator:
    """One worker alone: rank 0 of 1.

    A training step has two halves. Before :meth:`gather`, each worker sees its own rows of the global batch; behind it, all
    workers hold the same rows of the whole global batch and compute the same numbers. Batch statistics, prototypes and losses
    therefore need no synchronisation of their own.
    """

    rank: int = 0
    world: int = 1

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all workers in rank order, [b, ...] -> [B, ...], with a gradient to the own rows."""
        return x

    def share(self, rows: int) -> slice:
        """This worker's contiguous part of ``rows`` pieces of common work, as a slice (gather puts them together)."""
        return slice(0, rows)
