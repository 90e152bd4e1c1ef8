"""Waiting for a cluster's nodes, and asking each of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cluster.machines.session import alive_nodes, joins, place, usable
from cluster.work.placement import Placement
from czsl.errors import SetupError, UsageError
from czsl.gpus import gpus

POLL_S = 1.0
GROWTH_S = 15.0  # an elastic run that has its minimum waits this long for more
REPLY_S = 60.0  # a node without a reply within this time is left out


@dataclass(frozen=True)
class NodeRequest:
    """The nodes that a run requests.

    max_nodes : nodes to use if they are there
    min_nodes : nodes without which the run does not start, or continue after losses; None runs on what is there
    workers_per_node, gpus_per_node : see :func:`cluster.machines.session.place`
    wait_s : longest wait for nodes, at the start and after losing one; without a joined cluster none can come
    address : the Ray cluster to join, see :func:`cluster.machines.session.session`
    engine : ``auto``, ``local`` (one worker here, without Ray) or ``ray``
    """

    max_nodes: int = 1
    min_nodes: int | None = None
    workers_per_node: int | None = None
    gpus_per_node: int | None = None
    wait_s: float = 0.0
    address: str | None = None
    engine: str = "auto"

    def __post_init__(self):
        if self.engine == "local" and (self._several or self.address):
            what = "--address" if self.address else "more than one worker"
            raise UsageError(
                f"--engine local with {what}",
                "the local engine is one worker on this machine",
                "leave out --engine, or --nodes, --workers-per-node, --gpus-per-node and --address",
            )

    @classmethod
    def of(cls, nodes: int | tuple[int, int] = 1, **where: Any) -> NodeRequest:
        """Return a request from options: ``nodes`` is a number, or minimum and maximum; the rest are the fields' names."""
        min_nodes, max_nodes = nodes if isinstance(nodes, tuple) else (None, nodes)
        request = cls(max_nodes, min_nodes, **where)
        return request if joins(request.address) and not request.local else replace(request, wait_s=0.0)

    @property
    def _several(self) -> bool:
        return self.max_nodes > 1 or (self.workers_per_node or 1) > 1 or (self.gpus_per_node or 1) > 1

    @cached_property
    def local(self) -> bool:
        """One worker on this machine, which needs no Ray: as asked, or because there is neither a cluster nor a second GPU to use."""
        if self.engine != "auto":
            return self.engine == "local"
        if joins(self.address) or self._several:
            return False
        return bool(self.workers_per_node or self.gpus_per_node) or gpus() <= 1


@dataclass(frozen=True)
class Waiting:
    """State of the wait for nodes: ``found`` of ``wanted`` nodes, ``waited_s`` of ``limit_s`` seconds."""

    found: int
    wanted: int
    waited_s: float
    limit_s: float

    def __str__(self) -> str:
        return f"waiting for nodes: {self.found} of {self.wanted}, {self.waited_s:.0f} s of {self.limit_s:.0f} s"


class WaitStoppedError(Exception):
    """Somebody asked to stop while the run was waiting for nodes."""


def await_placement(
    ray: Any,
    request: NodeRequest,
    threads: int = 0,
    *,
    without: frozenset[str] = frozenset(),
    on_wait: Callable[[Waiting], None] = lambda waiting: None,
    stop: Callable[[], bool] = lambda: False,
) -> Placement:
    """Wait until the nodes asked for are there, then choose where workers run.

    An autoscaler sees the nodes that are missing as demand. ``without`` names nodes that count as lost. ``on_wait`` is called with
    once a second, ``stop`` asked as often.

    Raises
    ------
    SetupError
        At the deadline, if there are fewer nodes than the minimum, or none.
    WaitStoppedError
        ``stop`` said so.
    """
    began = time.monotonic()
    enough_since: float | None = None
    found, waited, limit = 0, 0.0, request.wait_s
    with _Demand(ray, request) as demand:
        while True:
            now = time.monotonic()
            alive = {name: r for name, r in alive_nodes(ray).items() if name not in without}
            found, waited = len(usable(alive, request.gpus_per_node, request.workers_per_node)), now - began
            if request.min_nodes is not None and found >= request.min_nodes:
                enough_since = enough_since or now
                limit = min(request.wait_s, enough_since - began + GROWTH_S)
            else:
                enough_since, limit = None, request.wait_s
            if found >= request.max_nodes or waited >= limit:
                break
            if stop():
                raise WaitStoppedError
            demand.make()
            on_wait(Waiting(found, request.max_nodes if enough_since else request.min_nodes or request.max_nodes, waited, limit))
            time.sleep(POLL_S)
    if found < (request.min_nodes or 1):
        kind = f" with {request.gpus_per_node} GPUs" if request.gpus_per_node else ""
        raise SetupError(
            f"{found} node{'' if found == 1 else 's'}{kind} in the cluster, at least {request.min_nodes or 1} needed",
            f"waited {waited:.0f} s" + (f"; {len(without)} do not answer" if without else ""),
            "start more nodes (czsl cluster status lists them), wait longer with --wait, or ask for fewer with --nodes",
        )
    return place(ray, request.max_nodes, request.workers_per_node, threads, request.gpus_per_node, without)


class _Demand:
    """A pending placement group over the nodes asked for: what an autoscaler looks at. Nothing runs in it."""

    def __init__(self, ray: Any, request: NodeRequest):
        self._ray, self._request, self._group = ray, request, None

    def __enter__(self) -> _Demand:
        return self

    def make(self) -> None:
        """Request the nodes once."""
        if self._group is None:
            from ray.util import placement_group

            gpus = self._request.gpus_per_node or (1 if any(r.get("GPU") for r in alive_nodes(self._ray).values()) else 0)
            bundle = {"CPU": 1.0, **({"GPU": float(gpus)} if gpus else {})}
            self._group = placement_group([bundle] * self._request.max_nodes, strategy="STRICT_SPREAD")

    def __exit__(self, *error: object) -> None:
        if self._group is not None:
            from ray.util import remove_placement_group

            remove_placement_group(self._group)


@dataclass(frozen=True)
class NodeReply:
    """Reply of a node: ``result``, or in ``error`` the reason for its absence."""

    node: str
    address: str
    result: Any = None
    error: str = ""


def call_every_node(ray: Any, function: Callable[..., Any], *arguments: Any, timeout_s: float = REPLY_S) -> list[NodeReply]:
    """Call a module's function on every living node, at once; a node that fails or is silent gives a reply with ``error``."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [n for n in ray.nodes() if n["Alive"]]
    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    refs = {}
    for n in nodes:
        strategy = NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)
        refs[n["NodeID"]] = remote.options(scheduling_strategy=strategy).remote(*arguments)
    done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=timeout_s) if refs else ([], [])
    replies = []
    for n in nodes:
        name, address, ref = n["NodeID"], n["NodeManagerAddress"], refs[n["NodeID"]]
        if ref not in done:
            with suppress(Exception):
                ray.cancel(ref, force=True)
            replies.append(NodeReply(name, address, error=f"no answer within {timeout_s:.0f} s"))
            continue
        try:
            replies.append(NodeReply(name, address, ray.get(ref)))
        except Exception as error:  # Ray raises many kinds here
            replies.append(NodeReply(name, address, error=last_line(error)))
    return replies


def last_line(error: BaseException) -> str:
    """The end of an exception's text, where Ray puts the cause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def silent_nodes(ray: Any) -> frozenset[str]:
    """Nodes that Ray believes to be alive and that do not answer: lost ones which it has not noticed yet."""
    if len(alive_nodes(ray)) < 2:
        return frozenset()
    return frozenset(a.node for a in call_every_node(ray, _reply) if a.error)


def _reply() -> bool:
    return True
