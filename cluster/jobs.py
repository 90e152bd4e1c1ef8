"""A job that workers do together and that ends in files: started on the nodes asked for, watched, started anew once if some die."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cluster.launch import WorkerFunction, run_workers
from cluster.nodes import Ask, Waiting, await_placement, silent_nodes
from cluster.session import Placement, session
from cluster.source import Progress, quiet
from czsl.runs.files import write_json
from czsl.runs.run import Run

POLL_S = 0.5
MAX_FAILURES = 1

Notice = Callable[[str], None]  # told in words what differs from what was asked


def unnoticed(text: str) -> None:
    """A notice that nobody reads."""


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
        As :func:`cluster.launch.run_workers` takes them.
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


def threads_for(run: Run) -> int:
    """CPU threads of each worker of a job on a run: the same whatever their number, though fewer CPUs may be reserved for it."""
    return run.threads or torch.get_num_threads()


@contextlib.contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """That many threads for torch inside the block; 0 leaves them as they are."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)


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


def kept(folder: Path, rank: int) -> Progress:
    """A worker's progress, kept in a file of the folder where the driver finds it; that of the first worker stands for all."""
    last = 0.0

    def keep(what: str, done: int, total: int) -> None:
        nonlocal last
        if rank == 0 and (done >= total or time.monotonic() - last > POLL_S):
            last = time.monotonic()
            write_json(_file(folder), [what, done, total])

    return keep


def hand_on(folder: Path, progress: Progress) -> None:
    """Tell what :func:`kept` wrote last."""
    with contextlib.suppress(OSError, ValueError):  # none yet
        progress(*json.loads(_file(folder).read_text(encoding="utf-8")))


def _file(folder: Path) -> Path:
    return folder / "progress.json"
