"""``czsl tune RUN --adapt NAME``: search an adaptation's settings on validation images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from czsl_cli.adapt_options import TRANSDUCTIVE
from czsl_cli.console import continued_with, duration, percent, print_json, print_table, progress_bar, say, short
from czsl_cli.tune_watch import NAMES, shown, shown_all

if TYPE_CHECKING:
    from cluster.tuning.adaptation_search import AdaptationSearch, AdaptationSearchConfig

TRIALS, ORDERS = 16, (0, 1, 2)
# Options of `czsl tune` that have a meaning with --adapt, and those that have one only with it.
OWN = {"run", "adapt", "stream_seed", "open_world", "checkpoint"}
USED = OWN | {"overrides", "search_file", "trials", "algorithm", "metric", "seed", "out", "name", "dry_run", "as_json"}
ON_RESUME = {"resume", "trials", "as_json"}
ROWS = {"none": "no adaptation", "given": "as given"}


def check_options(given: Sequence[str], adapt: str | None) -> None:
    """UsageError for options that go only with --adapt, or only without it."""
    from czsl.errors import UsageError

    wrong = [name for name in given if (name not in USED if adapt else name in OWN)]
    if not wrong:
        return
    what = "RUN" if wrong[0] == "run" else f"--{wrong[0].removesuffix('_file').replace('_', '-')}"
    if adapt:
        raise UsageError(f"{what} with --adapt", "nothing is trained, and one process scores the trials", f"drop {what}")
    if what == "RUN":
        raise UsageError(
            "a run without --adapt", "a search trains runs of its own", "start from its settings: --config RUN/config.yaml"
        )
    raise UsageError(f"{what} without --adapt", "it belongs to the search of an adaptation", "add RUN --adapt tomcat, or drop it")


def new_search(options: dict[str, Any]) -> AdaptationSearchConfig:
    """The settings of a new search; what can be wrong with them is found here, before torch is imported."""
    from cluster.tuning.adaptation_search import AdaptationSearchConfig
    from czsl.runs.search import grid
    from czsl_cli.config import parse_overrides
    from czsl_cli.runs import chosen_run, usable_checkpoint
    from czsl_cli.search_space import chosen_space
    from methods.adaptation.plan import Plan
    from methods.adaptation.registry import adaptation_search, canonical_adaptation
    from methods.fingerprint import fingerprint
    from methods.registry import check_adaptable

    name = canonical_adaptation(options["adapt"])
    words = options["overrides"]
    if words and "=" not in words[0] and options["run"] is None:
        chosen_run(Path(words[0]))  # raises: no such run exists
    given = parse_overrides(words)
    Plan.of(name, given)
    space = chosen_space(adaptation_search(name), options["search_file"], set(given) - {"recipe"}, name)
    run = chosen_run(options["run"])
    check_adaptable(run.config.method)
    usable_checkpoint(run, options["checkpoint"])
    _check_validation(run)
    orders = [None if seed == "given" else seed for seed in options["stream_seed"]] or list(ORDERS)
    config = AdaptationSearchConfig(
        run=str(run.path),
        adapt=name,
        space=space,
        given=given,
        checkpoint_sha256=fingerprint(run, options["checkpoint"]),
        orders=list(dict.fromkeys(orders)),
        trials=options["trials"] or TRIALS,
        seed=options["seed"] or 0,
        **{key: options[key] for key in ("checkpoint", "open_world", "algorithm", "metric")},
    )
    domains = config.parsed
    if config.algorithm == "grid":
        points = len(grid(domains, config.seed))
        config = dataclasses.replace(config, trials=min(options["trials"] or points, points))
    return config


def _check_validation(run: Any) -> None:
    from czsl.data.table import open_data
    from czsl.errors import DataError

    if not len(open_data(run.config.data, run.config.decode).split("val")):
        raise DataError(
            f"{run.config.data} has no validation images", "trials are compared on them", "import it with a val split"
        )


def resumed_search(given: Sequence[str], path: Path, trials: int | None) -> AdaptationSearch:
    """A search that was interrupted; ``trials`` may ask for more."""
    from cluster.tuning.adaptation_search import AdaptationSearch
    from czsl.errors import UsageError
    from czsl.runs.search import grid

    if changed := [name for name in given if name not in ON_RESUME]:
        what = ", ".join(name.removesuffix("_file").replace("_", "-") for name in changed)
        raise UsageError("a resumed search keeps its settings", f"given: {what}", "drop these, or start a new search")
    search = AdaptationSearch(path)
    config = search.config
    config.trials = trials or config.trials
    if config.algorithm == "grid":
        config.trials = min(config.trials, len(grid(search.space, config.seed)))
    search.write()
    return search


def dry_run(config: AdaptationSearchConfig, as_json: bool) -> None:
    """Print the settings and the trials; write nothing."""
    from cluster.tuning.adapting import adaptation_proposals, plan_with
    from czsl_cli.search_space import show_trials

    show_trials(config, adaptation_proposals(config, []), lambda values: plan_with(config, values), as_json)


def run_search(search: AdaptationSearch, as_json: bool) -> None:
    """Score the trials that are left, and print all."""
    from cluster.tuning.adapting import search_adaptation

    config, path = search.config, short(search.path)
    orders = ", ".join("given" if order is None else str(order) for order in config.orders)
    world = "open" if config.open_world else "closed"
    say(f"{path}: {config.trials} trials of {config.adapt} ({config.algorithm}; {world} world; order of seed {orders})")
    if over := len(search.rows()):
        say(f"{over} of {config.trials + 2} rows are over, continuing with the others")
    began = time.monotonic()
    with continued_with(lambda: f"continue with: czsl tune --resume {path}"), progress_bar() as bar:
        search_adaptation(search, bar.update, lambda row: _tell(row, config.metric))
    _finish(search, time.monotonic() - began, as_json)


def _name(row: dict[str, Any]) -> str:
    return ROWS.get(row["trial"], f"trial {row['trial']}")


def _tell(row: dict[str, Any], metric: str) -> None:
    name = _name(row)
    values = f"  {shown_all(row['values'])}" if row["values"] else ""
    if row["status"] == "failed":
        say(f"{name} failed: {row['reason']}{values}")
    else:
        say(f"{name}: validation {NAMES[metric]} {percent(row[metric])}, {duration(row['seconds'])}{values}")


def _finish(search: AdaptationSearch, seconds: float, as_json: bool) -> None:
    from cluster.tuning.adaptation_search import NONE
    from czsl.errors import CzslError

    config, rows = search.config, search.rows()
    report = search.write_results(rows, run=config.run, adaptation=config.adapt, seconds=round(seconds, 1))
    _plot(search, rows)
    if as_json:
        print_json({"search": str(search.path), **report})
    else:
        _print_rows(rows, list(config.space), config.metric)
    best, name = report["best"], NAMES[config.metric]
    say(f"done after {duration(seconds)}; see {short(search.path)}/trials.svg, trials.csv, report.json")
    if best is None:
        raise CzslError("no trial ended well", "the table lists the reason of each", "search other values")
    plain = next(row for row in rows if row["trial"] == NONE)[config.metric]
    gain = f"{100 * (best[config.metric] - plain):+.2f}"
    say(f"best: {_name(best)}, validation {name} {percent(best[config.metric])}, {gain} points over no adaptation")
    if best[config.metric] <= plain:
        say(f"no settings raise the validation {name} of this run: use it without --adapt")
        return
    words = " ".join(f"{key}={value}" for key, value in {**config.given, **best["values"]}.items())
    flag = " --open-world" if config.open_world else ""
    say(f"next: czsl evaluate {short(Path(config.run))} --adapt {config.adapt}{f' {words}' if words else ''}{flag}")
    say(f"      ({TRANSDUCTIVE})")


def _print_rows(rows: Sequence[dict[str, Any]], names: list[str], metric: str) -> None:
    from cluster.tuning.adaptation_search import NONE

    ordered = sorted(rows, key=lambda r: (r["status"] == "failed", -(r[metric] or 0.0)))
    reasons = any(r["reason"] for r in rows)
    lines = []
    for r in ordered:
        values = [shown(r["values"][name]) if name in r["values"] else "" for name in names]
        spread = " to ".join(map(percent, r["auc_range"])) if r["auc_range"] and r["trial"] != NONE else ""
        numbers = [percent(r["val_auc"]), spread, percent(r["val_hm"]), duration(r["seconds"])]
        lines.append([ROWS.get(r["trial"], r["trial"]), *values, *numbers, *([r["reason"]] if reasons else [])])
    print_table(["trial", *names, "AUC", "orders", "HM", "time", *(["reason"] if reasons else [])], lines)


def _plot(search: AdaptationSearch, rows: Sequence[dict[str, Any]]) -> None:
    from cluster.tuning.adaptation_search import GIVEN, NONE
    from czsl_cli.trials_plot import plot_trials

    config = search.config
    marks = {ROWS[r["trial"]]: r[config.metric] for r in rows if r["trial"] in (NONE, GIVEN)}
    trials = [r for r in rows if r["trial"] not in (NONE, GIVEN)]
    plot_trials(trials, None, search.space, config.metric, search.path / "trials.svg", marks)
