"""Starting one function on every worker of a placement, through Ray Train."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cluster.machines.preflight import Needs
from cluster.machines.session import WORKER_START_TIMEOUT_S, free_resources
from cluster.work.comm import Group
from cluster.work.placement import Placement
from czsl.errors import CzslError, SetupError
from czsl.reading import read_json
from czsl.runs.files import FULL, no_space

WorkerFunction = Callable[[dict[str, Any], Group, torch.device], None]


def run_workers(
    function: WorkerFunction,
    config: dict[str, Any],
    placement: Placement,
    folder: Path,
    max_failures: int,
    *,
    needs: Needs | None = None,
    again: Callable[[], Placement] | None = None,
    progress: Callable[[], int] = lambda: 0,
    on_failure: Callable[[str, int], None] = lambda reason, failures: None,
) -> None:
    """Run ``function(config, group, device)`` on all workers until it returns everywhere.

    Parameters
    ----------
    function : callable
        Of a module of ours. What it raises as CzslError is not retried: repeating would not cure it.
    config : dict
        Plain data handed to every worker.
    placement : Placement
    folder : Path
        Storage that all nodes see; Ray's own files go below it, and a worker's traceback into ``log.txt``.
    max_failures : int
        How often in a row all workers are started anew after some died; a failure after ``progress`` is the first one again.
    needs : Needs, optional
        What workers must have alike, see :mod:`cluster.machines.preflight`.
    again : callable, optional
        Where to start anew; default: where it was.
    progress : callable, optional
        How far the job is, as a number that grows.
    on_failure : callable, optional
        Told why workers are started anew, and how many failures in a row that was.

    Raises
    ------
    CzslError
        What the function raised, what does not fit together between the nodes, or no room for the workers.
    Exception
        What Ray raises when workers died more often.
    """
    failures, before = 0, progress()
    while True:
        try:
            _attempt(function, config, placement, folder, needs or Needs())
            return
        except CzslError:
            raise
        except Exception as error:
            now = progress()
            failures, before = (1 if now > before else failures + 1), now
            if failures > max_failures:
                raise
            on_failure(_reason(error), failures)
        if again:
            placement = again()


def _attempt(function: WorkerFunction, config: dict[str, Any], placement: Placement, folder: Path, needs: Needs) -> None:
    """Start all workers once. Ray retries nothing: a new attempt may have other nodes, and the run folder is its only memory."""
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    from cluster.machines.backend import CheckedTorch

    resources = {"CPU": float(placement.threads), **({"GPU": 1.0} if placement.gpu else {})}
    strategy = "STRICT_PACK" if not placement.spread else "SPREAD" if placement.pins else "STRICT_SPREAD"
    pins = [
        {"ray.io/node-id": placement.pins[i // placement.per_node]} for i in range(placement.workers if placement.pins else 0)
    ]
    name = f"attempt-{time.time_ns()}"
    attempt = folder / ".ray" / name
    settings = {"config": config, "function": function, "threads": placement.threads, "folder": str(folder), "attempt": name}
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config=settings,
        torch_config=CheckedTorch(folder=str(attempt), placement=placement, needs=needs),
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.gpu,
            resources_per_worker=resources,
            placement_strategy=strategy,
            label_selector=pins or None,  # type: ignore[call-arg]  # the stubs see the class of before Train V2
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(attempt.parent),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),  # type: ignore[call-arg]
        ),
    )
    try:
        trainer.fit()
    except ControllerError as error:
        cause = error.controller_failure
        if isinstance(cause, CzslError):
            raise cause from None
        if type(cause).__name__ == "WorkerGroupStartupTimeoutError":
            raise _no_room(placement) from None
        raise
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "_base_exc", failure)
            if isinstance(cause, OSError) and cause.errno in FULL:
                raise no_space(cause, folder) from None  # a full disk does not empty itself
        raise
    for file in sorted(attempt.glob("error-*.json")):
        raise error_from_words(read_json(file))


def _no_room(placement: Placement) -> SetupError:
    gpus = f", {placement.per_node} GPUs" if placement.gpu else ""
    free = [f"{r.get('CPU', 0):.0f} CPUs" + f", {r['GPU']:.0f} GPUs" * ("GPU" in r) for r in free_resources().values()]
    return SetupError(
        f"no room for {placement.workers} workers on {placement.nodes} nodes within {WORKER_START_TIMEOUT_S} s",
        f"each node needs {placement.per_node * placement.threads} free CPUs{gpus}; free: {'; '.join(free) or 'nothing'}",
        "wait until other work ends (czsl cluster status), or use fewer workers or threads",
    )


def _reason(error: Exception) -> str:
    """One line on why workers failed."""
    each = getattr(error, "worker_failures", None)
    causes = [str(e).strip().splitlines() for e in each.values()] if each else [str(error).strip().splitlines()]
    dead = [lines for lines in causes if any("died" in line or "dead" in line.lower() for line in lines)]
    lines = next((c for c in dead or causes if c), [type(error).__name__])
    return (lines[0] if dead else lines[-1])[:200]


def _on_worker(settings: dict[str, Any]) -> None:
    import ray.train

    folder, context = Path(settings["folder"]), ray.train.get_context()
    check_packages()
    torch.set_num_threads(settings["threads"])
    group = Group(context.get_world_rank(), context.get_world_size())
    try:
        settings["function"](settings["config"], group, ray.train.torch.get_device())
    except CzslError as error:
        kept = folder / ".ray" / settings["attempt"] / f"error-{group.rank}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(error_in_words(error)), encoding="utf-8")
    except Exception:
        # Where the disk is full the log cannot tell it.
        with contextlib.suppress(OSError), (folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} worker {group.rank}\n{traceback.format_exc()}\n")
        raise


def check_packages() -> None:
    """Refuse to work with a folder of the user's that shadows one of our packages (``methods`` and ``cluster`` are common names)."""
    import cluster
    import czsl
    import methods

    home = Path(czsl.__file__).resolve().parents[1]
    for package in (methods, cluster):
        found = Path(package.__file__ or "").resolve().parents[1]
        if found != home:
            raise SetupError(
                f"the package {package.__name__!r} comes from {found}",
                f"czsl is installed in {home}: a folder named {package.__name__!r} shadows its part",
                "run from another folder, or rename yours",
            )


def error_in_words(error: CzslError) -> dict[str, Any]:
    """An error as plain data, for its way to the driver."""
    return {"what": error.what, "why": error.why, "fix": error.fix, "exit_code": error.exit_code}


def error_from_words(words: dict[str, Any]) -> CzslError:
    """The error that :func:`error_in_words` described."""
    error = CzslError(words["what"], words["why"], words["fix"])
    error.exit_code = words["exit_code"]
    return error
