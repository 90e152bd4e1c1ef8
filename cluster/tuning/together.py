"""A list of runs trained side by side: Ray Tune shares the cluster among them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.machines.session import session
from cluster.train import TrainingFailedError
from cluster.tuning.driving import drive, prepare_ray
from cluster.tuning.tune import share
from czsl.runs.files import held
from czsl.runs.run import Run
from czsl.runs.trials import SearchConfig, Trial


def train_together(
    runs: Sequence[Run],
    folder: Path,
    *,
    address: str | None = None,
    nodes: int = 1,
    workers_per_node: int = 1,
    max_concurrent: int = 0,
    on_share: Callable[[Any], None] = lambda share: None,
    on_record: Callable[[Trial, dict[str, Any]], None] = lambda trial, record: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    on_stop: Callable[[], None] = lambda: None,
) -> str:
    """Train runs whose folders exist, several at once as Ray Tune finds room; returns ``done`` or ``stopped``.

    A run that fails does not end the others; its ``end`` record has the reason. Arguments as :func:`cluster.tuning.tune.tune` takes them.

    Raises
    ------
    CzslError
        Not even one run fits the cluster, or Ray Tune itself failed.
    """
    config = SearchConfig(
        {},
        runs[0].config.to_dict(),
        trials=len(runs),
        scheduler="none",
        nodes=nodes,
        workers_per_node=workers_per_node,
        max_concurrent=max_concurrent,
    )
    for run in runs:
        run.cut_metrics(sys.maxsize)  # drops how an attempt before ended
    prepare_ray()
    with held(folder, "this experiment"), session(address) as ray:
        from ray.tune.schedulers import FIFOScheduler

        from cluster.tuning.tuner import Queue

        queue = Queue([Trial(n, run.path, {"run": run.path.name}) for n, run in enumerate(runs)], nodes)
        part = share(ray, config, queue.left, next((run.threads for run in runs if run.threads), 0))
        on_share(part)
        failure = drive(
            folder,
            config,
            queue,
            FIFOScheduler(),
            concurrent=part.concurrent,
            threads=part.threads,
            on_record=on_record,
            on_trial=on_trial,
            on_stop=on_stop,
        )
    shutil.rmtree(folder / ".ray", ignore_errors=True)
    if failure:
        raise TrainingFailedError(
            "the experiment's trainings failed",
            str(failure).strip().splitlines()[-1],
            f"see {folder / 'log.txt'}; the same command continues",
        )
    return "stopped" if queue.stopping else "done"
