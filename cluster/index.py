"""Composition indexes of runs: text embeddings computed by shards on the workers of a cluster, kept in the run folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cluster.machines.jobs import on_workers
from cluster.machines.nodes import NodeRequest
from cluster.work.comm import Group
from cluster.work.indexing import IndexConfig, compute, folder_of, parts_folder
from cluster.work.progress import Notice, Progress, kept, quiet, unnoticed
from cluster.work.threads import cpu_threads, threads_for
from czsl.gpus import own_device
from czsl.runs.run import Run


def build_index(
    plan: IndexConfig,
    *,
    progress: Progress = quiet,
    notice: Notice = unnoticed,
    **where: Any,
) -> Path:
    """Encode the open world of a run and keep its index in the run folder; shards that an interrupted build left are used.

    ``where`` are the arguments of :meth:`cluster.machines.nodes.NodeRequest.of`; one worker on this machine needs no Ray. The index is the
    same for any number of workers.

    Raises
    ------
    UsageError
        If the method's scores cannot be put into an index.
    """
    run = Run(plan.run)
    parts = parts_folder(run, plan)
    parts.mkdir(parents=True, exist_ok=True)
    request = NodeRequest.of(**where)
    if request.local:
        with cpu_threads(run.threads):
            compute(plan, Group(), own_device(), progress)
    else:
        on_workers(_worker, {**vars(plan), "threads": threads_for(run)}, parts, request, run.config.threads, progress, notice)
    shutil.rmtree(parts, ignore_errors=True)
    return folder_of(run)


def _worker(config: dict[str, Any], group: Group, device: Any) -> None:
    threads = config.pop("threads")
    plan = IndexConfig(**config)
    with cpu_threads(threads):
        compute(plan, group, device, kept(parts_folder(Run(plan.run), plan), group.rank))
