"""``czsl reproduce``: train what a paper reports, evaluate it, and say whether its numbers were reached."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import continued_with, print_json, print_table, print_text, say, warn
from czsl_cli.experiment import Numbers
from czsl_cli.options import placement_options, where_of
from czsl_cli.published import COLUMNS, REF20, size_notes

if TYPE_CHECKING:
    from czsl_cli.experiment_file import Experiment
    from methods.published.expectation import Expectation

HEADINGS = {"closed": "closed world", "open": "open world"}
WORDS = {"reached": "reached", "above": "reached, well above", "below": "below", "undefined": "undefined"}


@click.command()
@click.argument("method")
@click.argument("dataset")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", "-d", help="Dataset folder.  [default: DATASET or data/DATASET]")
@click.option("--clip", help="CLIP, instead of the paper's: a model's name, a file or a folder.")
@click.option("--clip-weights", metavar="TAG|FILE", help="Weights of an open_clip model.")
@click.option("--backbone", help="Backbone of the published row, if the paper has several, e.g. ViT-B/32.")
@click.option("--world", type=click.Choice(["closed", "open"]), help="Only this world.  [default: all with expected numbers]")
@click.option(
    "--expect",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Expectation file of your own (docs/reproduce.md).",
)
@click.option(
    "--tolerance", type=click.FloatRange(0, 100), help="Points that a number may stay below the expected one.  [default: 1]"
)
@click.option(
    "--seeds", "--seed", type=Numbers(), default="0", show_default=True, help="Seeds of training; their mean is compared."
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the runs.  [default: runs/reproduce-...]"
)
@placement_options
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON (percent).")
def reproduce(method, dataset, overrides, dry_run, as_json, out, **options) -> None:
    """Train METHOD on DATASET as published, evaluate it, and compare with the published numbers.

    \b
      czsl reproduce clusPro mit-states --dry-run
      czsl reproduce clusPro mit-states --data /data/mit-states --nodes 4
      czsl reproduce csp toy --expect mine.yaml --seeds 0,1

    Preset, recipe and CLIP are those of the method's public program as far as they are known. The numbers of the field's evaluator (20
    bins) are compared. The same command continues an interrupted training, and evaluates only if all is trained.

    Exit codes: 0 all numbers reached, 5 a number is below its expected value by more than the tolerance, 3 the dataset is missing or
    another one, 4 the CLIP is missing.
    """
    from czsl.errors import CzslError, ExpectationError

    where = where_of(options)
    expected = _expectation(method, dataset, options)
    asked, missing = _experiment(expected, method, overrides, options)
    out = out or Path("runs") / f"reproduce-{next(iter(asked.rows))}-{expected.dataset}"
    if dry_run:
        _show_plan(expected, asked, out, missing, overrides, as_json)
        return
    if missing:
        raise missing
    _check_data(expected, asked)
    if options["clip"] and expected.records:
        warn(f"the numbers are those of {expected.records[0].backbone}: --clip {options['clip']} must be that model")
    if overrides:
        warn(f"not as published: {' '.join(overrides)}")
    from czsl_cli.experiment_runs import measure, planned, train_missing, what_is_left

    plans, data = planned(asked, out)
    with continued_with(lambda: what_is_left(plans)):
        failures = train_missing(plans, data, where, out, None)
        if failures:
            raise CzslError(
                "training failed", "; ".join(f"{k}: {v}" for k, v in failures.items()), "the same command tries again"
            )
        result = _judged(expected, measure(asked, plans, data, {}, where), plans)
    _write(out, result)
    _show(result, out, as_json)
    wrong = [n for n in result["numbers"] if n["verdict"] in ("below", "undefined")]
    if wrong:
        few = ", ".join(f"{n['world']} {COLUMNS[n['number']]} {_text(n['ours'])} ({n['expected']:.1f})" for n in wrong[:4])
        raise ExpectationError(
            f"{len(wrong)} of {len(result['numbers'])} numbers were not reached", f"{few}; expected numbers in brackets",
            f"docs/reproduce.md lists possible causes; the runs are in {out}",
        )  # fmt: skip


def _expectation(method: str, dataset: str, options: dict[str, Any]) -> Expectation:
    from methods.published.expectation import from_file, from_papers
    from methods.published.records import plain, published

    worlds = (options["world"],) if options["world"] else tuple(HEADINGS)
    if options["expect"] is None:
        return from_papers(method, dataset, worlds, options["tolerance"], options["backbone"])
    if options["backbone"]:
        raise click.UsageError("--backbone chooses among published rows: leave it out with --expect")
    name = next((d for d in published().datasets if plain(d) == plain(dataset)), dataset)
    return from_file(options["expect"], method, name, worlds, options["tolerance"])


def _experiment(
    expected: Expectation, method: str, overrides: tuple[str, ...], options: dict[str, Any]
) -> tuple[Experiment, Exception | None]:
    """Return the experiment of one row that a reproduction is, and the error of a dataset that is not there."""
    from czsl.errors import UsageError
    from czsl_cli.config import parse_overrides
    from czsl_cli.experiment_file import NAME, Experiment, Row, adaptation, settings_of

    folder, missing = _folder(expected, options["data"])
    if not NAME.fullmatch(expected.dataset):
        raise UsageError(
            f"the dataset name {expected.dataset!r} cannot be used", "it becomes part of folder names", "give --data FOLDER"
        )
    clip: dict[str, Any] = {"clip": expected.clip, "clip_weights": expected.clip_weights}
    if options["clip"]:
        clip = {"clip": options["clip"], "clip_weights": None}
    if options["clip_weights"]:
        clip["clip_weights"] = options["clip_weights"]
    given = settings_of(expected.settings, "settings")
    settings = {**given, "method": expected.method, **clip, **parse_overrides(overrides)}
    adapt = None if expected.adapt is None else adaptation(expected.adapt, method)
    name = f"{expected.method}-{adapt.name}" if adapt else expected.method
    row = Row(name, None, {k: v for k, v in settings.items() if v is not None}, adapt)
    # In the open world papers give infeasible pairs a score of 0.
    worlds: dict[str, dict[str, Any]] = {"closed": {}, "open": {"open_world": True, "rule": "reference"}}
    evaluate = {HEADINGS[w]: worlds[w] for w in expected.numbers}
    columns = {**{REF20[k]: f"{text}-20" for k, text in COLUMNS.items()}, "auc": "AUC"}
    asked = Experiment({name: row}, {expected.dataset: folder}, options["seeds"], evaluate, (), columns)
    asked.config(name, expected.dataset, asked.seeds[0])  # unknown settings are found before anything is looked for
    return asked, missing


def _folder(expected: Expectation, given: str | None) -> tuple[str, Exception | None]:
    """Return the dataset's folder, or the error that lists which files go where if the dataset is missing."""
    from czsl.errors import DataError
    from methods.published.records import published

    chosen = given or expected.data
    if chosen or expected.dataset == "toy":
        return chosen or "toy", None
    places = [Path(expected.dataset), Path("data") / expected.dataset]
    for place in places:
        if (place / "dataset.json").is_file():
            return str(place), None
    facts = published().datasets.get(expected.dataset)
    if facts is None:
        fix = "name its folder: --data FOLDER"
    else:
        fix = (
            f"download {facts.images_from}; lists: {facts.lists_from}; put {facts.put}; then: "
            f"czsl data import DOWNLOAD {places[0]}  (docs/data.md), or name a dataset folder: --data FOLDER"
        )
    title = facts.title if facts else expected.dataset
    return str(places[0]), DataError(
        f"the dataset {title} is not here", f"no dataset folder {' or '.join(map(str, places))}", fix
    )


def _check_data(expected: Expectation, asked: Experiment) -> None:
    """Print how the data differs from the published one; DataError if its labels are others and the numbers are published ones."""
    from czsl.data.table import open_data
    from czsl.errors import DataError
    from methods.published.records import published

    if expected.dataset not in published().datasets:
        return
    data = open_data(asked.data[expected.dataset])
    for note in size_notes(expected.dataset, data):
        if expected.records and "cannot be compared" in note:
            title = published().datasets[expected.dataset].title
            raise DataError(
                f"{asked.data[expected.dataset]} is not {title} as published",
                note,
                "import the published split, or give --expect FILE",
            )
        warn(note)


# -- result --------------------------------------------------------------------------------------------------------------
def _judged(expected: Expectation, measured: Mapping[str, Any], plans: list[Any]) -> dict[str, Any]:
    """Compare the means over seeds with what is expected, in percent."""
    numbers = []
    for world, table in zip(expected.numbers, measured["tables"], strict=True):
        [row] = table["rows"]
        for key, one in expected.numbers[world].items():
            values = [report[REF20[key]] for report in row["reports"]]
            known = [100 * v for v in values if v is not None]
            ours = statistics.fmean(known) if known and len(known) == len(values) else None
            numbers.append(
                {
                    "world": world, "number": key, "expected": one.value, "tolerance": one.tolerance, "ours": ours, "seeds": known,
                    "difference": None if ours is None else ours - one.value, "verdict": one.verdict(ours),
                }
            )  # fmt: skip
    return {
        "method": expected.method,
        "dataset": expected.dataset,
        "source": expected.source,
        "adaptation": measured["tables"][0]["rows"][0]["adaptation"],
        "runs": [str(p.path) for p in plans],
        "numbers": numbers,
        "reached": all(n["verdict"] in ("reached", "above") for n in numbers),
    }


def _write(out: Path, result: dict[str, Any]) -> None:
    import json

    from czsl.runs.files import write_atomically

    write_atomically(out / "reproduction.json", json.dumps(result, indent=1).encode())


def _show(result: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    rows = []
    for n in result["numbers"]:
        sd = f" ± {statistics.stdev(n['seeds']):.1f}" if len(n["seeds"]) > 1 else ""
        difference = "-" if n["difference"] is None else f"{n['difference']:+.1f}"
        ours = f"{_text(n['ours'])}{sd}"
        rows.append(
            [
                n["world"],
                COLUMNS[n["number"]],
                f"{n['expected']:.1f}",
                ours,
                difference,
                f"{n['tolerance']:.1f}",
                WORDS[n["verdict"]],
            ]
        )
    columns = ["world", "number", "expected", "ours", "difference", "tolerance", ""]
    print_table(columns, rows, f"{result['method']} on {result['dataset']}, percent, the field's evaluator (20 bins)")
    print_text(f"expected numbers: {result['source']}")
    if any(n["verdict"] == "above" for n in result["numbers"]):
        say(
            "numbers well above the expected ones do not reproduce the paper either: check that data, split and CLIP are those of the paper"
        )
    if result["adaptation"]:
        say("adapted to the unlabelled test images (transductive)")
    print_text("all expected numbers were reached" if result["reached"] else "not all expected numbers were reached")
    say(f"written to {out / 'reproduction.json'}")


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


# -- plan ----------------------------------------------------------------------------------------------------------------
def _show_plan(
    expected: Expectation, asked: Experiment, out: Path, missing: Any, overrides: tuple[str, ...], as_json: bool
) -> None:
    [(name, row)] = asked.rows.items()
    config = asked.config(name, expected.dataset, asked.seeds[0])
    steps, states, notes = None, {}, list[str]()
    if missing is None:
        from czsl.data.table import open_data
        from czsl_cli.experiment_runs import planned
        from methods.published.records import published

        plans, _ = planned(asked, out)
        steps, states = plans[0].steps, {str(p.path): p.state for p in plans}
        if expected.dataset in published().datasets:
            notes = size_notes(expected.dataset, open_data(asked.data[expected.dataset]))
    plan = {
        "method": config.method, "preset": config.preset, "recipe": config.recipe, "clip": config.clip, "clip_weights": config.clip_weights,
        "data": config.data, "data_missing": missing is not None, "epochs": config.epochs, "batch": config.batch, "lr": config.lr,
        "steps": steps, "seeds": list(asked.seeds), "adaptation": row.adapt.to_json() if row.adapt else None, "changed": list(overrides),
        "out": str(out), "runs": states, "source": expected.source,
        "expected": {w: {k: {"value": e.value, "tolerance": e.tolerance} for k, e in n.items()} for w, n in expected.numbers.items()},
    }  # fmt: skip
    if as_json:
        print_json(plan)
    else:
        hidden = ("expected", "source", "data_missing", "adaptation", "runs")
        shown = {k: v for k, v in plan.items() if k not in hidden and v not in (None, [])}
        shown |= {"adaptation": row.adapt.name} if row.adapt else {}
        shown |= {Path(path).name: state for path, state in states.items()}
        print_table(
            ["plan", ""],
            [[k.replace("_", " "), " ".join(map(str, v)) if isinstance(v, list) else str(v)] for k, v in shown.items()],
        )
        rows = [
            [w, COLUMNS[k], f"{e.value:.1f}", f"{e.tolerance:.1f}"] for w, n in expected.numbers.items() for k, e in n.items()
        ]
        print_table(["world", "number", "expected", "tolerance"], rows)
        print_text(f"expected numbers: {expected.source}")
    for note in notes:
        warn(note)
    if missing is not None:
        warn(f"{missing.what} ({missing.why}); {missing.fix}")
    if config.clip != "tiny" and not Path(config.clip).exists() and not config.clip_weights:
        say(
            f"weights: open_clip's {config.clip}, downloaded on first use; offline, give the file: "
            f"--clip {config.clip} --clip-weights FILE (docs/weights.md)"
        )
