"""Joining or starting a Ray cluster, and what its nodes offer.

Environment variables read here: ``RAY_ADDRESS`` (cluster to join), ``RAY_AUTH_MODE``, ``RAY_AUTH_TOKEN`` and
``RAY_AUTH_TOKEN_PATH`` (token authentication).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.work.placement import Placement
from czsl.errors import SetupError
from czsl.gpus import gpus

OBJECT_STORE_BYTES = 300 * 2**20  # nothing large travels through it: images are read where they are needed
WORKER_START_TIMEOUT_S = 300
CONNECT_TIMEOUT_S = 5.0
LOCAL_STARTS = 3


def prepare_environment(joins: bool) -> None:
    """Set what Ray reads when it is imported."""
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(WORKER_START_TIMEOUT_S))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about a coming change
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if joins and (token_file().is_file() or os.environ.get("RAY_AUTH_TOKEN")):
        # A driver with the right token but without this mode fails to connect and does not say why.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def token_file() -> Path:
    """Return the path at which Ray looks for the token that all nodes and drivers of a cluster share."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def joins(address: str | None) -> bool:
    """Return whether :func:`session` joins a cluster; otherwise it starts a Ray of its own on this machine."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def check_answers(address: str | None) -> None:
    """SetupError if no head listens at the address, else at RAY_ADDRESS: Ray itself would try for many minutes.

    ``auto`` and URLs are Ray's own business.
    """
    address = address or os.environ.get("RAY_ADDRESS") or ""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "://" in address:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise SetupError(
            f"no Ray head answers at {address}",
            str(error),
            "is the address right and the head up? On it: czsl cluster status; start one with: czsl cluster up",
        ) from None


@contextmanager
def session(address: str | None = None) -> Iterator[Any]:
    """Ray, connected: to ``address``, else to ``RAY_ADDRESS``, else to a local one started and stopped here.

    Raises
    ------
    SetupError
        If the cluster does not answer or has another version of Ray or Python.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    prepare_environment(joins=bool(address))
    import ray

    if address:
        check_answers(address)
    if ray.is_initialized():  # a caller's own session
        yield ray
        return
    try:
        _connect(ray, address)
    except SetupError:
        raise
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


def _connect(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ray.init(address=address, **quiet)
        return
    for attempt in range(LOCAL_STARTS):
        try:
            # Ray would count cards by the driver's library, torch may be unable to use them.
            ray.init(address="local", num_gpus=gpus(), include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
            return
        except Exception as error:
            # Ray gives its own processes half a minute, which a machine that is busy with other work may need twice.
            if attempt + 1 == LOCAL_STARTS or "timed out" not in str(error):
                raise
            ray.shutdown()


def place(
    ray: Any,
    nodes: int,
    workers_per_node: int | None = None,
    threads: int = 0,
    gpus_per_node: int | None = None,
    without: Container[str] = (),
) -> Placement:
    """Choose where workers run, on the nodes there are.

    Parameters
    ----------
    ray : module
        Connected, as :func:`session` gives it.
    nodes : int
        Nodes asked for. Where the cluster has GPUs, only nodes with GPUs count.
    workers_per_node : int, optional
        Default: one per GPU, or one without GPUs.
    threads : int
        CPU threads per worker; 0 divides a node's CPUs among its workers.
    gpus_per_node : int, optional
        GPUs to use of each node, with a worker on each. Default: all.
    without : container of str
        Ids of nodes to leave out.

    Raises
    ------
    SetupError
        If no node can hold a worker.
    """
    alive = {name: r for name, r in alive_nodes(ray).items() if name not in without}
    fitting = usable(alive, gpus_per_node, workers_per_node)
    chosen = _choose(list(fitting.values()), nodes, workers_per_node, threads, gpus_per_node)
    if not chosen.spread or chosen.per_node == 1:
        return chosen
    wanted = {"CPU": chosen.threads * chosen.per_node, "GPU": chosen.per_node * chosen.gpu}
    holding = {name: r for name, r in fitting.items() if all(r.get(k, 0) >= n for k, n in wanted.items())}
    free = free_resources()
    busy = lambda name: any(free.get(name, {}).get(k, 0) < n for k, n in wanted.items())  # noqa: E731
    return replace(chosen, pins=tuple(sorted(holding, key=busy)[: chosen.nodes]))


def alive_nodes(ray: Any) -> dict[str, dict[str, float]]:
    """Return the resources of each living node with a CPU, by Ray's id of the node."""
    return {
        n.get("NodeID", str(i)): n["Resources"]
        for i, n in enumerate(ray.nodes())
        if n["Alive"] and n["Resources"].get("CPU", 0) >= 1
    }


def usable(
    alive: dict[str, dict[str, float]], gpus_per_node: int | None, workers_per_node: int | None = None
) -> dict[str, dict[str, float]]:
    """The nodes that count: those with the GPUs asked for; without a wish those with GPUs, where any has some."""
    minimum = gpus_per_node or (
        workers_per_node or 1 if any(r.get("GPU", 0) >= (workers_per_node or 1) for r in alive.values()) else 0
    )
    return {name: r for name, r in alive.items() if r.get("GPU", 0) >= minimum}


def free_resources() -> dict[str, dict[str, float]]:
    """Return the free resources by node, of the connected Ray."""
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()


def node_resources(ray: Any) -> list[dict[str, float]]:
    """Return the resources of each living node with a CPU; SetupError without any."""
    alive = list(alive_nodes(ray).values())
    if not alive:
        raise SetupError(
            "the cluster has no node with a CPU", f"{len(ray.nodes())} nodes known", "start nodes with at least one CPU"
        )
    return alive


def planned(
    address: str | None,
    nodes: int,
    workers_per_node: int | None = None,
    threads: int = 0,
    gpus_per_node: int | None = None,
) -> Placement:
    """Return where :func:`place` would put the workers; starts no Ray if none would be joined."""
    if joins(address):
        with session(address) as ray:
            return place(ray, nodes, workers_per_node, threads, gpus_per_node)
    here = {"": {"CPU": float(os.cpu_count() or 1), "GPU": float(gpus())}}
    fitting = list(usable(here, gpus_per_node, workers_per_node).values())
    return _choose(fitting, nodes, workers_per_node, threads, gpus_per_node)


def _choose(
    fitting: list[dict[str, float]], nodes: int, workers_per_node: int | None, threads: int, gpus_per_node: int | None = None
) -> Placement:
    if not fitting:
        wish = f"with {gpus_per_node} GPUs" if gpus_per_node else "with a CPU"
        raise SetupError(f"no node {wish} in the cluster", "none has joined, or none is alive", "look at: czsl cluster status")
    used = sorted(fitting, key=lambda r: (r.get("GPU", 0), r["CPU"]), reverse=True)[:nodes]
    cards = int(min(r.get("GPU", 0) for r in used))
    cpus = int(min(r["CPU"] for r in used))
    per_node = gpus_per_node or workers_per_node or max(cards, 1)
    if per_node > cpus:
        raise SetupError(
            f"{per_node} workers per node, but a node has {cpus} CPUs", "each worker needs a CPU", "use fewer --workers-per-node"
        )
    note = ""
    if 0 < cards < per_node:
        note = f"{per_node} workers per node on the CPU: a node has {cards} GPU{'' if cards == 1 else 's'}, and each worker needs its own"
    if len(used) < nodes:
        kind = " with a GPU" if cards else ""
        asked, there = f"{nodes} nodes{kind} asked", f"{len(used)} in the cluster"
        note = "; ".join(filter(None, [f"{asked}, {there}: running on {len(used)}; the global batch stays the same", note]))
    return Placement(len(used), per_node, cards >= per_node, threads or max(1, cpus // per_node), len(used) > 1, note)
