"""``czsl evaluate``: the field's numbers of a run, or of any method's score file."""

from __future__ import annotations

import math
import operator
import re
from pathlib import Path
from typing import Any

import click

from czsl_cli.adapt_options import adapt_option, plan_of, stream_seed_option, tell_plan
from czsl_cli.console import print_json, progress_bar, say, warn
from czsl_cli.evaluate_tables import print_report
from czsl_cli.options import named_run, placement_options, where_of

COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@named_run(settings=True)
@click.option("--split", type=click.Choice(["test", "val"]), help="Images to evaluate on.  [default: test]")
@click.option("--open-world", is_flag=True, help="Let all attribute-object pairs compete.")
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@click.option("--data", help="Another dataset with the run's label space.")
@click.option("--scores", type=FILE, help="Evaluate a score file (.npz: scores, attr, obj, pair_attr, pair_obj) of any method.")
@click.option("--space", type=FILE, help="Label space of --scores: its JSON, or a dataset's space.json.")
@click.option(
    "--val-scores", type=FILE, help="--scores: choose the operating point on these, in the open world the feasibility threshold."
)
@click.option("--feasibility", type=FILE, help="Open world: feasibility of the pairs (.npy).  [default: from the run's CLIP]")
@click.option("--glove", type=FILE, help="Open world: feasibility from these word vectors (lines of a word and numbers).")
@click.option("--rename", type=FILE, help="JSON of names that --glove does not have: the words to look up instead.")
@click.option("--no-feasibility", is_flag=True, help="Open world: no feasibility thresholds.")
@click.option("--threshold", type=float, help="Open world: the feasibility threshold to use.  [default: the best one on val]")
@click.option(
    "--rule",
    type=click.Choice(["exclude", "reference"]),
    default="exclude",
    show_default=True,
    help="Treatment of infeasible pairs.",
)
@click.option(
    "--topk",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Count a prediction as correct if the true pair is in the top k.",
)
@click.option("--per-pair", type=click.IntRange(0), default=0, help="Number of images per pair.  [default: all]")
@click.option("--bootstrap", type=click.IntRange(0), default=0, help="Resamples for 95 % intervals of the numbers.")
@adapt_option
@stream_seed_option("0", several=True)
@click.option("--published", metavar="DATASET", help="Show what papers report on DATASET below the numbers, e.g. mit-states.")
@click.option("--expect", multiple=True, metavar="KEY>=VALUE", help="Exit with 5 where this does not hold, e.g. auc>=0.3.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with the tables and the curves.")
@placement_options
@click.option("--json", "as_json", is_flag=True, help="Print all numbers as JSON (fractions).")
def evaluate(run, scores, space, published, expect, html, as_json, **options) -> None:
    """Evaluate RUN (a folder that `czsl train` wrote; the newest one by default), or a score file.

    \b
      czsl evaluate runs/clusPro-mydata-20260101-120000
      czsl evaluate RUN --open-world --json
      czsl evaluate --scores scores.npz --space space.json --json
      czsl evaluate RUN --published mit-states
      czsl evaluate RUN --adapt tomcat recipe=ut-zappos --stream-seed 0 --stream-seed 1

    AUC is the exact area under the seen/unseen curve; AUC-20 is the 20-bin value that papers print. In the open world, pairs
    below a feasibility threshold cannot be predicted; the threshold with the best AUC on the validation split is used.

    The operating point is what the run's answers use: a bias on unseen pairs and a temperature, chosen on the validation split (czsl
    calibrate). A run that has none yet gets one first.

    With --adapt the test images are one unlabelled stream that moves the scores of those after it. Such numbers are transductive and no
    result of the run itself; the report names adaptation, order and settings, and shows the numbers without it. Threshold and
    operating point are chosen on the validation images, adapted from a fresh state.

    Plain classes: S, U, T1 are means over seen and unseen classes, H the harmonic mean of S and U with the bias of the operating point as
    gamma.
    """
    from czsl.errors import UsageError

    checks = [_parse_expectation(text) for text in expect]
    if html and scores:
        raise UsageError(
            "--html goes with a run", "a score file was given", "drop it, or compare score files: czsl compare --scores"
        )
    if scores and options["adapt"]:
        raise UsageError("--adapt goes with a run", "a score file has no features that could be adapted", "drop it")
    if html and len(options["stream_seed"]) > 1:
        raise UsageError("--html with several orders of the stream", "a page shows one evaluation", "give one --stream-seed")
    if published is not None:
        _check_published(published, scores, options)
    page = beside = None
    if scores:
        result = _evaluate_file(scores, space, run, options)
    else:
        result, page, beside = _evaluate_run(run, options, html, published)
    if as_json:
        print_json(result)
    else:
        print_report(result, beside)
    for warning in result.get("warnings", []):
        warn(warning)
    if page:
        page(result)
        say(f"page: {html}")
    _check(result, checks)


def _evaluate_run(
    path: Path | None, options: dict[str, Any], html: Path | None, benchmark: str | None
) -> tuple[dict[str, Any], Any, Any]:
    """Return a run's report, the function that writes its page, and papers' numbers next to it; None for what was not asked."""
    where = where_of(options)
    from czsl.errors import UsageError
    from czsl_cli.runs import chosen_run, usable_checkpoint

    if options["val_scores"]:
        raise UsageError("--val-scores goes with --scores", "a run was given", "drop it: the run scores its own validation split")
    _check_feasibility(options, bool(options["open_world"]))
    seeds = options["stream_seed"] or (None,)
    if len(set(seeds)) < len(seeds):
        raise UsageError("a --stream-seed was given twice", "the same order gives the same numbers", "give other seeds")
    plans = [plan_of(options["adapt"], options["settings"], seed) for seed in seeds]
    run = chosen_run(path)
    if plans[0]:
        from methods.registry import check_adaptable

        check_adaptable(run.config.method)
    usable_checkpoint(run, options["checkpoint"])
    if plans[0]:
        tell_plan(plans[0])
    from cluster.evaluate import evaluate_orders, evaluation_of  # torch comes with it: what can be refused was refused without
    from cluster.work.evaluation import EvalConfig
    from czsl.data.table import open_data

    feasibility: Any = None if options["no_feasibility"] else "clip"
    if options["feasibility"] or options["glove"]:
        feasibility = _read_feasibility(options, open_data(options["data"] or run.config.data).space)
    eval_config = EvalConfig(
        split=options["split"] or "test",
        feasibility=feasibility,
        adapt=plans[0],
        **{k: options[k] for k in ("open_world", "checkpoint", "data", "topk", "bootstrap", "threshold", "rule", "per_pair")},
    )
    with progress_bar() as bar:
        callbacks: dict[str, Any] = {**where, "progress": bar.update, "notice": warn}
        orders = [plan.seed for plan in plans if plan]
        result, saved = (
            evaluate_orders(run, eval_config, orders, **callbacks) if orders else evaluation_of(run, eval_config, **callbacks)
        )
    beside = _beside_papers(result, run.config, options["data"], benchmark) if benchmark is not None else None
    if html is None:
        return result, None, beside

    def page(result: dict[str, Any]) -> None:
        from czsl_cli.point_report import write_report_page

        write_report_page(html, run.path.name, result, saved.extremes)

    return result, page, beside


def _check_published(benchmark: str, scores: Path | None, options: dict[str, Any]) -> None:
    """UsageError where papers have no numbers that the evaluation could be compared with."""
    from czsl.errors import UsageError
    from czsl_cli.published import check_dataset

    if scores:
        raise UsageError("--published goes with a run", "a score file does not name its data", "czsl published lists the numbers")
    asked = [
        f"--{k.replace('_', '-')} {options[k]}"
        for k, usual in (("split", "test"), ("topk", 1))
        if options[k] not in (None, usual)
    ]
    if asked:
        raise UsageError(f"--published with {asked[0]}", "papers report the best pair of each test image", "drop one of them")
    check_dataset(benchmark)


def _beside_papers(result: dict[str, Any], config: Any, data: str | None, benchmark: str) -> Any:
    """Return the run's numbers next to those that papers report as a table; the records enter ``result["published"]``."""
    from czsl.data.table import open_data
    from czsl_cli.published import run_next_to_published, world_of
    from methods.published.records import published

    result["published"] = [r.to_json() for r in published().select(benchmark, None, world_of(result))]
    return run_next_to_published(config, result, benchmark, open_data(data or config.data))


def _evaluate_file(scores: Path, space: Path | None, run: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    from czsl.errors import UsageError
    from czsl.evaluation import evaluate as evaluate_scores
    from czsl.evaluation import read_scores

    if run is not None or space is None:
        raise UsageError(
            "a score file needs its label space and no run",
            "--scores was given with a run or without --space",
            "czsl evaluate --scores FILE.npz --space FILE.json",
        )
    open_world = True if options["open_world"] else None
    if options["per_pair"]:
        raise UsageError("--per-pair goes with a run", "a score file has its images", "drop it")
    inputs = read_scores(scores, space, options["split"], open_world).inputs()
    _check_feasibility(options, inputs["open_world"])
    if options["no_feasibility"]:
        inputs["feasibility"] = None
    elif options["feasibility"] or options["glove"]:
        inputs["feasibility"] = _read_feasibility(options, inputs["space"])
    val = read_scores(options["val_scores"], space, "val", open_world) if options["val_scores"] else None
    _check_threshold(options, inputs)
    result = evaluate_scores(**inputs, val=val, **{k: options[k] for k in ("threshold", "rule", "topk", "bootstrap")})
    if "thresholds" in result:
        chosen = None if result["threshold"] is None else "val" if val else "given"
        result["threshold_chosen"] = chosen
    return result


def _check_threshold(options: dict[str, Any], inputs: dict[str, Any]) -> None:
    """UsageError where a threshold is given and cannot be used, or should be chosen and cannot."""
    from czsl.errors import UsageError

    given, fix = options["threshold"], "give the scores' feasibility with --feasibility or --glove"
    if given is not None and not math.isfinite(given):
        raise UsageError(
            f"--threshold is {given}", "feasibilities are compared with a finite number", "give a number such as 0.3"
        )
    if given is not None and inputs["feasibility"] is None:
        raise UsageError("--threshold was given without a feasibility", "the score file holds none", fix)
    if not options["val_scores"] or not inputs["open_world"]:
        return
    if given is not None:
        raise UsageError("--threshold and --val-scores were given", "validation scores choose the threshold", "drop one of them")
    if inputs["feasibility"] is None:
        raise UsageError("--val-scores has no threshold to choose", "the open world has no feasibility", fix)


def _check_feasibility(options: dict[str, Any], open_world: bool) -> None:
    """UsageError where the options of the open world contradict each other or the world."""
    from czsl.errors import UsageError

    sources = [f"--{k.replace('_', '-')}" for k in ("feasibility", "glove", "no_feasibility") if options[k]]
    if options["rename"] and not options["glove"]:
        raise UsageError("--rename goes with --glove", "it renames words of the --glove file", "add --glove FILE, or drop it")
    if len(sources) > 1:
        raise UsageError(f"{' and '.join(sources)} were given", "the feasibility comes from one place", "keep one of them")
    used = sources + (["--threshold"] if options["threshold"] is not None else [])
    if used and not open_world:
        raise UsageError(f"{used[0]} without --open-world", "feasibility limits the open world", "add --open-world, or drop it")
    if options["no_feasibility"] and options["threshold"] is not None:
        raise UsageError("--threshold with --no-feasibility", "a threshold cuts by feasibility", "drop one of them")


def _read_feasibility(options: dict[str, Any], space: Any) -> Any:
    from czsl.evaluation.feasibility import feasibility_from_glove, read_feasibility, read_rename

    if options["glove"]:
        return feasibility_from_glove(options["glove"], space, read_rename(options["rename"]) if options["rename"] else None)
    return read_feasibility(options["feasibility"], space)


def _parse_expectation(text: str) -> tuple[str, str, float]:
    from czsl.errors import UsageError

    found = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*", text)
    try:
        assert found
        return found[1], found[2], float(found[3])
    except (AssertionError, ValueError):
        raise UsageError(
            f"--expect {text!r} cannot be read",
            "it is not a number, a comparison and a limit",
            "write for example --expect 'auc>=0.3'",
        ) from None


def _check(result: dict[str, Any], checks: list[tuple[str, str, float]]) -> None:
    from czsl.errors import ExpectationError, UsageError

    for key, sign, limit in checks:
        value = result.get(key)
        if not isinstance(value, int | float):
            numbers = ", ".join(k for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool))
            raise UsageError(f"--expect: no number {key!r} in the result", "the report has no such key", f"there are: {numbers}")
        if not COMPARISONS[sign](value, limit):
            raise ExpectationError(
                f"{key} is {value:.4f}", f"--expect {key}{sign}{limit:g}", "look at the report above, or change --expect"
            )
