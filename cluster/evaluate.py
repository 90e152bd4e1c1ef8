"""Evaluating a run: in this process, or dealt out over the workers of a cluster with the same answer to the last digit."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.machines.jobs import on_workers
from cluster.machines.nodes import NodeRequest
from cluster.work.comm import Group
from cluster.work.evaluation import EvalConfig, evaluate, saved_evaluation, saved_evaluation_file
from cluster.work.progress import Notice, Progress, kept, quiet, unnoticed
from cluster.work.threads import cpu_threads, threads_for
from czsl.evaluation import SavedEvaluation
from czsl.gpus import own_device
from czsl.reading import read_json
from czsl.runs.run import Run


def evaluate_run(
    run: Run,
    eval_config: EvalConfig,
    *,
    progress: Progress = quiet,
    notice: Notice = unnoticed,
    **where: Any,
) -> dict[str, Any]:
    """The report of a run on a split, as ``czsl evaluate --json`` prints it; the rest is that of :func:`evaluation_of`."""
    return evaluation_of(run, eval_config, progress=progress, notice=notice, **where)[0]


def evaluation_of(
    run: Run,
    eval_config: EvalConfig,
    *,
    progress: Progress = quiet,
    notice: Notice = unnoticed,
    **where: Any,
) -> tuple[dict[str, Any], SavedEvaluation]:
    """The report of a run on a split, and the few numbers per image that it follows from.

    Both are written into the run folder (``report-test-closed.json``, ``extremes-test-closed.npz``). If one worker answers and nothing can
    be written there, ``notice`` is called. ``where`` are the arguments of :meth:`cluster.machines.nodes.NodeRequest.of`; one worker on this
    machine needs no Ray. With an adaptation the report holds the run's numbers without it too (``without_adaptation``).
    """
    plain = _without_adaptation(run, eval_config, progress=progress, notice=notice, **where) if eval_config.adapt else None
    request = NodeRequest.of(**where)
    if request.local and not run.writable:
        notice(f"nothing is kept: {run.path} cannot be written to, so the next evaluation computes everything again")
    if request.local:
        with cpu_threads(run.threads):  # several runs may be evaluated in one process
            result, saved = evaluate(run, eval_config, Group(), own_device(), progress)
        if run.writable:
            saved.save(saved_evaluation_file(run, eval_config))
    else:
        with tempfile.TemporaryDirectory(dir=run.path, prefix=".evaluate-") as folder:
            out = Path(folder) / "report.json"
            config = {"run": str(run.path), "evaluation": vars(eval_config), "out": str(out), "threads": threads_for(run)}
            on_workers(_worker, config, Path(folder), request, run.config.threads, progress, notice)
            result = read_json(out)
        saved = SavedEvaluation.load(saved_evaluation_file(run, eval_config))
    if plain is not None:
        result["without_adaptation"] = plain
    if run.writable:
        run.write_report(f"report-{eval_config.name}", result)
    return result, saved


def evaluate_orders(
    run: Run, eval_config: EvalConfig, seeds: Sequence[int | None], **options: Any
) -> tuple[dict[str, Any], SavedEvaluation]:
    """The report of an adapted run, or over several orders of the stream the mean of its numbers; the saved evaluation of the first order.

    Several orders: ``orders`` holds their reports and ``spread`` the standard deviation, the least and the largest of each number.
    ``options`` are those of :func:`evaluation_of`.
    """
    assert eval_config.adapt is not None
    found = [evaluation_of(run, replace(eval_config, adapt=replace(eval_config.adapt, seed=seed)), **options) for seed in seeds]
    reports, (first, saved) = [report for report, _ in found], found[0]
    if len(reports) == 1:
        return first, saved
    numbers = [
        k for k, v in first.items() if k != "threshold" and isinstance(v, float) and all(r.get(k) is not None for r in reports)
    ]
    values = {key: [float(report[key]) for report in reports] for key in numbers}
    about: dict[str, Any] = {
        k: first[k] for k in ("method", "split", "open_world", "images", "pairs", "classes", "subset") if k in first
    }
    spread = {key: {"sd": statistics.stdev(v), "min": min(v), "max": max(v)} for key, v in values.items()}
    warnings = list(dict.fromkeys(text for report in reports for text in report.get("warnings", [])))
    mean = {
        **about,
        **{key: statistics.fmean(v) for key, v in values.items()},
        "adaptation": {**first["adaptation"], "stream_seed": list(seeds)},
        "without_adaptation": first["without_adaptation"],
        "spread": spread,
        "orders": reports,
        **({"warnings": warnings} if warnings else {}),
    }
    return mean, saved


def _without_adaptation(run: Run, eval_config: EvalConfig, **options: Any) -> dict[str, Any]:
    """Numbers of the same evaluation without its adaptation: those of an earlier report that still holds, or evaluated now."""
    plain = replace(eval_config, adapt=None)
    file, report = run.path / f"report-{plain.name}.json", None
    if saved_evaluation(run, plain)[0] is not None and file.is_file():
        report = read_json(file)
    if not isinstance(report, dict) or report.get("threshold_chosen") == "given" or plain.threshold is not None:
        report = evaluate_run(run, plain, **options)
    return {key: value for key, value in report.items() if isinstance(value, float)}


def _worker(config: dict[str, Any], group: Group, device: Any) -> None:
    run, eval_config = Run(config["run"]), EvalConfig(**config["evaluation"])
    out = Path(config["out"])
    with cpu_threads(config["threads"]):
        result, saved = evaluate(run, eval_config, group, device, kept(out.parent, group.rank))
    if group.rank == 0:
        saved.save(saved_evaluation_file(run, eval_config))
        out.write_text(json.dumps(result), encoding="utf-8")


def load_or_evaluate(
    run: Run, eval_config: EvalConfig, progress: Progress = quiet, say: Callable[[str], None] = lambda text: None
) -> SavedEvaluation:
    """Load the saved evaluation of a run, or evaluate it in this process if none exists or it is stale."""
    kept, why = saved_evaluation(run, eval_config)
    if kept is None:
        say(f"evaluating {run.path.name} first: {why}")
        kept = evaluation_of(run, eval_config, progress=progress)[1]
    return kept
