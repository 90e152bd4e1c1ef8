"""Hyperparameter search: Ray Tune shares the cluster between trials, each of which is an ordinary training on Ray Train."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.machines.session import node_resources, place, session
from cluster.train import TrainingFailedError
from cluster.tuning.driving import drive, prepare_ray
from cluster.tuning.proposals import Proposals, proposals_of
from czsl.data.table import open_data
from czsl.errors import DataError, SetupError
from czsl.runs.files import held
from czsl.runs.search import Space, parse_space
from czsl.runs.trials import OVER, Search, SearchConfig, Trial
from methods.registry import config_class

TRIALS_A_NODE = 4  # without GPUs; more would each get few threads and a memory of their own


@dataclass(frozen=True)
class Share:
    """Division of a cluster among trials.

    concurrent : trials at once
    workers : of a trial
    threads : CPU threads per worker
    gpu : each worker has a GPU
    note : what differs from the request
    """

    concurrent: int
    workers: int
    threads: int
    gpu: bool
    note: str = ""


def share(ray: Any, config: SearchConfig, trials: int, threads: int = 0) -> Share:
    """Divide the cluster among the trials that are left, so that every one that is started finds room for all its workers.

    ``threads`` are those of the trials before: all have the same, or their last bits, and the features that they share, would differ.

    Raises
    ------
    SetupError
        If not even one trial fits.
    """
    asked = min(config.max_concurrent or trials, trials)
    pinned = config.base.threads or threads
    placement = place(ray, config.nodes, config.workers_per_node, pinned)
    nodes = [n for n in node_resources(ray) if not placement.gpu or n.get("GPU", 0) >= placement.per_node]
    groups = max(1, len(nodes) // placement.nodes)  # sets of nodes that hold trials side by side
    cpus = int(min(n["CPU"] for n in nodes))
    capacity = (
        int(min(n["GPU"] for n in nodes)) // placement.per_node
        if placement.gpu
        else min(TRIALS_A_NODE, cpus // placement.per_node)
    )
    a_node = max(1, min(capacity, -(-asked // groups)))
    threads = pinned or max(1, cpus // (a_node * placement.per_node))
    a_node = min(a_node, cpus // (threads * placement.per_node))
    if not a_node:
        wanted = threads * placement.per_node
        raise SetupError(
            f"a trial wants {wanted} CPUs of a node",
            f"{placement.per_node} workers of {threads} threads; a node has {cpus} CPUs",
            "lower threads or --workers-per-node",
        )
    concurrent = min(asked, groups * a_node)
    note = placement.note
    if config.max_concurrent > concurrent and trials > concurrent:
        note = " ".join(filter(None, [note, f"{config.max_concurrent} trials at once asked, {concurrent} fit"]))
    return Share(concurrent, placement.workers, threads, placement.gpu, note)


def space_of(config: SearchConfig) -> Space:
    """The parsed search space."""
    method = config.base.method
    return parse_space(config.space, method, config_class(method))


def proposals(config: SearchConfig, tried: list[Trial]) -> Proposals:
    """The search algorithm, with the trials that have ended."""
    rows = [(t, t.summary(config.metric)) for t in tried if t.status() in OVER]
    results = [(t.values, None if r["status"] == "failed" else r[config.metric]) for t, r in rows]
    return proposals_of(config.algorithm, space_of(config), config.seed, results)


def tune(
    search: Search,
    *,
    address: str | None = None,
    on_share: Callable[[Share], None] = lambda share: None,
    on_record: Callable[[Trial, dict[str, Any]], None] = lambda trial, record: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    on_stop: Callable[[], None] = lambda: None,
) -> str:
    """Run the trials of a search that are not over; returns ``done``, or ``stopped`` after SIGINT or SIGTERM.

    Parameters
    ----------
    search : Search
        A new search, or one that was interrupted.
    address
        See :func:`cluster.machines.session.session`.
    on_share, on_record, on_trial, on_stop : callable
        Called with how the trials share the cluster, every new line of a trial's metrics, every trial that begins or ends, and at a signal.

    Raises
    ------
    CzslError
        No validation images; nothing fits; Ray Tune itself failed. A failed trial does not raise.
    """
    config = search.config
    data = open_data(config.base.data)
    if not len(data.split("val")):
        raise DataError(
            f"{config.base.data} has no validation images", "trials are compared on them", "import it with a val split"
        )
    prepare_ray()
    with held(search.path, "this search"):
        search.clean()
        if search.is_over():
            return "done"
        source = proposals(config, search.trials())
        with session(address) as ray:
            from cluster.tuning.tuner import SearchQueue

            queue = SearchQueue(search, source, data.space, on_trial)
            part = share(ray, config, queue.left, next((t.run.threads for t in search.trials() if t.run and t.run.threads), 0))
            on_share(part)
            failure = drive(
                search.path,
                config,
                queue,
                _scheduler(search, queue),
                concurrent=part.concurrent,
                threads=part.threads,
                on_record=on_record,
                on_trial=on_trial,
                on_stop=on_stop,
            )
        shutil.rmtree(search.path / ".ray", ignore_errors=True)
    if failure:
        raise TrainingFailedError(
            "the search failed",
            str(failure).strip().splitlines()[-1],
            f"see {search.path / 'log.txt'}; continue with: czsl tune --resume {search.path}",
        )
    return "stopped" if queue.stopping else "done"


def _scheduler(search: Search, queue: Any) -> Any:
    """Ray Tune's scheduler as the search sets it."""
    from ray.tune.schedulers import FIFOScheduler

    from cluster.tuning.tuner import Halving

    if search.config.scheduler != "asha":
        return FIFOScheduler()
    max_epochs = search.config.base.epochs
    if domain := space_of(search.config).get("epochs"):
        max_epochs = int(max(domain.args if domain.kind == "choice" else domain.args[:2]))
    return Halving(search, queue.live, max_epochs)
