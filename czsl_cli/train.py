"""``czsl train``: a run on this machine, or on a Ray cluster."""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from czsl_cli.console import (
    Bar,
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

SHORT_NAMES = (
    27  # bytes of an attribute and an object that surely fit the tokens which the built-in CLIP reads: 32 less 5 of "a photo of"
)


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
    from cluster.machines.nodes import Ask
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
        if not Ask.of(**asked).local:
            check_answers(where["address"])  # before there is a run that never began
        run = _new_run(config, out, name, source)
    began = time.monotonic()
    if _trains(run.config.method):
        from czsl_cli.runs import tell_precision

        tell_precision(run)
        with progress_bar() as bar:
            watcher = Watcher(run.config.epochs, bar)
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


def checked(config, data) -> list[str]:
    """Check settings against their dataset before there is a run, and complete them; returns warnings.

    Raises
    ------
    CzslError
        Settings that contradict each other or the data; a CLIP that the method cannot use.
    """
    from czsl.clip.vocabulary import note_on_words, unknown_words
    from czsl.runs.tracker_names import tracker_names
    from czsl.runs.trackers import check_installed
    from czsl_cli.config import fix_paths
    from methods.registry import check_labels, config_class

    check_installed(tracker_names(config.log))
    config.remember(data.decode)
    _partial_labels(config, data)
    check_labels(config.method, data.space)
    own = config_class(config.method)(**config.model)
    notes = [*own.notes(data.space), *own.data_notes(data), *_loop_notes(config, own, data)]
    if note := note_on_words(unknown_words(config.clip, (*data.space.attributes, *data.space.objects))):
        notes.append(note)
    fix_paths(config)
    if _may_fail(config, data.space):
        from methods.checking import check_clip

        notes += check_clip(config, data.space)
    return notes


def _may_fail(config, space) -> bool:
    """Return whether the run's CLIP is worth the seconds of a check: the built-in one is always there, and cuts no short name."""
    from czsl.compositions import prompt_name

    if config.clip != "tiny" or config.clip_weights:
        return True
    longest = sum(max((len(prompt_name(n).encode()) for n in names), default=0) for names in (space.attributes, space.objects))
    return longest > SHORT_NAMES


def _loop_notes(config, own, data) -> list[str]:
    """Warnings about settings of the training loop; UsageError for those that contradict each other."""
    from cluster.work.augmentation import check_loop
    from czsl.data.batches import stratified

    if config.stop_after and not len(data.split("val")):
        from czsl.errors import UsageError

        why = "no epoch can be called better than another"
        raise UsageError(f"stop_after={config.stop_after} without validation images", why, "leave it out, or import a val split")
    train = data.split("train")
    images = len(stratified(train.attr, train.obj, config.train_per_pair, config.seed))
    return check_loop(config, own.keeps_features, _trains(config.method), images)


def _partial_labels(config, data):
    """The candidates that a run is given instead of labels, checked before a cluster is started."""
    if config.partial_labels is None:
        return None
    from czsl.data.files.partial_labels import read_partial_labels
    from czsl.errors import UsageError

    if not _trains(config.method):
        raise UsageError(f"{config.method} cannot use partial labels", "it needs no training", "leave out --partial-labels")
    labels = read_partial_labels(config.partial_labels, data)
    if labels.origin.noise_rate and not config.label_rescue:
        warn(
            f"{percent(labels.origin.noise_rate)} % of the images lack their true label: label_rescue=0.05 looks beyond candidates"
        )
    return labels


def _fitting(run) -> str:
    """The precision that a run without training begins with: its own, or with ``auto`` what fits this machine."""
    from cluster.machines.here import gpus, own_device

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


class Watcher:
    """Turns a run's metrics into a bar, or into a line now and then."""

    def __init__(self, epochs: int, bar: Bar):
        self.epochs, self.bar = epochs, bar
        self.total = self.images = self.batch = 0
        self.first: tuple[float, int] | None = None
        self.best = -1.0

    def placed(self, placement, path: Path) -> None:
        """Say where the workers run."""
        self.bar.clear()
        if placement.note:
            warn(placement.note)
        kind = "GPU" if placement.gpu else f"CPU, {placement.threads} threads each"
        workers, nodes = (f"{n} {what}{'s' * (n > 1)}" for n, what in ((placement.workers, "worker"), (placement.nodes, "node")))
        say(f"{short(path)}: {workers} on {nodes} ({kind})")

    def waiting(self, waiting) -> None:
        """Show what the run waits for."""
        self._show(
            "waiting for nodes", waiting.found, waiting.wanted, f"{waiting.waited_s:.0f} of {waiting.limit_s:.0f} s", str(waiting)
        )

    def failed(self, reason: str, failures: int) -> None:
        """Print that workers are restarted."""
        self.first = None
        warn(f"workers failed ({failures} in a row): {reason}")
        say("restarting from the newest checkpoint")

    def record(self, record: dict[str, Any]) -> None:
        """Show one line of metrics."""
        event = record.get("event")
        if event == "progress":
            self._show(
                record["what"], record["done"], record["total"], "", f"{record['what']} {record['done']}/{record['total']}"
            )
        elif event == "start":
            self.total, self.images, self.batch = record["steps"], record["images"], record["batch"]
            where = f", continuing at step {record['step']}" if record["step"] else ""
            how = f", precision {record['precision']}" if "precision" in record else ""
            steps = f"batches of {self.batch}, {self.total} steps{how}{where}" if self.total else "no steps"
            say(f"{self.images} training images, {steps}")
        elif event == "step":
            self._step(record)
        elif event == "epoch":
            self._epoch(record)
        elif event == "found":
            how = "chosen on validation images" if record["how"] == "val" else "without validation images to choose on"
            say(f"{how}: {', '.join(f'{key} {value:g}' for key, value in record['settings'].items())}")
        elif event == "note":
            self.bar.clear()
            warn(record["note"])
        elif event == "stopping":
            say("stopping at the next step with a checkpoint; once more ends at once and without one")

    def _step(self, record: dict[str, Any]) -> None:
        now, step = record["time"], record["step"]
        self.first = self.first or (now, step - 1)
        left = (now - self.first[0]) / max(step - self.first[1], 1) * (self.total - step)
        note = f"loss {record['loss']:.3f}  {record['images_per_s']:.0f} images/s"
        line = f"epoch {record['epoch'] + 1}/{self.epochs}  step {step}/{self.total}  {note}  left {duration(left)}"
        self._show(f"epoch {record['epoch'] + 1}/{self.epochs}", step, self.total, note, line)

    def _epoch(self, record: dict[str, Any]) -> None:
        if record.get("auc") is None:
            return
        found = record.get("disambiguation")
        note = "" if found is None else f"  true label top-1 {percent(found)}"
        mark = "  best so far" if record["auc"] > self.best and self.total else ""
        self.best = max(self.best, record["auc"])
        where = f"epoch {record['epoch']}/{self.epochs}  " if self.total else ""
        say(
            f"{where}validation: AUC {percent(record['auc'])}  HM {percent(record['hm'])}  "
            f"seen {percent(record['seen'])}  unseen {percent(record['unseen'])}{note}{mark}"
        )

    def _show(self, what: str, done: int, total: int, note: str, line: str) -> None:
        self.bar.update(what, done, total, note, line)


def _dry_run(config, asked: dict[str, Any], as_json: bool) -> None:
    import yaml

    from cluster.machines.session import planned
    from cluster.work.estimate import estimate
    from czsl.data.table import open_data
    from czsl_cli.runs import tell_unknown_words
    from methods.building import build, clip_for

    data = open_data(config.data)
    config.remember(data.decode)
    clip = clip_for(config.method, config.model, config.clip, config.clip_weights)
    method = build(config.method, data.space, clip, config.model)
    for note in _loop_notes(config, method.config, data):
        warn(note)
    tell_unknown_words(config.clip, (*data.space.attributes, *data.space.objects))
    most = asked["nodes"][-1] if isinstance(asked["nodes"], tuple) else asked["nodes"]
    placement = planned(asked["address"], most, asked["workers_per_node"], config.threads, asked["gpus_per_node"])
    plan = estimate(config, data, method, placement)
    labels = _partial_labels(config, data)
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
    rows += [[f"memory a worker: {k.replace('_', ' ')}", f"{v / 2**20:,.0f} MiB"] for k, v in memory.items()]
    rows += [[f"placement: {k}", str(v)] for k, v in where.items() if v != ""]
    print_table(["dry run", ""], rows, err=True)
