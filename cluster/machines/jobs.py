"""A job that workers do together and that ends in files: started on the nodes asked for, watched, started anew once if some die."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.machines.launch import WorkerFunction, run_workers
from cluster.machines.nodes import Ask, Waiting, await_placement, silent_nodes
from cluster.machines.session import session
from cluster.work.placement import Placement
from cluster.work.progress import Notice, Progress, hand_on, quiet, unnoticed

POLL_S = 0.5
MAX_FAILURES = 1


def on_workers(
    function: WorkerFunction,
    config: dict[str, Any],
    folder: Path,
    ask: Ask,
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
        Seen by all nodes; what workers have finished must lie in files, since after a death all are started anew.
    ask : Ask
    threads : int
        CPU threads a worker; 0 divides a node's CPUs among its workers.
    progress, notice : callable, optional
        Called from the calling thread.
    """
    with session(ask.address) as ray:
        placement = placed(ray, ask, threads, progress, notice)

        def work() -> None:
            run_workers(
                function,
                config,
                placement,
                folder,
                MAX_FAILURES,
                again=lambda: await_placement(ray, ask, threads, without=silent_nodes(ray)),
            )

        watched(work, lambda: hand_on(folder, progress))


def placed(ray: Any, ask: Ask, threads: int, progress: Progress = quiet, notice: Notice = unnoticed) -> Placement:
    """Where the workers asked for run, once their nodes are there."""

    def waiting(state: Waiting) -> None:
        progress(f"waiting for nodes, {state.waited_s:.0f} of {state.limit_s:.0f} s,", state.found, state.wanted)

    placement = await_placement(ray, ask, threads, on_wait=waiting)
    if placement.note:
        notice(placement.note)
    return placement


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
