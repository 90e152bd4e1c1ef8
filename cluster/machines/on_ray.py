"""The engine of many workers: Ray Train starts them on the nodes of a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.machines.launch import (
    WorkerFunction,
    attempts_folder,
    check_packages,
    error_from_words,
    error_in_words,
    log_crash,
)
from cluster.machines.nodes import NodeRequest, Waiting, await_placement, silent_nodes
from cluster.machines.preflight import Requirements
from cluster.machines.session import WORKER_START_TIMEOUT_S, free_resources
from cluster.work.placement import Placement
from czsl.errors import CzslError, SetupError
from czsl.reading import read_json
from czsl.runs.files import FULL, no_space


class RayEngine:
    """Workers on the nodes asked for.

    Parameters
    ----------
    ray : module
        Connected, as :func:`cluster.machines.session.session` gives it.
    request : NodeRequest
    threads : int
        CPU threads per worker; 0 divides a node's CPUs among its workers.
    on_wait, stop : callable, optional
        See :func:`cluster.machines.nodes.await_placement`.
    """

    def __init__(
        self,
        ray: Any,
        request: NodeRequest,
        threads: int = 0,
        on_wait: Callable[[Waiting], None] = lambda waiting: None,
        stop: Callable[[], bool] = lambda: False,
    ):
        self._ray, self._request, self._threads, self._on_wait, self._stop = ray, request, threads, on_wait, stop

    def place(self, again: bool = False) -> Placement:
        """Wait for the nodes asked for; after a death only those that answer count."""
        without = silent_nodes(self._ray) if again else frozenset()
        return await_placement(self._ray, self._request, self._threads, without=without, on_wait=self._on_wait, stop=self._stop)

    def attempt(
        self, function: WorkerFunction, config: dict[str, Any], placement: Placement, folder: Path, requirements: Requirements
    ) -> None:
        """Start all workers once. Ray retries nothing: a new attempt may have other nodes, and the run folder is its only memory."""
        from ray.train import ControllerError, WorkerGroupError

        name = f"attempt-{time.time_ns()}"
        attempt = attempts_folder(folder) / name
        settings = {
            "config": config,
            "function": function,
            "threads": placement.threads,
            "gpu": placement.gpu,
            "folder": str(folder),
            "attempt": name,
        }
        trainer = _trainer(settings, attempt, placement, requirements)
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

    def reason(self, error: Exception) -> str:
        """Return one line on why workers failed."""
        each = getattr(error, "worker_failures", None)
        causes = [str(e).strip().splitlines() for e in each.values()] if each else [str(error).strip().splitlines()]
        # Ray puts a line of its own before the one that says who died, if a poll of the worker fails first.
        dead = [line for lines in causes for line in lines if "died" in line or "dead" in line.lower()]
        last = [lines[-1] for lines in causes if lines]
        return (dead or last or [type(error).__name__])[0].strip()[:200]


def _trainer(settings: dict[str, Any], attempt: Path, placement: Placement, requirements: Requirements) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from cluster.machines.backend import CheckedTorch

    resources = {"CPU": float(placement.threads), **({"GPU": 1.0} if placement.gpu else {})}
    strategy = "STRICT_PACK" if not placement.spread else "SPREAD" if placement.pins else "STRICT_SPREAD"
    pins = [
        {"ray.io/node-id": placement.pins[i // placement.per_node]} for i in range(placement.workers if placement.pins else 0)
    ]
    return TorchTrainer(
        _on_worker,
        train_loop_config=settings,
        torch_config=CheckedTorch(folder=str(attempt), placement=placement, requirements=requirements),
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.gpu,
            resources_per_worker=resources,
            placement_strategy=strategy,
            label_selector=pins or None,  # type: ignore[call-arg]  # the stubs see the class of before Train V2
        ),
        run_config=RunConfig(
            name=attempt.name,
            storage_path=str(attempt.parent),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),  # type: ignore[call-arg]
        ),
    )


def _no_room(placement: Placement) -> SetupError:
    gpus = f", {placement.per_node} GPUs" if placement.gpu else ""
    free = [f"{r.get('CPU', 0):.0f} CPUs" + f", {r['GPU']:.0f} GPUs" * ("GPU" in r) for r in free_resources().values()]
    return SetupError(
        f"no room for {placement.workers} workers on {placement.nodes} nodes within {WORKER_START_TIMEOUT_S} s",
        f"each node needs {placement.per_node * placement.threads} free CPUs{gpus}; free: {'; '.join(free) or 'nothing'}",
        "wait until other work ends (czsl cluster status), or use fewer workers or threads",
    )


def _on_worker(settings: dict[str, Any]) -> None:
    import ray.train
    import torch

    from cluster.work.cards import check_own_cards
    from cluster.work.comm import Group
    from cluster.work.memory import memory_errors

    folder, context = Path(settings["folder"]), ray.train.get_context()
    check_packages()
    torch.set_num_threads(settings["threads"])
    group = Group(context.get_world_rank(), context.get_world_size())
    try:
        # Without GPUs of its own a worker would be given the first one.
        device = ray.train.torch.get_device() if settings["gpu"] else torch.device("cpu")
        check_own_cards(group, device)
        with memory_errors():
            settings["function"](settings["config"], group, device)
    except CzslError as error:
        kept = attempts_folder(folder) / settings["attempt"] / f"error-{group.rank}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(error_in_words(error)), encoding="utf-8")
    except Exception:
        log_crash(folder, group.rank)
        raise
