"""The placement of a job's workers on nodes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Placement of workers: ``nodes`` nodes with ``per_node`` workers each.

    gpu : each worker has a GPU
    threads : CPU threads per worker
    spread : the workers must be on exactly ``nodes`` different nodes
    note : how the placement differs from the request, for the user; empty if it does not
    pins : Ray's ids of the nodes to use, if Ray could otherwise spread the workers over more nodes
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
