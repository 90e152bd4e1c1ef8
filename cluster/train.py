"""Training as a Ray Train job: start it, follow it, stop it with a checkpoint."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.session import Placement, place, session
from czsl.errors import CzslError
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
    on_placement, on_record : callable
        Told where the workers run and every new line of the run's metrics.

    Raises
    ------
    CzslError
        What a worker raised, or :class:`TrainingFailedError` when workers died too often.
    """
    run.stop_file.unlink(missing_ok=True)
    position = run.metrics_file.stat().st_size if run.metrics_file.exists() else 0
    with session(address) as ray:
        placement = place(ray, nodes, workers_per_node, run.config.threads)
        on_placement(placement)
        failures: list[BaseException] = []
        job = threading.Thread(target=_fit, args=(run, placement, failures), daemon=True)
        with _stop_on_signal(run):
            job.start()  # off the main thread Ray installs no signal handler, which would end the workers without a checkpoint
            while job.is_alive():
                job.join(POLL_S)
                position = _forward(run, position, on_record)
        _forward(run, position, on_record)
    run.stop_file.unlink(missing_ok=True)
    last = list(run.metrics())[-1:]
    event = last[0] if last else {}
    if event.get("event") == "end":
        shutil.rmtree(run.path / ".ray", ignore_errors=True)
        return event["status"]
    if event.get("event") == "error":
        raise _as_error(event)
    reason = str(failures[0]).strip().splitlines()[-1:] if failures else []
    raise TrainingFailedError(
        "training failed",
        reason[0] if reason else "the workers ended without a word",
        f"see {run.path / 'log.txt'}; go on with --resume {run.path}",
    )


def _fit(run: Run, placement: Placement, failures: list[BaseException]) -> None:
    """Run the Ray Train job to its end."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": float(placement.threads)}
    if placement.gpu:
        resources["GPU"] = 1.0
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"run": str(run.path), "threads": placement.threads},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.gpu,
            resources_per_worker=resources,
            placement_strategy="PACK" if not placement.spread else "STRICT_SPREAD" if placement.per_node == 1 else "SPREAD",
        ),
        # The run folder is the only truth about a run: Ray's own bookkeeping gets a fresh name and is never read back.
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(run.path / ".ray"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    try:
        trainer.fit()
    except BaseException as error:
        failures.append(error)
        with (run.path / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} driver\n{traceback.format_exc()}\n")


def _ray_worker(config: dict[str, Any]) -> None:
    """What Ray starts on each worker."""
    import ray.train
    import torch

    from cluster.comm import Group
    from cluster.worker import train_worker

    run, context = Run(config["run"]), ray.train.get_context()
    torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    group = Group(context.get_world_rank(), context.get_world_size())
    try:
        train_worker(run, group, device)
    except CzslError as error:
        # An error that repeating cannot cure is a message, not a failure for Ray to retry.
        if group.rank == 0 or not _has_error(run):
            run.log({"event": "error", "what": error.what, "why": error.why, "fix": error.fix, "exit_code": error.exit_code})
    except Exception:
        with (run.path / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} worker {group.rank}\n{traceback.format_exc()}\n")
        raise


def _has_error(run: Run) -> bool:
    return any(run.metrics("error"))


def _as_error(event: dict[str, Any]) -> CzslError:
    error = TrainingFailedError(event["what"], event["why"], event["fix"])
    error.exit_code = event["exit_code"]
    return error


def _forward(run: Run, position: int, on_record: Callable[[dict[str, Any]], None]) -> int:
    from cluster.worker import follow

    for record, position in follow(run, position):  # noqa: B020 - the place behind the last line is the result
        on_record(record)
    return position


@contextlib.contextmanager
def _stop_on_signal(run: Run) -> Iterator[None]:
    """SIGINT and SIGTERM ask the workers to stop together and save; a second one ends at once."""

    def ask(number: int, frame: Any) -> None:
        if run.stop_file.exists():
            raise KeyboardInterrupt
        Path(run.stop_file).touch()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
