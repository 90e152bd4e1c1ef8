"""``czsl tune``: search hyperparameters on a Ray cluster, or on this machine."""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from czsl_cli.adapt_options import adapt_option, stream_seed_option
from czsl_cli.console import (
    continued_with,
    duration,
    percent,
    print_json,
    print_table,
    progress_bar,
    say,
    short,
    warn,
)
from czsl_cli.options import named_run, settings_options
from czsl_cli.tune_adapt import TRIALS, check_options, new_search, resumed_search, run_search
from czsl_cli.tune_adapt import dry_run as show_search
from czsl_cli.tune_watch import NAMES, SearchWatcher, shown, shown_all

ON_RESUME = {"resume", "trials", "max_concurrent", "address", "as_json"}


@click.command()
@named_run(others="overrides", default="with --adapt the newest in runs/")
@click.argument("overrides", nargs=-1, metavar="[RUN] [KEY=VALUE]...")
@settings_options
@adapt_option
@stream_seed_option("0, 1 and 2", several=True)
@click.option("--open-world", is_flag=True, help="--adapt: let all attribute-object pairs compete.")
@click.option("--checkpoint", default="best", show_default=True, help="--adapt: best, last or a step.")
@click.option(
    "--search",
    "search_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the search space, as YAML.  [default: the method's own suggestion]",
)
@click.option("--trials", "-n", type=click.IntRange(1), help=f"Number of trials.  [default: {TRIALS}; all points of a grid]")
@click.option("--algorithm", type=click.Choice(["random", "grid", "optuna"]), default="random", show_default=True)
@click.option(
    "--scheduler",
    type=click.Choice(["asha", "none"]),
    default="asha",
    show_default=True,
    help="asha stops trials with low metrics early.",
)
@click.option("--grace", type=click.IntRange(1), help="Epochs before a trial may be stopped.  [default: an eighth of them]")
@click.option(
    "--metric",
    type=click.Choice(["val_auc", "val_hm"]),
    default="val_auc",
    show_default=True,
    help="Exact, closed world, on val; a trial's best epoch counts.",
)
@click.option("--max-concurrent", type=click.IntRange(1), help="Trials at once.  [default: what the cluster holds]")
@click.option("--seed", type=int, help="Seed of the trials' values and of every training.  [default: 0]")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes a trial.")
@click.option(
    "--workers-per-node",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Workers per trial; one GPU each if GPUs exist.",
)
@click.option("--address", help="Ray cluster to join (default: RAY_ADDRESS, else a local Ray is started).")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs"), show_default=True, help="Folder of searches."
)
@click.option("--name", help="Name of the search's folder.  [default: tune-<method>-<data>-<time>]")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="TUNE_RUN",
    help="Go on with an interrupted search; --trials may ask for more.",
)
@click.option("--dry-run", is_flag=True, help="Print the settings and the trials; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def tune(ctx: click.Context, resume: Path | None, dry_run: bool, as_json: bool, address: str | None, **options) -> None:
    """Search hyperparameters: every trial is a training run of its own, and the best settings are written as a file.

    \b
      czsl tune --method clusPro --data mydata --trials 16
      czsl tune --method csp --search space.yaml --algorithm grid epochs=10
      czsl tune --resume runs/tune-clusPro-mydata-20260101-120000
      czsl tune RUN --adapt tomcat --trials 32

    \b
    A search file names settings of the run or the method (`czsl methods NAME` lists them) and their values:
      lr: {loguniform: [1e-5, 1e-2]}
      num_prototypes: {choice: [3, 5, 8]}
      pcl_weight: {uniform: [0, 1]}       also  quniform: [low, high, step]  and  randint: [low, high]

    KEY=VALUE fixes a setting for all trials. Ctrl-C stops all trials with checkpoints and exits with 130. The table of trials is printed on
    stdout.

    With --adapt nothing is trained: the trials are settings of an adaptation of RUN. They are compared on its validation images, over
    several orders of the stream (--stream-seed), next to RUN without adaptation. One process of this machine scores them.
    """
    from cluster.tuning.adaptation_search import AdaptationSearch
    from czsl.runs.trials import Search

    given = [name for name in ctx.params if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    given = [name for name in given if name != "run_option"] + ["run"] * (options["run"] is not None)
    if resume and AdaptationSearch.is_one(resume):
        run_search(resumed_search(given, resume, options["trials"]), as_json)
        return
    if not resume:
        check_options(given, options["adapt"])
    if options["adapt"] and not resume:
        adapting = new_search(options)
        if dry_run:
            show_search(adapting, as_json)
        else:
            run_search(AdaptationSearch.create(adapting, options["out"], options["name"]), as_json)
        return
    if resume:
        search = _resumed(given, resume, options)
    else:
        config = _settings(options)
        if dry_run:
            _dry_run(config, as_json)
            return
        search = Search.create(config, options["out"], options["name"])
    _run(search, address, as_json)


def _settings(options: dict[str, Any]):
    """The settings of a new search; everything that can be wrong with them is found here."""
    import dataclasses

    from cluster.tuning.tune import proposals, space_of
    from cluster.work.augmentation import check_loop
    from czsl.data.table import open_data
    from czsl.errors import UsageError
    from czsl.runs.search import grid
    from czsl.runs.trials import SearchConfig
    from czsl_cli.config import fix_paths, parse_overrides, resolve
    from czsl_cli.runs import tell_unknown_words
    from czsl_cli.search_space import chosen_space
    from methods.presets import load_search
    from methods.registry import check_labels, config_class

    named = ("method", "data", "clip", "clip_weights", "preset", "recipe", "epochs", "batch", "seed")
    chosen = {k: options[k] for k in named}
    base = resolve(chosen, options["overrides"], options["config_file"])
    if not config_class(base.method).trains:
        raise UsageError(
            f"{base.method} needs no training", "there is nothing to tune", "choose a method that trains: czsl methods"
        )
    if not config_class(base.method).steps:
        raise UsageError(
            f"{base.method} chooses its own settings",
            "czsl train tries them on the validation images, in seconds",
            f"czsl train --method {base.method}",
        )
    if base.epochs < 1:
        raise UsageError("epochs is 0", "trials are compared after their epochs", "set epochs=1 or more")
    data = open_data(base.data)
    base.remember(data.decode)
    check_labels(base.method, data.space)
    for note in check_loop(base, config_class(base.method)(**base.model).keeps_features):
        warn(note)
    tell_unknown_words(base.clip, (*data.space.attributes, *data.space.objects))
    fix_paths(base)
    fixed = {k for k, v in chosen.items() if v is not None} | set(parse_overrides(options["overrides"]))
    own = {f.name: options[f.name] for f in fields(SearchConfig) if options.get(f.name) is not None}
    own |= {"seed": base.seed, "grace": options["grace"] or max(1, base.epochs // 8), "trials": options["trials"] or TRIALS}
    space = chosen_space(load_search(base.method), options["search_file"], fixed, base.method)
    config = SearchConfig(space, base.to_dict(), **own)
    if config.algorithm == "grid":
        points = len(grid(space_of(config), config.seed))
        config = dataclasses.replace(config, trials=min(options["trials"] or points, points))
    proposals(config, [])
    return config


def _resumed(given: list[str], path: Path, options: dict[str, Any]):
    from cluster.tuning.tune import space_of
    from czsl.errors import UsageError
    from czsl.runs.search import grid
    from czsl.runs.trials import Search

    if changed := [name for name in given if name not in ON_RESUME]:
        what = ", ".join(name.removesuffix("_file").replace("_", "-") for name in changed)
        raise UsageError("a resumed search keeps its settings", f"given: {what}", "drop these, or start a new search")
    search = Search(path)
    config = search.config
    config.trials = options["trials"] or config.trials
    if config.algorithm == "grid":
        config.trials = min(config.trials, len(grid(space_of(config), config.seed)))
    config.max_concurrent = options["max_concurrent"] or config.max_concurrent
    search.write()
    return search


def _run(search, address: str | None, as_json: bool) -> None:
    from cluster.tuning.tune import tune as tune_search

    began = time.monotonic()
    with continued_with(lambda: f"continue with: czsl tune --resume {short(search.path)}"), progress_bar() as bar:
        watcher = SearchWatcher(search, bar)
        callbacks: dict[str, Any] = {
            "on_share": watcher.share,
            "on_record": watcher.record,
            "on_trial": watcher.trial,
            "on_stop": watcher.stopping,
        }
        status = tune_search(search, address=address, **callbacks)
    _finish(search, status, time.monotonic() - began, as_json)


def _finish(search, status: str, seconds: float, as_json: bool) -> None:
    from cluster.tuning.tune import space_of
    from czsl.errors import CzslError
    from czsl_cli.trials_plot import plot_trials

    config, rows = search.config, search.summaries()
    report = search.write_results(rows, status=status, seconds=round(seconds, 1))
    curves = {t.number: [(r["epoch"], r["value"]) for r in t.curve(config.metric)] for t in search.trials()}
    plot_trials(rows, curves, space_of(config), config.metric, search.path / "trials.svg")
    if as_json:
        print_json({"search": str(search.path), **report})
    else:
        _print_trials(rows, list(config.space), config.metric)
    path, best = short(search.path), report["best"]
    over = sum(r["status"] != "unfinished" for r in rows)
    say(
        f"{status} after {duration(seconds)}: {over} of {config.trials} trials over; see {path}/trials.svg, trials.csv, report.json"
    )
    if status == "stopped":
        say(f"continue with: czsl tune --resume {path}")
        sys.exit(130)
    if best is None:
        raise CzslError("no trial ended well", "the table lists the reason of each", "search other values")
    where = f"trial {best['trial']}, epoch {best['best_epoch']}"
    say(f"best: {where}, validation {NAMES[config.metric]} {percent(best[config.metric])}: {shown_all(best['values'])}")
    say(f"next: czsl evaluate {short(Path(best['run']))}    (trained already)")
    say(f"      czsl train --config {path}/best.yaml")


def _print_trials(rows: list[dict[str, Any]], names: list[str], metric: str) -> None:
    ordered = sorted(rows, key=lambda r: (r["status"] == "failed", -(r[metric] if r[metric] is not None else -1), r["trial"]))
    reasons = any(r["reason"] for r in rows)
    columns = ["trial", *names, "epochs", "best epoch", "AUC", "HM", "status", "time", *(["reason"] if reasons else [])]
    lines = []
    for r in ordered:
        numbers = [r["epochs_done"], r["best_epoch"], percent(r["val_auc"]), percent(r["val_hm"])]
        values = [shown(r["values"].get(name)) for name in names]
        status = "stopped early" if r["status"] == "pruned" else r["status"]
        lines.append([r["trial"], *values, *numbers, status, duration(r["seconds"]), *([r["reason"]] if reasons else [])])
    print_table(columns, lines)


def _dry_run(config, as_json: bool) -> None:
    from cluster.tuning.tune import proposals
    from czsl.runs.search import with_values
    from czsl_cli.search_space import show_trials
    from methods.registry import config_class

    method = config_class(config.base.method)
    show_trials(config, proposals(config, []), lambda values: with_values(config.base, values, method), as_json)
