"""``czsl compare``: do the differences between runs hold, and where do they come from?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.adapt_options import split_run
from czsl_cli.console import percent, print_json, print_table, progress_bar, say, warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from czsl.evaluation import SavedEvaluation

MAX_SHOWN = 10  # compositions in the table; --json has all
WORDS = {"auc": "AUC", "hm": "HM", "seen": "best seen", "unseen": "best unseen"}
# At each run's operating point, if all have one.
POINT_WORDS = {"op_seen": "seen at point", "op_unseen": "unseen at point", "op_hm": "HM at point", "op_acc": "all at point"}
DASHES = ("-", "--", "-.", ":")
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("runs", nargs=-1, metavar="RUN_A RUN_B [RUN_C]...")
@click.option("--run", "more", multiple=True, metavar="RUN", help="One more run, after those given as arguments.")
@click.option("--split", type=click.Choice(["test", "val"]), help="Images to compare on.  [default: test]")
@click.option("--open-world", is_flag=True, help="Let all attribute-object pairs compete.")
@click.option("--data", help="Another dataset with the runs' label space.")
@click.option(
    "--per-pair", type=click.IntRange(0), default=0, help="Compare on up to N images per pair, drawn as by `czsl evaluate`."
)
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step, of every run.")
@click.option("--scores", is_flag=True, help="The arguments are score files (.npz) of any methods.")
@click.option(
    "--space", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Label space of the score files, as JSON."
)
@click.option(
    "--resamples", type=click.IntRange(1), default=1000, show_default=True, help="Number of paired-bootstrap resamples."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--html", type=FILE, help="Write a page with the tables and the curves.")
@click.option("--plot", type=FILE, help="Write the seen/unseen curves (.svg or .png).")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON (fractions).")
def compare(
    runs, more, split, open_world, data, per_pair, checkpoint, scores, space, resamples, seed, html, plot, as_json
) -> None:
    """Compare runs on the same images, with 95 % intervals of their differences.

    \b
      czsl compare runs/csp runs/clusPro
      czsl compare runs/zs runs/csp runs/clusPro --open-world --html comparison.html
      czsl compare RUN RUN@tomcat RUN@tda,alpha=1,seed=1
      czsl compare --scores a.npz b.npz --space space.json

    Differences are to the first run. A difference holds if its interval, from resampled images, does not contain 0. Runs that
    were not evaluated yet, or are of another checkpoint or other data since, are evaluated first.

    RUN@tomcat is the run adapted to the unlabelled images (see `czsl evaluate --adapt`), with settings and the order's seed after commas.
    """
    from czsl.errors import UsageError

    runs = (*runs, *more)
    if len(runs) < 2:
        raise UsageError(f"{len(runs) or 'no'} runs to compare", "a comparison takes two or more", "czsl compare RUN_A RUN_B")
    if bool(space) != scores:
        missing, there = ("--space", "--scores") if scores else ("--scores", "--space")
        raise UsageError(
            f"{there} without {missing}",
            "score files are read with their label space",
            "czsl compare --scores A.npz B.npz --space FILE.json",
        )
    if plot and plot.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {plot} is neither .svg nor .png", "the suffix selects the format", f"--plot {plot.stem}.svg")
    names = _names(runs)
    biases = None
    if scores:
        saved_evaluations = [_of_scores(Path(file), space, split, open_world) for file in runs]
    else:
        asked = {"split": split or "test", "open_world": open_world, "data": data, "checkpoint": checkpoint, "per_pair": per_pair}
        saved_evaluations = _of_runs(runs, asked)
        biases = _biases(runs, asked)
    result = _compare(names, saved_evaluations, resamples, seed, biases)
    result["runs"] = [{"path": str(path), **row} for path, row in zip(runs, result["runs"], strict=True)]
    if as_json:
        print_json(result)
    else:
        for title, columns, rows in _tables(result):
            print_table(columns, rows, title)
    for warning in result.get("warnings", []):
        warn(warning)
    if html or plot:
        _write(result, curves_figure(result["runs"], [r.extremes for r in saved_evaluations]), html, plot)


# -- what is compared ----------------------------------------------------------------------------------------------
def _names(paths: Sequence[str]) -> list[str]:
    """Short names of runs: the last part of their paths, if that is unique."""
    from czsl.errors import UsageError

    named = [split_run(path) for path in paths]
    resolved = [f"{Path(path).resolve()}{f'@{plan.key}' if plan else ''}" for path, plan in named]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path in resolved if resolved.count(path) > 1)
        raise UsageError(f"{twice} was given twice", "a run cannot be compared with itself", "name each run once")
    short = [Path(path).resolve().name + word[len(path) :] for word, (path, _) in zip(paths, named, strict=True)]
    return [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]


def _of_runs(paths: Sequence[str], asked: dict[str, Any]) -> list[SavedEvaluation]:
    from czsl.data.table import open_data
    from czsl.errors import DataError
    from czsl.runs.run import Run

    named = [split_run(path) for path in paths]
    runs = [Run(path) for path, _ in named]
    for run, (_, plan) in zip(runs, named, strict=True):
        if plan:
            from methods.registry import check_adaptable

            check_adaptable(run.config.method)
    identities = [open_data(asked["data"] or run.config.data).sha256 for run in runs]
    for path, identity in zip(paths, identities, strict=True):
        if identity != identities[0]:
            raise DataError(
                f"{path} has other data than {paths[0]}",
                "the SHA-256 of their datasets differ: a comparison takes the same images",
                "compare them on one dataset: --data DATA",
            )
    from cluster.evaluate import load_or_evaluate
    from cluster.work.evaluation import EvalConfig

    eval_config = EvalConfig(**asked)
    with progress_bar() as bar:
        found = [
            load_or_evaluate(run, replace(eval_config, adapt=plan), bar.update, say)
            for run, (_, plan) in zip(runs, named, strict=True)
        ]
    return [saved.arranged(found[0].ids) for saved in found]


def _biases(paths: Sequence[str], asked: dict[str, Any]) -> list[float] | None:
    """The biases of the runs' operating points; None in the open world, where these are without a threshold, or if a run has none."""
    from czsl.runs.run import Run
    from methods.points import stored_point

    named = [split_run(path) for path in paths]
    points = [stored_point(Run(path), asked["checkpoint"], layer=plan.key if plan else "")[0] for path, plan in named]
    if asked["open_world"] or None in points:
        return None
    return [point.bias for point in points if point is not None]


def _of_scores(file: Path, space: Path, split: str | None, open_world: bool) -> SavedEvaluation:
    from czsl.evaluation import Candidates, SavedEvaluation, read_scores, reduce_scores

    read = read_scores(file, space, split, open_world or None)
    candidates = Candidates.build(read.space, read.pairs, split=read.split, open_world=read.open_world, source=read.source)
    extremes = reduce_scores(read.scores, read.labels, candidates, source=read.source)
    ids, names = [str(i) for i in range(len(extremes))], (list(read.space.attributes), list(read.space.objects))
    return SavedEvaluation(extremes, ids, *names, {"split": read.split, "open_world": read.open_world})


def _compare(
    names: Sequence[str],
    saved_evaluations: Sequence[SavedEvaluation],
    resamples: int,
    seed: int,
    biases: Sequence[float] | None = None,
) -> dict[str, Any]:
    """All numbers of the comparison, ready for JSON."""
    from czsl.compositions import label_of
    from czsl.evaluation import Curve, pair_accuracies
    from czsl.evaluation import compare as paired
    from czsl.evaluation.at_point import accuracies
    from czsl.evaluation.report import plain

    first = saved_evaluations[0]
    rows = []
    for name, saved in zip(names, saved_evaluations, strict=True):
        known: dict[str, Any] = {k: saved.facts[k] for k in ("method", "threshold", "rule", "adaptation") if k in saved.facts}
        rows.append({"name": name, **known, **{k: plain(v) for k, v in Curve(saved.extremes).numbers().items()}})
        if biases is not None:
            at = accuracies(saved.extremes, biases[len(rows) - 1])
            rows[-1] |= {"op_bias": biases[len(rows) - 1], **{f"op_{key}": plain(value) for key, value in at.items()}}
    words = WORDS if biases is None else {**WORDS, **POINT_WORDS}
    differences: list[dict[str, Any]] = []
    for i, (name, other) in enumerate(zip(names[1:], saved_evaluations[1:], strict=True), 1):
        points = None if biases is None else (biases[0], biases[i])
        found = paired(first.extremes, other.extremes, resamples, seed, biases=points)
        differences.append({"run": name, "to": names[0], **{key: found[key] for key in words}})
    pairs = [
        {**label_of(first.attributes[a], first.objects[o]), **row}
        for row in pair_accuracies([r.extremes for r in saved_evaluations])
        for a, o in [row.pop("label")]
    ]
    result: dict[str, Any] = {
        "split": first.facts["split"],
        "open_world": first.facts["open_world"],
        "images": len(first.extremes),
        "resamples": resamples,
        "seed": seed,
        "runs": rows,
        "differences": differences,
        "pairs": pairs,
    }
    warnings = []
    if adapted := [row["name"] for row in rows if "adaptation" in row]:
        mixed = len(adapted) < len(rows)
        warnings.append(
            f"{', '.join(adapted)}: adapted to the unlabelled {first.facts['split']} images, in one order"
            + ("; a difference to a run that was not is not only a difference of the methods" if mixed else "")
        )
    if rows[0]["auc"] is None:
        group = "unseen" if first.extremes.true_seen.all() else "seen"
        warnings.append(f"no image shows a pair {group} in training: AUC and harmonic mean are undefined")
    if warnings:
        result["warnings"] = warnings
    return result


# -- what is shown -------------------------------------------------------------------------------------------------
def _tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[Any]]]]:
    """Titles, columns and rows for people."""
    from czsl.compositions import label_words

    runs, world = result["runs"], "open world" if result["open_world"] else "closed world"
    noun = "composition"
    if any("class" in pair for pair in result["pairs"]):
        noun, world = "class", "plain classes"
    methods, cut = any("method" in run for run in runs), any("threshold" in run for run in runs)
    words = {**WORDS, **POINT_WORDS} if all("op_hm" in run for run in runs) else WORDS
    columns = ["percent", *(["method"] if methods else []), *words.values(), *(["feasibility threshold"] if cut else [])]
    rows = []
    for run in runs:
        threshold = "none" if run.get("threshold") is None else f"{run['threshold']:.4f}"
        row = [run["name"], *([run.get("method", "")] if methods else []), *(percent(run[key]) for key in words)]
        rows.append([*row, *([threshold] if cut else [])])
    differing = []
    for difference in result["differences"]:
        for i, (key, word) in enumerate(words.items()):
            found = difference[key]
            interval = "-" if found["interval"] is None else " to ".join(_points(v) for v in found["interval"])
            holds = {True: "yes", False: "no", None: "-"}[found["holds"]]
            differing.append(["" if i else difference["run"], word, _points(found["difference"]), interval, holds])
    compositions = [
        [
            label_words(pair),
            "seen" if pair["seen"] else "unseen",
            pair["images"],
            *map(percent, pair["acc"]),
        ]
        for pair in result["pairs"][:MAX_SHOWN]
    ]
    first = runs[0]["name"]
    return [
        (f"{result['split']}, {world}, {result['images']:,} images", columns, rows),
        (
            f"differences to {first}, in points; 95 % intervals of {result['resamples']:,} paired resamples",
            ["run", "", "difference", "interval", "holds"],
            differing,
        ),
        (
            f"{noun}{'es' if noun == 'class' else 's'} where most images were won or lost; accuracy in percent, each run at the bias of "
            "its best HM",
            [noun, "in training", "images", *(run["name"] for run in runs)],
            compositions,
        ),
    ]


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def curves_figure(runs: Sequence[dict[str, Any]], extremes: Sequence[Any]) -> Figure:
    """The exact seen/unseen curves, closed towards the axes, so that the area under a line is its AUC.

    A dot marks the best HM, a diamond the operating point.
    """
    import numpy as np
    from matplotlib.figure import Figure

    from czsl.evaluation import Curve
    from czsl.evaluation.at_point import accuracies
    from czsl.evaluation.curve import harmonic_mean
    from czsl_cli.pages import COLOURS, legend_below

    figure = Figure(figsize=(6.4, 5.2))
    axes = figure.add_subplot()
    for i, (run, e) in enumerate(zip(runs, extremes, strict=True)):
        seen, unseen = (100 * points for points in Curve(e).points())
        colour, label = COLOURS[i % len(COLOURS)], f"{run['name']} (AUC {percent(run['auc'])})"
        x, y = np.concatenate([seen[:1], seen, [0]]), np.concatenate([[0], unseen, unseen[-1:]])
        style = DASHES[i // len(COLOURS) % len(DASHES)]
        axes.plot(x, y, style, color=colour, linewidth=1.6, label=label.replace("$", r"\$"))
        if run["hm"]:
            best = int(np.argmax(harmonic_mean(seen, unseen)))
            axes.plot(seen[best], unseen[best], "o", color=colour, markersize=5)
        if run.get("op_bias") is not None:
            at = accuracies(e, run["op_bias"])
            axes.plot(100 * at["seen"], 100 * at["unseen"], "D", color=colour, markersize=6, markerfacecolor="none")
    axes.set(xlabel="accuracy on images of seen pairs (%)", ylabel="accuracy on images of unseen pairs (%)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    marks = "dot: best harmonic mean" + ("; diamond: operating point" if any("op_bias" in run for run in runs) else "")
    legend_below(axes, 1 if len(runs) < 5 else 2, marks)
    return figure


def curves_in_words(runs: Sequence[dict[str, Any]]) -> str:
    """Return what :func:`curves_figure` shows, for those who do not see it."""
    words = {"auc": "area", "seen": "best seen", "unseen": "best unseen", "hm": "best harmonic mean"}
    each = [f"{run['name']}: " + ", ".join(f"{word} {percent(run[k])}" for k, word in words.items()) for run in runs]
    return f"Accuracy on unseen pairs over accuracy on seen pairs, in percent. {'; '.join(each)}."


def _write(result: dict[str, Any], figure: Figure, html: Path | None, plot: Path | None) -> None:
    from czsl_cli.pages import Plot, Table, plot_svg, write_page

    if plot:
        plot.parent.mkdir(parents=True, exist_ok=True)
        if plot.suffix == ".svg":
            plot.write_text(str(plot_svg(figure)), encoding="utf-8")
        else:
            figure.savefig(plot, dpi=160, bbox_inches="tight")
    if html:
        overview, differences, compositions = (
            Table(title[0].upper() + title[1:], columns, rows) for title, columns, rows in _tables(result)
        )
        alt = curves_in_words(result["runs"])
        curves = Plot("Seen and unseen accuracy over all calibration biases", plot_svg(figure), alt=alt)
        intro = [
            "All runs saw the same images. A difference holds if its interval does not contain 0.",
            *result.get("warnings", []),
        ]
        names = ", ".join(run["name"] for run in result["runs"])
        write_page(html, f"Comparison: {names}", [overview, curves, differences, compositions], intro)
    for path in (html, plot):
        if path:
            say(f"written to {path}")
