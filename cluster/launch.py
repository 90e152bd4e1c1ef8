"""Starting one function on every worker of a placement, through Ray Train."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cluster.comm import Group
from cluster.session import Placement
from czsl.errors import CzslError, SetupError

WorkerFunction = Callable[[dict[str, Any], Group, torch.device], None]


def run_workers(function: WorkerFunction, config: dict[str, Any], placement: Placement, folder: Path, max_failures: int) -> None:
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
        How often dead workers are replaced.

    Raises
    ------
    CzslError
        What the function raised.
    Exception
        What Ray raises when workers died more often.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": float(placement.threads), **({"GPU": 1.0} if placement.gpu else {})}
    strategy = "PACK" if not placement.spread else "STRICT_SPREAD" if placement.per_node == 1 else "SPREAD"
    attempt = f"attempt-{time.time_ns()}"
    settings = {"config": config, "function": function, "threads": placement.threads, "folder": str(folder), "attempt": attempt}
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=placement.workers, use_gpu=placement.gpu, resources_per_worker=resources, placement_strategy=strategy
        ),
        # A fresh name each time: Ray's own bookkeeping is never read back, the run folder is the only truth about a run.
        run_config=RunConfig(
            name=attempt, storage_path=str(folder / ".ray"), failure_config=FailureConfig(max_failures=max_failures)
        ),
    )
    trainer.fit()
    for file in sorted((folder / ".ray" / attempt).glob("error-*.json")):
        raise error_from_words(json.loads(file.read_text(encoding="utf-8")))


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
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
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
