"""Evaluating a run: in this process, or dealt out over the workers of a cluster with the same answer to the last digit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.machines.here import own_device
from cluster.machines.jobs import on_workers
from cluster.machines.nodes import Ask
from cluster.work.comm import Group
from cluster.work.evaluation import Question, answer, kept_reduction, reduction_file
from cluster.work.progress import Notice, Progress, kept, quiet, unnoticed
from cluster.work.threads import cpu_threads, threads_for
from czsl.evaluation import Reduction
from czsl.reading import read_json
from czsl.runs.run import Run


def evaluate_run(
    run: Run,
    question: Question,
    *,
    progress: Progress = quiet,
    notice: Notice = unnoticed,
    **where: Any,
) -> dict[str, Any]:
    """The report of a run on a split, as ``czsl evaluate --json`` prints it.

    Also written into the run folder (``report-test-closed.json``), with the few numbers an image that it follows from
    (``extremes-test-closed.npz``, see :class:`czsl.evaluation.Reduction`). ``where`` are the arguments of
    :meth:`cluster.machines.nodes.Ask.of`; one worker on this machine needs no Ray.
    """
    ask = Ask.of(**where)
    if ask.local:
        with cpu_threads(run.threads):  # several runs may be evaluated in one process
            result, reduction = answer(run, question, Group(), own_device(), progress)
        reduction.save(reduction_file(run, question))
    else:
        with tempfile.TemporaryDirectory(dir=run.path, prefix=".evaluate-") as folder:
            out = Path(folder) / "report.json"
            config = {"run": str(run.path), "question": vars(question), "out": str(out), "threads": threads_for(run)}
            on_workers(_worker, config, Path(folder), ask, run.config.threads, progress, notice)
            result = read_json(out)
    run.write_report(f"report-{question.name}", result)
    return result


def _worker(config: dict[str, Any], group: Group, device: Any) -> None:
    run, question = Run(config["run"]), Question(**config["question"])
    out = Path(config["out"])
    with cpu_threads(config["threads"]):
        result, reduction = answer(run, question, group, device, kept(out.parent, group.rank))
    if group.rank == 0:
        reduction.save(reduction_file(run, question))
        out.write_text(json.dumps(result), encoding="utf-8")


def reduction_of(
    run: Run, question: Question, progress: Progress = quiet, say: Callable[[str], None] = lambda text: None
) -> Reduction:
    """The reduction of a run: the kept one, or where it is missing or stale that of an evaluation now, in this process."""
    kept, why = kept_reduction(run, question)
    if kept is None:
        say(f"evaluating {run.path.name} first: {why}")
        evaluate_run(run, question, progress=progress)
        kept = Reduction.load(reduction_file(run, question))
    return kept
