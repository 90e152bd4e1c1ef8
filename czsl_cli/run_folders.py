"""``czsl runs``: what lies in the folder of runs, and what of it can go."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.compare import compare
from czsl_cli.console import duration, percent, print_json, print_table, print_text, say, short
from czsl_cli.options import named_run

if TYPE_CHECKING:
    from czsl.runs.run import Run

RUNS = click.Path(path_type=Path)
STATES = ("done", "running", "stopped", "failed", "interrupted", "new", "damaged")
SORTS = ("age", "name", "auc", "size")


@click.group()
def runs() -> None:
    """List runs, show one, tag them, and free the space of old checkpoints."""


runs.add_command(compare)


@runs.command("list")
@click.argument("folder", type=RUNS, default=Path("runs"))
@click.option("--method", "-m", help="Only runs of this method.")
@click.option("--data", "-d", help="Only runs on the dataset of this name.")
@click.option("--state", type=click.Choice(STATES), help="Only runs in this state.")
@click.option("--tag", help="Only runs with this tag.")
@click.option(
    "--sort", type=click.Choice(SORTS), default="age", show_default=True, help="Order; the newest, best or largest first."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def list_(folder, method, data, state, tag, sort, as_json) -> None:
    """List the runs below FOLDER (default: runs/), also those of experiments and searches.

    AUC and HM are those of the test split in the closed world where `czsl evaluate` has left them, else of the validation (marked v).
    """
    from czsl.runs.catalogue import run_folders
    from methods.registry import canonical_name

    method = canonical_name(method) if method else None
    found = [entry(path) for path in run_folders(folder)]
    wanted = {"method": method, "data": data, "state": state}
    found = [e for e in found if all(v is None or e[k] == v for k, v in wanted.items()) and (tag is None or tag in e["tags"])]
    orders = {"age": "age_s", "name": "run", "auc": "auc", "size": "bytes"}
    key = orders[sort]
    found.sort(key=lambda e: (e[key] is None, e[key] if sort in ("age", "name") else -(e[key] or 0)))
    if as_json:
        print_json(found)
        return
    if not found:
        say(f"no run in {folder}" if not any(wanted.values()) and not tag else f"no such run in {folder}")
        return
    tags = any(e["tags"] for e in found)
    rows = []
    for e in found:
        numbers = [_number(e, key) for key in ("auc", "hm")]
        row = [short(Path(e["run"])), e["method"], e["data"], *numbers, _state(e), _age(e["age_s"]), size(e["bytes"])]
        rows.append([*row, *([" ".join(e["tags"])] if tags else [])])
    print_table(["run", "method", "data", "AUC", "HM", "state", "age", "size", *(["tags"] if tags else [])], rows)
    say(f"{len(found)} run{'s' * (len(found) > 1)}, {size(sum(e['bytes'] for e in found))}")


@runs.command()
@named_run()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def show(run, as_json) -> None:
    """Show what RUN (the newest one by default) is: state, settings, numbers, checkpoints, environment."""
    from czsl.runs import checkpoint
    from czsl.runs.catalogue import numbers_of, size_of
    from czsl_cli.runs import chosen_run

    opened = chosen_run(run)
    about = entry(opened.path)
    settings = {k: v for k, v in opened.config.to_dict().items() if k != "model"}
    best = checkpoint.best(opened.checkpoints)
    checkpoints = [
        {"step": checkpoint.step_of(p), "bytes": size_of(p), "best": p.name == best.get("checkpoint")}
        for p in checkpoint.steps(opened.checkpoints)
    ]
    facts = {
        **about,
        "settings": {**settings, "model": opened.config.model},
        "environment": opened.environment(),
        "best": best,
        "reports": numbers_of(opened.path, _weights(opened)),
        "checkpoints": checkpoints,
    }
    if as_json:
        print_json(facts)
        return
    print_table(["", ""], _facts(facts), short(opened.path))
    if facts["reports"]:
        rows = [[name, percent(n.get("auc")), percent(n.get("hm"))] for name, n in facts["reports"].items()]
        print_table(["percent", "AUC", "HM"], rows, "evaluations")
    if checkpoints:
        rows = [[c["step"], size(c["bytes"]), "best" if c["best"] else ""] for c in checkpoints]
        print_table(["step", "size", ""], rows, "checkpoints")


@runs.command()
@named_run()
@click.option("--to", required=True, metavar="NAMES", help="tensorboard, mlflow or wandb; several with commas between.")
def log(run, to) -> None:
    """Write the metrics of RUN to TensorBoard, MLflow or Weights & Biases after the fact.

    \b
      czsl runs log runs/clusPro-mydata-20260101-120000 --to tensorboard
    """
    from cluster.tracking import export
    from czsl.errors import CzslError
    from czsl.runs.tracker_names import tracker_names
    from czsl.runs.trackers import place_of
    from czsl_cli.runs import chosen_run

    names = tracker_names(to)
    if not names:
        raise click.UsageError("--to names no tracker: give tensorboard, mlflow or wandb")
    opened, failed = chosen_run(run), list[str]()
    lines = export(opened, names, failed.append)
    if failed:
        raise CzslError("not everything was written", "; ".join(failed), "see the tracker's own documentation, then repeat")
    for name in names:
        say(f"{lines} lines of metrics written: {place_of(name, opened.path)}")


def _facts(facts: dict[str, Any]) -> list[list[Any]]:
    from czsl.runs.config import RunConfig

    usual = RunConfig().to_dict()
    s = facts["settings"]
    changed = [f"{k}={v}" for k, v in s.items() if k not in ("model", "method", "data", "clip") and v != usual[k]]
    environment = facts["environment"]
    rows = [
        ["state", _state(facts)],
        ["method", s["method"]],
        ["data", s["data"]],
        ["CLIP", " ".join(filter(None, (s["clip"], s["clip_weights"])))],
        ["settings other than the default", " ".join(changed) or "none"],
        ["settings of the method", " ".join(f"{k}={v}" for k, v in s["model"].items())[:1000]],
        ["tags", " ".join(facts["tags"]) or "none"],
        ["age, size", f"{_age(facts['age_s'])}, {size(facts['bytes'])}"],
        ["time of work", duration(facts["seconds"])],
    ]
    if facts["best"].get("auc") is not None:
        rows.append(["best validation AUC", f"{percent(facts['best']['auc'])} in epoch {facts['best'].get('epoch', '?')}"])
    for key in ("workers", "threads", "device", "python", "machine", "git", "data_sha256", "clip_sha256"):
        if environment.get(key) is not None:
            rows.append([key.replace("_", " "), environment[key]])
    return rows


@runs.command()
@click.argument("run", type=RUNS)
@click.argument("tags", nargs=-1)
@click.option("--remove", multiple=True, metavar="TAG", help="Take a tag away.")
def tag(run, tags, remove) -> None:
    """Give RUN tags, e.g. `czsl runs tag runs/mine paper`; without any, print those it has. Tagged runs are never deleted."""
    from czsl.runs.catalogue import set_tags, tags_of
    from czsl.runs.run import Run

    path = Run(run).path
    found = set_tags(path, list(tags), list(remove)) if tags or remove else tags_of(path)
    print_text(" ".join(found))


@runs.command()
@click.argument("given", nargs=-1, type=RUNS, metavar="[RUN]...")
@click.option("--whole", is_flag=True, help="Delete the named runs altogether; tagged and running ones are refused.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only list what would be deleted.")
def prune(given, whole, yes, dry_run) -> None:
    """Delete checkpoints of runs but the best and the last one (default: of all runs below runs/), after asking.

    Runs at work are skipped. What evaluation, prediction and --resume need stays.
    """
    from czsl.errors import UsageError
    from czsl.runs.catalogue import run_folders, size_of, superfluous
    from czsl.runs.files import is_held
    from czsl.runs.run import Run

    if whole and not given:
        raise UsageError("--whole without runs", "it deletes what is named", "name the runs: czsl runs prune RUN --whole")
    folders = [_folder(path, whole) for path in given] or run_folders("runs")
    doomed: list[Path] = []
    for path in folders:
        if is_held(path):
            if whole:
                raise UsageError(f"{path} is at work", "a process holds it", "wait for it, or stop it first")
            say(f"{short(path)}: skipped, it is at work")
        elif whole:
            doomed.append(path)
        elif (path / "config.yaml").is_file():
            doomed += superfluous(Run(path).checkpoints)
    doomed = list(dict.fromkeys(doomed))
    if not doomed:
        say("there is nothing to delete")
        return
    freed = sum(size_of(path) for path in doomed)
    what = f"{len(doomed)} {'run' if whole else 'checkpoint'}{'s' * (len(doomed) > 1)}, {size(freed)}"
    for path in doomed:
        print_text(short(path))
    if dry_run:
        say(f"would delete {what}")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                f"nothing was deleted: {what}", "a confirmation is needed and stdin is not a terminal", "give --yes, or --dry-run"
            )
        if not click.confirm(f"delete {what}?", err=True):
            say("nothing was deleted")
            return
    for path in doomed:
        shutil.rmtree(path)
    say(f"deleted {what}")


def _folder(path: Path, whole: bool) -> Path:
    from czsl.errors import UsageError
    from czsl.runs.catalogue import tags_of
    from czsl.runs.run import Run

    path = Run(path).path  # nothing is deleted in a folder that is not a run
    if whole and (tags := tags_of(path)):
        raise UsageError(
            f"{path} has the tag {tags[0]}", "tagged runs are never deleted", f"czsl runs tag {path} --remove {tags[0]}"
        )
    return path


# -- facts of a run --------------------------------------------------------------------------------------------------------
def entry(path: Path) -> dict[str, Any]:
    """Return a run's line in the list, ready for JSON; a folder that is half gone has a state and a reason."""
    from czsl.errors import CzslError
    from czsl.runs import checkpoint
    from czsl.runs.catalogue import numbers_of, size_of, tags_of
    from czsl.runs.run import Run
    from czsl.runs.states import is_half_gone, seconds_of_work, state_of
    from methods.registry import config_class

    about: dict[str, Any] = {
        "run": str(path.resolve()), "method": None, "data": None, "state": "damaged", "why": is_half_gone(path), "auc": None, "hm": None,
        "of": None, "age_s": round(time.time() - _touched(path)), "bytes": size_of(path), "tags": tags_of(path), "seconds": 0.0,
    }  # fmt: skip
    if about["why"]:
        return about
    run = Run(path)
    about |= {"method": run.config.method, "data": Path(run.config.data).name, "seconds": seconds_of_work(run)}
    try:
        state = state_of(run, config_class(run.config.method).trains)
    except CzslError as error:  # a method that this version does not have
        return {**about, "why": error.what}
    best = checkpoint.best(run.checkpoints)
    numbers = numbers_of(path, _weights(run)).get("test-closed")
    if numbers:
        about |= {"auc": numbers.get("auc"), "hm": numbers.get("hm"), "of": "test"}
    elif best.get("auc") is not None:
        hm = next((r.get("hm") for r in run.metrics("epoch") if r.get("epoch") == best.get("epoch")), None)
        about |= {"auc": best["auc"], "hm": hm, "of": "val"}
    return {**about, "state": state.name, "why": state.why}


def _weights(run: Run) -> str:
    """The hash of a run's best weights; empty if it has none."""
    from czsl.errors import CzslError
    from methods.fingerprint import fingerprint

    try:
        return fingerprint(run)
    except (CzslError, OSError, KeyError):
        return ""


def _touched(path: Path) -> float:
    """Return when training or evaluation last wrote to a run."""
    times = [f.stat().st_mtime for f in path.iterdir() if f.is_file() and f.name != "tags.json"]
    return max(times, default=path.stat().st_mtime)


def _number(about: dict[str, Any], key: str) -> str:
    return percent(about[key]) + (" v" if about["of"] == "val" and about[key] is not None else "")


def _state(about: dict[str, Any]) -> str:
    return f"{about['state']}: {about['why']}" if about["why"] else about["state"]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def size(count: int) -> str:
    """Return bytes as people read them: ``1.5 GiB``."""
    value, units = float(count), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if value < 1024 or unit == units[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
