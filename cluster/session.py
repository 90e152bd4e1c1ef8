"""Joining or starting a Ray cluster, and what its nodes offer.

Environment variables read here: ``RAY_ADDRESS`` (cluster to join), ``RAY_AUTH_MODE`` and ``RAY_AUTH_TOKEN_PATH`` (token authentication).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from czsl.errors import SetupError

OBJECT_STORE_BYTES = 300 * 2**20  # nothing large travels through it: images are read where they are needed
WORKER_START_TIMEOUT_S = 300


@dataclass(frozen=True)
class Placement:
    """Where workers run: ``nodes`` nodes with ``per_node`` workers each.

    gpu : each worker has a GPU
    threads : CPU threads a worker
    spread : nodes must be different machines
    note : what differs from what was asked, for the user; empty if nothing
    """

    nodes: int
    per_node: int
    gpu: bool
    threads: int
    spread: bool
    note: str = ""

    @property
    def workers(self) -> int:
        """Workers on all nodes together."""
        return self.nodes * self.per_node


def _prepare_environment(joins: bool) -> None:
    """Set what Ray reads when it is imported."""
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(WORKER_START_TIMEOUT_S))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about a coming change
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if joins and token.is_file():
        # A driver with the right token but without this mode fails to connect and does not say why.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def session(address: str | None = None) -> Iterator[Any]:
    """Ray, connected: to ``address``, else to ``RAY_ADDRESS``, else to a local one started and stopped here.

    Raises
    ------
    SetupError
        If the cluster does not answer or has another version of Ray or Python.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    _prepare_environment(joins=bool(address))
    import ray

    if ray.is_initialized():  # a caller's own session
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    except Exception as error:  # Ray raises many kinds here
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        fix = (
            "check the address, the token file (RAY_AUTH_TOKEN_PATH) and that both sides have the same versions of ray and Python"
        )
        raise SetupError(f"cannot connect to {where}" if address else f"cannot start {where}", reason, fix) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def place(ray: Any, nodes: int, workers_per_node: int | None = None, threads: int = 0) -> Placement:
    """Choose where workers run, on the nodes there are.

    Parameters
    ----------
    ray : module
        Connected, as :func:`session` gives it.
    nodes : int
        Nodes asked for.
    workers_per_node : int, optional
        Default: one a GPU, or one where there is no GPU.
    threads : int
        CPU threads a worker; 0 divides a node's CPUs among its workers.

    Raises
    ------
    SetupError
        If no node can hold a worker.
    """
    return _choose(node_resources(ray), nodes, workers_per_node, threads)


def node_resources(ray: Any) -> list[dict[str, float]]:
    """What each living node with a CPU offers; SetupError if there is none."""
    alive = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]
    if not alive:
        raise SetupError(
            "the cluster has no node with a CPU", f"{len(ray.nodes())} nodes known", "start nodes with at least one CPU"
        )
    return alive


def planned(address: str | None, nodes: int, workers_per_node: int | None = None, threads: int = 0) -> Placement:
    """Where :func:`place` would put the workers; starts no Ray where none would be joined."""
    if address or os.environ.get("RAY_ADDRESS"):
        with session(address) as ray:
            return place(ray, nodes, workers_per_node, threads)
    import torch

    return _choose([{"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}], nodes, workers_per_node, threads)


def _choose(alive: list[dict[str, float]], nodes: int, workers_per_node: int | None, threads: int) -> Placement:
    alive.sort(key=lambda r: (r.get("GPU", 0), r["CPU"]), reverse=True)
    used = alive[:nodes]
    gpus = int(min(r.get("GPU", 0) for r in used))
    cpus = int(min(r["CPU"] for r in used))
    per_node = workers_per_node or max(gpus, 1)
    if per_node > cpus:
        raise SetupError(
            f"{per_node} workers a node, but a node has {cpus} CPUs", "each worker needs a CPU", "use fewer --workers-per-node"
        )
    note = ""
    if len(used) < nodes:
        note = f"{nodes} nodes asked, {len(used)} in the cluster: training on {len(used)}; the global batch stays the same"
    spread = len(used) > 1
    return Placement(len(used), per_node, gpus >= per_node, threads or max(1, cpus // per_node), spread, note)
