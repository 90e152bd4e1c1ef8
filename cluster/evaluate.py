"""Evaluating a run: in this process, or dealt out over the workers of a cluster with the same answer to the last digit."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.comm import Group
from cluster.launch import run_workers
from cluster.score import score_split
from cluster.session import place, session
from cluster.source import Progress, Source, quiet
from czsl.data.table import open_data
from czsl.errors import DataError
from czsl.evaluation import Candidates, report
from czsl.runs.run import Run
from methods.loading import load


@dataclass(frozen=True)
class Question:
    """What to evaluate.

    split : ``test``, ``val`` or ``train``
    open_world : all attribute-object pairs compete
    checkpoint : ``best``, ``last`` or a step
    data : another dataset of the same label space, else the run's own
    topk : an image counts when its true pair is among the k best
    bootstrap : resamples for intervals
    """

    split: str = "test"
    open_world: bool = False
    checkpoint: str = "best"
    data: str | None = None
    topk: int = 1
    bootstrap: int = 0


def evaluate_run(
    run: Run,
    question: Question,
    *,
    nodes: int = 1,
    workers_per_node: int | None = None,
    address: str | None = None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """The report of a run on a split, as ``czsl evaluate --json`` prints it; also written into the run folder.

    Without an address, on one node and with one worker, nothing of Ray is started.
    """
    if address is None and nodes == 1 and workers_per_node in (None, 1):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if run.config.threads:
            torch.set_num_threads(run.config.threads)
        result = answer(run, question, Group(), device, progress)
    else:
        with session(address) as ray, tempfile.TemporaryDirectory(dir=run.path, prefix=".evaluate-") as folder:
            placement = place(ray, nodes, workers_per_node, run.config.threads)
            out = Path(folder) / "report.json"
            run_workers(_worker, {"run": str(run.path), "question": vars(question), "out": str(out)}, placement, Path(folder), 1)
            result = json.loads(out.read_text(encoding="utf-8"))
    world = "open" if question.open_world else "closed"
    run.write_report(f"report-{question.split}-{world}", result)
    return result


def _worker(config: dict[str, Any], group: Group, device: torch.device) -> None:
    result = answer(Run(config["run"]), Question(**config["question"]), group, device)
    if group.rank == 0:
        Path(config["out"]).write_text(json.dumps(result), encoding="utf-8")


def answer(run: Run, question: Question, comm: Group, device: torch.device, progress: Progress = quiet) -> dict[str, Any]:
    """The report, computed by the workers of ``comm`` together."""
    config = run.config
    method = load(run, question.checkpoint).to(device)
    method.comm = comm
    data = open_data(question.data or config.data)
    here, there = (data.space.attributes, data.space.objects), (method.space.attributes, method.space.objects)
    if here != there:
        raise DataError(
            f"{data.folder} has another label space than the run",
            "attributes or objects differ",
            "evaluate on the run's own labels",
        )
    source = Source(method, data, question.split, comm, config.eval_batch, progress, config.precision)
    if not len(source.split):
        raise DataError(f"{data.folder} has no {question.split} images", "the split is empty", "choose another --split")
    candidates = Candidates.build(data.space, split=question.split, open_world=question.open_world)
    rows = torch.arange(len(source.split)).numpy()
    extremes = score_split(method, source, candidates, rows, config.eval_batch, comm, progress, question.topk)
    numbers = report(extremes, candidates, bootstrap=question.bootstrap, seed=config.seed)
    return {
        "method": config.method,
        "split": question.split,
        "open_world": question.open_world,
        "pairs": int(candidates.allowed.sum()),
        **numbers,
    }
