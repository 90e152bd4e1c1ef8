"""Training as a job of an engine: start it, follow it, stop it with a checkpoint."""

from __future__ import annotations

import contextlib
import queue
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from cluster.machines.jobs import engine_of
from cluster.machines.launch import Engine, attempts_folder, run_workers
from cluster.machines.nodes import NodeRequest, Waiting, WaitStoppedError
from cluster.machines.preflight import Requirements
from cluster.tracking import tracked
from cluster.work.placement import Placement
from cluster.work.progress import follow
from czsl.errors import CzslError, UsageError
from czsl.runs import checkpoint
from czsl.runs.files import held
from czsl.runs.run import Run

POLL_S = 0.2
MAX_FAILURES = 3


class TrainingFailedError(CzslError):
    """Training ended without a result."""


def train(
    run: Run,
    *,
    nodes: int | tuple[int, int] = 1,
    workers_per_node: int | None = None,
    gpus_per_node: int | None = None,
    address: str | None = None,
    engine: str = "auto",
    threads: int = 0,
    wait_s: float = 0.0,
    max_failures: int = MAX_FAILURES,
    on_placement: Callable[[Placement], None] = lambda placement: None,
    on_wait: Callable[[Waiting], None] = lambda waiting: None,
    on_failure: Callable[[str, int], None] = lambda reason, failures: None,
    on_record: Callable[[dict[str, Any]], None] = lambda record: None,
) -> str:
    """Train a run; returns ``done``, or ``stopped`` after SIGINT or SIGTERM with a checkpoint saved.

    One worker is a process of this machine; several, or a cluster that is joined, are Ray Train's.

    Parameters
    ----------
    run : Run
        A new run, or an interrupted one, which continues from its newest valid checkpoint.
    nodes : int or (int, int)
        Nodes asked for; with fewer it runs on those there are. A pair is the minimum and the maximum: it starts with the minimum, and
        after losing nodes continues with those that are left if they are not fewer.
    workers_per_node, gpus_per_node, address, engine
        See :class:`cluster.machines.nodes.NodeRequest`.
    threads : int
        CPU threads per worker if the run's settings leave them open.
    wait_s : float
        Longest wait for nodes that are not there yet; without a joined cluster none can come.
    max_failures : int
        How often in a row, without a checkpoint between, dead workers are replaced.
    on_placement, on_wait, on_failure, on_record : callable
        Called from the calling thread with the placement of the workers (at each start), the state of the wait for nodes, the reason of
        a restart and the number of failures, and every new line of the run's metrics.

    Raises
    ------
    CzslError
        What a worker raised, or :class:`TrainingFailedError` when workers died too often.
    """
    request = NodeRequest.of(
        nodes, workers_per_node=workers_per_node, gpus_per_node=gpus_per_node, wait_s=wait_s, address=address, engine=engine
    )
    with held(run.path, "training"):
        run.stop_file.unlink(missing_ok=True)
        newest = checkpoint.newest_valid(run.checkpoints)
        if newest is None and run.start.is_dir() and checkpoint.newest_valid(run.start) is None:
            raise UsageError(
                f"the weights that {run.path.name} starts from are damaged", str(run.start), "start a new run with --from"
            )
        run.cut_metrics(checkpoint.step_of(newest) if newest else 0)
        position = run.metrics_file.stat().st_size
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with (
            tracked(run, news.put),
            engine_of(request, run.config.threads or threads, news.put, run.stop_file.exists) as chosen,
        ):
            job = _Job(chosen, run, max_failures, news)
            listeners: dict[type, Callable[[Any], None]] = {
                Placement: on_placement,
                Waiting: on_wait,
                tuple: lambda failure: on_failure(*failure),
                str: lambda text: on_record({"event": "note", "note": text}),
            }

            def stop() -> None:
                run.stop_file.touch()
                on_record({"event": "stopping"})

            def tell() -> None:
                while not news.empty():
                    item = news.get()
                    listeners[type(item)](item)

            with stop_on_signal(stop):
                job.start()  # off the main thread Ray installs no signal handler, which would end the workers without a checkpoint
                while job.is_alive():
                    job.join(POLL_S)
                    tell()
                    position = _forward(run, position, on_record)
            tell()
            _forward(run, position, on_record)
        tell()  # what trackers said at the end
        run.stop_file.unlink(missing_ok=True)
        shutil.rmtree(attempts_folder(run.path), ignore_errors=True)
    return _outcome(run, job.failure)


def _outcome(run: Run, failure: BaseException | None) -> str:
    last = list(run.metrics())[-1:]
    if failure is None and last and last[0].get("event") == "end":
        return last[0]["status"]
    if isinstance(failure, WaitStoppedError):
        return "stopped"
    if isinstance(failure, CzslError):
        raise failure
    reason = str(failure).strip().splitlines()[-1:] if failure else []
    raise TrainingFailedError(
        "training failed",
        reason[0] if reason else "the workers ended without a word",
        f"see {run.path / 'log.txt'}; continue with: czsl train --resume {run.path}",
    )


class _Job(threading.Thread):
    """Runs the workers to their end. ``news`` is for the main thread, ``failure`` what stopped it; its traceback goes into the log."""

    def __init__(self, engine: Engine, run: Run, max_failures: int, news: queue.SimpleQueue[Any]):
        super().__init__(daemon=True)
        self._engine, self._run, self._max_failures, self._news = engine, run, max_failures, news
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Wait for nodes, start the workers, start them again when some died."""
        config = self._run.config
        try:
            run_workers(
                self._engine,
                _worker,
                {"run": str(self._run.path)},
                self._run.path,
                self._max_failures,
                requirements=Requirements(config.data, config.clip, config.clip_weights),
                progress=self._progress,
                on_placement=self._news.put,
                on_failure=self._failed,
            )
        except BaseException as error:
            self.failure = error
            if not isinstance(error, CzslError | WaitStoppedError):
                self._log(traceback.format_exc())

    def _progress(self) -> int:
        newest = checkpoint.newest_valid(self._run.checkpoints)
        return checkpoint.step_of(newest) if newest else 0

    def _failed(self, reason: str, failures: int) -> None:
        self._news.put((reason, failures))
        self._log(f"failure {failures} in a row: {reason}\n")

    def _log(self, text: str) -> None:
        with (self._run.path / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} driver\n{text}\n")


def _worker(config: dict[str, Any], group: Any, device: Any) -> None:
    from cluster.work.training import train_worker

    train_worker(Run(config["run"]), group, device)


def _forward(run: Run, position: int, on_record: Callable[[dict[str, Any]], None]) -> int:
    for record, behind in follow(run, position):
        on_record(record)
        position = behind
    return position


@contextlib.contextmanager
def stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls ``stop``, which makes the workers save and end; a second one ends at once."""
    asked: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
