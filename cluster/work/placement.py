"""Where the workers of a job run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Where workers run: ``nodes`` nodes with ``per_node`` workers each.

    gpu : each worker has a GPU
    threads : CPU threads a worker
    spread : more than one node: that many different ones, and no others
    note : what differs from what was asked, for the user; empty if nothing
    pins : Ray's ids of the nodes to use, where the cluster could otherwise spread the workers over more
    """

    nodes: int
    per_node: int
    gpu: bool
    threads: int
    spread: bool
    note: str = ""
    pins: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        """Workers on all nodes together."""
        return self.nodes * self.per_node
