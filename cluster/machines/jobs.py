"""A job that workers do together and that ends in files: started on the requested nodes, watched, and restarted once if some die."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.machines.launch import Engine, WorkerFunction, run_workers
from cluster.machines.local import LocalEngine
from cluster.machines.nodes import NodeRequest, Waiting
from cluster.machines.on_ray import RayEngine
from cluster.machines.session import session
from cluster.work.progress import Notice, Progress, hand_on, quiet, unnoticed

POLL_S = 0.5
MAX_FAILURES = 1


@contextlib.contextmanager
def engine_of(
    request: NodeRequest,
    threads: int = 0,
    on_wait: Callable[[Waiting], None] = lambda waiting: None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Engine]:
    """The engine for a node request; it ends with the block, as does what it started. Arguments as of :class:`RayEngine`."""
    if request.local:
        local = LocalEngine(threads)
        try:
            yield local
        finally:
            local.close()
        return
    with session(request.address) as ray:
        yield RayEngine(ray, request, threads, on_wait, stop)


def on_workers(
    function: WorkerFunction,
    config: dict[str, Any],
    folder: Path,
    request: NodeRequest,
    threads: int,
    progress: Progress = quiet,
    notice: Notice = unnoticed,
) -> None:
    """Run ``function(config, group, device)`` on the workers asked for, and hand on the progress that it keeps with :func:`kept`.

    Parameters
    ----------
    function, config
        As :func:`cluster.machines.launch.run_workers` takes them.
    folder : Path
        Seen by all nodes; what workers have finished must lie in files, since after a death all are started again.
    request : NodeRequest
    threads : int
        CPU threads per worker; 0 divides a node's CPUs among its workers.
    progress, notice : callable, optional
        Called from the calling thread.
    """
    news: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look() -> None:
        while not news.empty():
            item = news.get()
            if isinstance(item, Waiting):
                tell_waiting(item, progress)
            elif item.note:
                notice(item.note)
        hand_on(folder, progress)

    with engine_of(request, threads, news.put) as engine:
        watched(lambda: run_workers(engine, function, config, folder, MAX_FAILURES, on_placement=news.put), look)


def tell_waiting(state: Waiting, progress: Progress) -> None:
    """Hand on the wait for nodes as progress."""
    progress(f"waiting for nodes, {state.waited_s:.0f} of {state.limit_s:.0f} s,", state.found, state.wanted)


def watched(work: Callable[[], None], look: Callable[[], None]) -> None:
    """Do the work in a thread and look at it now and then; what it raises is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        look()
    if failed:
        raise failed[0]
