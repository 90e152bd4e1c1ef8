"""Training as a Ray Train job: start it, follow it, stop it with a checkpoint."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cluster.comm import Group
from cluster.launch import run_workers
from cluster.session import Placement, place, session
from cluster.worker import follow, train_worker
from czsl.errors import CzslError
from czsl.runs import checkpoint
from czsl.runs.run import Run

POLL_S = 0.2
MAX_FAILURES = 3


class TrainingFailedError(CzslError):
    """Training ended without a result."""


def train(
    run: Run,
    *,
    nodes: int = 1,
    workers_per_node: int | None = None,
    address: str | None = None,
    threads: int = 0,
    on_placement: Callable[[Placement], None] = lambda placement: None,
    on_record: Callable[[dict[str, Any]], None] = lambda record: None,
) -> str:
    """Train a run on a Ray cluster; returns ``done``, or ``stopped`` after SIGINT or SIGTERM with a checkpoint saved.

    Parameters
    ----------
    run : Run
        A new run, or an interrupted one, which goes on from its newest valid checkpoint.
    nodes, workers_per_node, address
        See :func:`cluster.session.place` and :func:`cluster.session.session`.
    threads : int
        CPU threads a worker where the run's settings leave them open.
    on_placement, on_record : callable
        Told where the workers run and every new line of the run's metrics.

    Raises
    ------
    CzslError
        What a worker raised, or :class:`TrainingFailedError` when workers died too often.
    """
    run.stop_file.unlink(missing_ok=True)
    newest = checkpoint.newest_valid(run.checkpoints)
    run.cut_metrics(checkpoint.step_of(newest) if newest else 0)
    position = run.metrics_file.stat().st_size
    with session(address) as ray:
        placement = place(ray, nodes, workers_per_node, run.config.threads or threads)
        on_placement(placement)
        failures: list[BaseException] = []
        job = threading.Thread(target=_fit, args=(run, placement, failures), daemon=True)

        def stop() -> None:
            run.stop_file.touch()
            on_record({"event": "stopping"})

        with stop_on_signal(stop):
            job.start()  # off the main thread Ray installs no signal handler, which would end the workers without a checkpoint
            while job.is_alive():
                job.join(POLL_S)
                position = _forward(run, position, on_record)
        _forward(run, position, on_record)
    run.stop_file.unlink(missing_ok=True)
    shutil.rmtree(run.path / ".ray", ignore_errors=True)
    last = list(run.metrics())[-1:]
    if not failures and last and last[0].get("event") == "end":
        return last[0]["status"]
    if failures and isinstance(failures[0], CzslError):
        raise failures[0]
    reason = str(failures[0]).strip().splitlines()[-1:] if failures else []
    raise TrainingFailedError(
        "training failed",
        reason[0] if reason else "the workers ended without a word",
        f"see {run.path / 'log.txt'}; go on with: czsl train --resume {run.path}",
    )


def _fit(run: Run, placement: Placement, failures: list[BaseException]) -> None:
    """Run the job to its end; what stopped it goes into ``failures``, and the traceback into the log."""
    try:
        run_workers(_worker, {"run": str(run.path)}, placement, run.path, MAX_FAILURES)
    except BaseException as error:
        failures.append(error)
        if not isinstance(error, CzslError):
            with (run.path / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} driver\n{traceback.format_exc()}\n")


def _worker(config: dict[str, Any], group: Group, device: torch.device) -> None:
    train_worker(Run(config["run"]), group, device)


def _forward(run: Run, position: int, on_record: Callable[[dict[str, Any]], None]) -> int:
    for record, behind in follow(run, position):
        on_record(record)
        position = behind
    return position


@contextlib.contextmanager
def stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls ``stop``, which asks the workers to save and end; a second one ends at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
