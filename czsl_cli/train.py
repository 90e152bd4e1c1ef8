"""``czsl train``: a run on this machine, or on a Ray cluster."""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from czsl_cli.checked import checked, loop_notes, partial_labels_of
from czsl_cli.console import (
    continued_with,
    duration,
    percent,
    print_json,
    print_lines,
    print_table,
    print_text,
    progress_bar,
    say,
    short,
    warn,
)
from czsl_cli.options import placement_options, settings_options, where_of
from czsl_cli.train_watch import TrainingWatcher


@click.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@settings_options
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--seed", type=int, help="Random seed for initialisation, data order, augmentation and dropout.  [default: 0]")
@click.option(
    "--partial-labels",
    metavar="FILE",
    help="Train on these candidate sets (made by `czsl data partial`) instead of labels, which training does not see then.",
)
@placement_options
@click.option(
    "--max-failures",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Failures in a row, without a checkpoint between, after which training gives up.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)
@click.option("--name", help="Name of the run folder.  [default: <method>-<data>-<time>]")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Continue an interrupted run with its own settings; with epochs=N an interrupted or finished one to N epochs.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Start a new run with the weights of RUN's best checkpoint; method, CLIP, preset and data are those of RUN unless given.",
)
@click.option("--dry-run", is_flag=True, help="Print settings, counts, steps, memory and placement; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(overrides, config_file, out, name, resume, source, max_failures, dry_run, as_json, **options) -> None:
    """Train a method. Without options: clusPro on the built-in toy data with the built-in tiny CLIP.

    Any setting of the run or of the method can be given as KEY=VALUE, e.g. `epochs=5 num_prototypes=3`.

    \b
      czsl train --method clusPro --nodes 4 --data mydata --clip ViT-L-14
      czsl train --method csp --data mydata --recipe small lr=5e-4
      czsl train --nodes 2-4 --address auto --data /shared/mydata --out /shared/runs
      czsl train --resume runs/clusPro-mydata-20260101-120000
      czsl train --resume runs/clusPro-mydata-20260101-120000 epochs=30
      czsl train --from runs/clusPro-mydata-20260101-120000 --data other lr=1e-5

    Ctrl-C saves a checkpoint and exits with 130. The run folder's path is printed on stdout.
    """
    asked = where_of(options)
    where = {**asked, "max_failures": max_failures}
    from cluster.machines.nodes import NodeRequest
    from cluster.machines.session import check_answers
    from cluster.train import train as train_run

    if resume and source:
        raise click.UsageError("--resume continues a run, --from starts a new one: give one of them")
    if resume:
        run = _resumed(resume, overrides, config_file, options, dry_run)
        if dry_run:
            _dry_run(run.config, where, as_json)
            return
    else:
        from czsl_cli.config import resolve

        if source:
            options = {**options, **_as_in(source, options, overrides, config_file)}
        config = resolve(options, overrides, config_file)
        if dry_run:
            _starting_point(source, config)
            _dry_run(config, where, as_json)
            return
        if not NodeRequest.of(**asked).local:
            check_answers(where["address"])  # before there is a run that never began
        run = _new_run(config, out, name, source)
    began = time.monotonic()
    if _trains(run.config.method):
        from czsl_cli.runs import tell_precision

        tell_precision(run)
        with continued_with(lambda: f"continue with: czsl train --resume {short(run.path)}"), progress_bar() as bar:
            watcher = TrainingWatcher(run.config.epochs, bar)
            placed = lambda p: watcher.placed(p, run.path)  # noqa: E731
            status = train_run(
                run,
                **where,
                on_placement=placed,
                on_wait=watcher.waiting,
                on_failure=watcher.failed,
                on_record=watcher.record,
            )
    else:
        status = "done"
        run.write_environment(seed=run.config.seed, precision=_fitting(run))
        say(f"{run.config.method} needs no training: the run only keeps its settings")
    _finish(run, status, time.monotonic() - began, as_json)


def _resumed(path: Path, overrides: tuple[str, ...], config_file: Path | None, options: dict[str, Any], dry_run: bool):
    from czsl.errors import UsageError
    from czsl.runs.going_on import changes, go_on
    from czsl.runs.run import Run
    from czsl.runs.tracker_names import tracker_names
    from czsl.runs.trackers import check_installed

    if config_file:
        raise UsageError("a resumed run keeps its settings", "given: --config", "drop it, or start a new run")
    run = Run(path)
    changed = changes(run, _given(run, options, overrides))
    ended = next(reversed(list(run.metrics("end"))), None)
    if ended and ended.get("status") == "done" and not changed.keys() & {"epochs", "stop_after"}:
        raise UsageError(
            f"{path} is finished",
            f"it ended at step {ended.get('step', '?')}, epoch {_epoch_of(run)} of {run.config.epochs}",
            f"continue to more epochs with: czsl train --resume {path} epochs={run.config.epochs + 10}"
            if run.config.epochs
            else "start a new run to train differently",
        )
    _say_what_is_younger(run)
    if changed:
        check_installed(tracker_names(changed.get("log")))
        run, notes = go_on(run, changed, dry_run)
        for note in notes:
            warn(note)
        say("changed: " + ", ".join(f"{key}={value}" for key, value in changed.items()))
    return run


def _given(run, options: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings given with ``--resume``, checked by name and type."""
    from czsl.errors import UsageError
    from czsl.runs.config import RunConfig
    from czsl.runs.settings import check_known, typed
    from czsl_cli.config import parse_overrides
    from methods.registry import canonical_name, config_class

    given = {**{k: v for k, v in options.items() if v is not None}, **parse_overrides(overrides)}
    own = config_class(run.config.method)
    if "method" in given:
        given["method"] = canonical_name(str(given["method"]))
    check_known(given, [*RunConfig.field_names(), *(f.name for f in fields(own))], run.config.method)
    if given.get("epochs") and not (own.trains and own.steps):
        why = "it takes no gradient steps: one pass over the images is all there is" if own.trains else "it needs no training"
        raise UsageError(f"{run.config.method} has no epochs, given: {given['epochs']}", why, "leave out epochs")
    of_run = {k: v for k, v in given.items() if k in RunConfig.field_names()}
    return {**typed(of_run, RunConfig), **typed({k: v for k, v in given.items() if k not in of_run}, own)}


def _epoch_of(run) -> int:
    from czsl.runs import checkpoint

    newest = checkpoint.newest_valid(run.checkpoints)
    return checkpoint.state_of(newest).get("epoch", 0) if newest else 0


def _say_what_is_younger(run) -> None:
    """Say which settings are younger than a run, and the values that leave it as it was."""
    from methods.registry import method_class

    then, own = run.settings, method_class(run.config.method).Config(**run.config.model)
    younger = [f.name for f in fields(own) if f.name not in then.get("model", {})]
    if younger:
        values = ", ".join(f"{name}={getattr(own, name)}" for name in younger)
        note = "" if "train_mode" not in younger or run.config.preset != "released" else "; preset=released has another one now"
        say(f"the run is older than {', '.join(younger)}: it keeps {values}, as it was trained until here{note}")
    if then.get("augment") and run.config.augment is None and own.keeps_features:
        say("the run is older than augmentation for frozen image towers: its training images stay without, as until here")


def _as_in(source: Path, options: dict[str, Any], overrides: tuple[str, ...], config_file: Path | None) -> dict[str, Any]:
    """Settings that a run takes over from the run whose weights it starts from, unless given: those its weights depend on, and the data."""
    from czsl.runs.run import Run
    from czsl_cli.config import parse_overrides, read_config_file

    given = {k for k, v in options.items() if v is not None} | set(parse_overrides(overrides))
    given |= set(read_config_file(config_file)) if config_file else set()
    config = Run(source).config
    kept = {k: getattr(config, k) for k in ("method", "preset", "data") if k not in given}
    if not given & {"clip", "clip_weights"}:
        kept |= {"clip": config.clip, "clip_weights": config.clip_weights}
    return kept


def _starting_point(source: Path | None, config):
    """The checkpoint that a new run starts from, if it starts from another run."""
    if source is None:
        return None
    from czsl.data.table import open_data
    from czsl.runs.run import Run
    from methods.building import build, clip_for
    from methods.loading import starting_point

    data = open_data(config.data)
    method = build(
        config.method, data.space, clip_for(config.method, config.model, config.clip, config.clip_weights), config.model
    )
    return starting_point(Run(source), method, data.sha256)


def _new_run(config, out: Path, name: str | None, source: Path | None):
    from czsl.data.table import open_data
    from czsl.runs.run import Run

    data = open_data(config.data)
    for note in checked(config, data):
        warn(note)
    start = _starting_point(source, config)
    run = Run.create(config, data.space, out, name, start)
    if start is not None:
        say(f"starting from {start.state['from']['checkpoint']} of {short(Path(start.state['from']['run']))}")
    return run


def _fitting(run) -> str:
    """The precision that a run without training begins with: its own, or with ``auto`` what fits this machine."""
    from czsl.gpus import gpus, own_device

    if run.config.precision != "auto" or not gpus():
        return "float32" if run.config.precision == "auto" else run.config.precision
    return run.precision_on(own_device())


def _trains(method: str) -> bool:
    from methods.registry import config_class

    return config_class(method).trains


def _finish(run, status: str, seconds: float, as_json: bool) -> None:
    from czsl.runs.checkpoint import best

    shown = short(run.path)
    found = best(run.checkpoints)
    if status == "stopped":
        where = "with a checkpoint" if any(run.checkpoints.glob("step-*")) else "before the first step"
        say(f"stopped {where} after {duration(seconds)}; continue with: czsl train --resume {shown}")
    else:
        kind = {"auc": "best validation AUC", "auc20": "best epoch by AUC in 20 bins, validation AUC", "last": "validation AUC"}
        kind |= {"hm": "best epoch by HM, validation AUC", "accuracy": "best epoch by accuracy, validation AUC"}
        what = kind[run.config.selection]
        epoch = f" in epoch {found['epoch']}" if found.get("epoch") else ""
        auc = f", {what} {percent(found['auc'])}{epoch}" if found.get("auc") is not None else ""
        say(f"done in {duration(seconds)}{auc}")
        say(f"next: czsl evaluate {shown}    czsl predict FOLDER --run {shown}")
    if as_json:
        print_json({"run": str(run.path), "status": status, "seconds": round(seconds, 1), "best": found})
    else:
        print_text(shown)
    if status == "stopped":
        sys.exit(130)


def _dry_run(config, asked: dict[str, Any], as_json: bool) -> None:
    import yaml

    from cluster.machines.session import planned
    from cluster.work.estimate import check_training, estimate
    from cluster.work.memory import GpuMemoryError
    from czsl.data.table import open_data
    from czsl.gpus import own_device
    from czsl.precision import check_precision, fitting
    from czsl_cli.runs import tell_unknown_words
    from methods.building import build, clip_for

    data = open_data(config.data)
    config.remember(data.decode)
    clip = clip_for(config.method, config.model, config.clip, config.clip_weights)
    method = build(config.method, data.space, clip, config.model)
    for note in loop_notes(config, method.config, data):
        warn(note)
    tell_unknown_words(config.clip, (*data.space.attributes, *data.space.objects))
    nodes = asked["nodes"][-1] if isinstance(asked["nodes"], tuple) else asked["nodes"]
    placement = planned(asked["address"], nodes, asked["workers_per_node"], config.threads, asked["gpus_per_node"])
    labels = partial_labels_of(config, data)
    if placement.gpu and not asked["address"]:
        device = own_device()
        check_precision(config.precision, device)
        precision = fitting(device) if config.precision == "auto" else config.precision
        try:
            check_training(config, precision, device, method, placement.workers, labels)
        except GpuMemoryError as error:
            warn(f"it would not fit: {error.what}; {error.why}; {error.fix}")
    plan = estimate(config, data, method, placement, labels)
    if labels is not None:
        plan = {"candidates_an_image": round(float(labels.sizes.mean()), 2), **plan}
    where = {
        "nodes": placement.nodes,
        "workers": placement.workers,
        "gpu": placement.gpu,
        "threads": placement.threads,
        "note": placement.note,
    }
    if as_json:
        print_json({"config": config.to_dict(), **plan, "placement": where})
        return
    print_lines(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), end="")
    memory = plan.pop("memory_bytes_per_worker")
    rows = [[k.replace("_", " "), f"{v:,}"] for k, v in plan.items()]
    rows += [[f"memory per worker: {k.replace('_', ' ')}", f"{v / 2**20:,.0f} MiB"] for k, v in memory.items()]
    rows += [[f"placement: {k}", str(v)] for k, v in where.items() if v != ""]
    print_table(["dry run", ""], rows, err=True)
    if method.steps and method.trains and "activations" not in memory:
        warn(f"activations are not counted: the training step of {config.method} depends on values")
