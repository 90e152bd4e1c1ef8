"""Communication of a method with the other workers. On one worker it is the identity; ``cluster.work.comm`` has the distributed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from czsl.recompute import recomputed


class Communicator:
    """A single worker: rank 0 of 1.

    A training step has two halves. Before :meth:`gather`, each worker sees its own rows of the global batch; after it, all
    workers hold the same rows of the whole global batch and compute the same numbers. Batch statistics, prototypes and losses
    therefore need no synchronisation of their own, and the number of workers does not change the result.

    Random draws follow the same halves. ``step_seed`` is set by the training loop before each step and makes every draw a
    function of (seed, step), so a resumed run draws what an uninterrupted one would have; None does not touch torch's generator.
    ``batch``, also set before each step, is the number of images that all workers have together. ``parts`` is the number of parts in
    which a worker does its own rows (:meth:`in_parts`).
    """

    rank: int = 0
    world: int = 1
    step_seed: int | None = None
    batch: int = 0
    parts: int = 1

    def seed_own(self) -> None:
        """From here on draws differ between workers (dropout on a worker's own images)."""
        if self.step_seed is not None:
            torch.manual_seed((self.step_seed * 1_000_003 + self.rank + 1) % 2**63)

    def seed_common(self) -> None:
        """From here on all workers draw the same numbers."""
        if self.step_seed is not None:
            torch.manual_seed((self.step_seed * 1_000_003) % 2**63)

    def gather(self, x: Tensor, rows: int) -> Tensor:
        """All of ``rows`` pieces of common work, of which each worker did its :meth:`share`: [b, ...] -> [B, ...].

        The gradient goes to the own pieces.
        """
        return x

    def common(self, x: Tensor) -> Tensor:
        """Pass a tensor that is equal on all workers into work that each does on rows of its own.

        The results of such work go back through :meth:`gather`. Then each worker has the gradient of the work done as a whole.
        """
        return x

    def own_rows(self, x: Tensor) -> Tensor:
        """This worker's rows [b, ...] of a tensor [B, ...] that is equal on all workers, for work on these rows; see :meth:`common`."""
        return self.common(x)[self.share(len(x))]

    def share(self, rows: int, rank: int | None = None) -> slice:
        """The contiguous part of ``rows`` pieces of common work that is this worker's (or another's); :meth:`gather` joins the parts."""
        rank = self.rank if rank is None else rank
        return slice(rows * rank // self.world, rows * (rank + 1) // self.world)

    def in_parts(self, work: Callable[[slice], Tensor], rows: int, device: torch.device) -> Tensor:
        """Results [rows, ...] of work on rows that do not depend on each other, one part of the rows after the other.

        With several ``parts`` a part's activations are not kept: the backward pass computes them again, with the same random draws, and
        adds the part's gradients before it starts with the next part. So gradients are those of the whole, and memory is that of a part.
        """
        parts = min(self.parts, rows)
        if parts < 2 or not torch.is_grad_enabled():
            return work(slice(0, rows))
        # The generators and the precision that are kept for the second computation are those of the arguments' device.
        anchor = torch.empty(0, device=device)
        slices = [slice(rows * i // parts, rows * (i + 1) // parts) for i in range(parts)]
        return torch.cat([recomputed(lambda part, _: work(part), part, anchor) for part in slices])
