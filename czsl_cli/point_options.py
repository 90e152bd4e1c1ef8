"""Options of commands whose answers use an operating point, and what they ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import progress_bar, say, warn

if TYPE_CHECKING:
    from czsl.evaluation import OperatingPoint
    from czsl.runs.run import Run
    from methods.adaptation.plan import Plan


class BiasType(click.ParamType):
    """``val``, ``none`` or a finite number."""

    name = "val|none|NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        """Read it; a usage error for anything else."""
        if value in ("val", "none") or isinstance(value, float):
            return value
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a bias: give val, none or a number", param, ctx)
        return number


def bias_option(command: Callable) -> Callable:
    """Add ``--bias``."""
    text = "Bias on labels that training never saw: the run's operating point, none, or a number."
    return click.option("--bias", type=BiasType(), default="val", show_default=True, metavar="val|none|NUMBER", help=text)(
        command
    )


def doubt_options(command: Callable) -> Callable:
    """Add ``--min-prob``, ``--precision`` and ``--reject``."""
    texts = {
        "--min-prob": "Leave out the name of an image whose best label is less probable than this.",
        "--precision": "Choose --min-prob on the validation images so that this share of the names is right.",
        "--reject": "Leave out the names of images that show no candidate at all, at the cost of this share of those that show one.",
    }
    for name, text in reversed(texts.items()):
        command = click.option(name, type=float, metavar="SHARE", help=text)(command)
    return command


def answer_settings(run: Run | None, options: dict[str, Any], named: bool = False, adapt: Plan | None = None) -> dict[str, Any]:
    """Return the fields ``bias``, ``min_prob`` and ``reject`` of a request, and print what was chosen.

    Parameters
    ----------
    run : Run, optional
        None without a run, which would have an operating point.
    options : dict
        ``bias``, ``checkpoint``, ``open_world`` and those of :func:`doubt_options`.
    named : bool
        The user named the candidates.
    adapt : Plan, optional
        An adaptation of the scores, which has an operating point of its own.
    """
    check_doubts(options)
    if run is None:
        return {"bias": options["bias"], "min_prob": options["min_prob"]}
    point = ready_point(run, options["checkpoint"], options["bias"], options["open_world"], adapt)
    settings: dict[str, Any] = {"bias": options["bias"], "min_prob": options["min_prob"]}
    chosen = [f"--{key}" for key in ("precision", "reject") if options[key] is not None]
    if not chosen:
        return settings
    from cluster.work.calibration import Calibration, confidence_threshold, rejection_threshold
    from czsl.errors import UsageError

    if options["open_world"]:
        raise UsageError(
            f"{chosen[0]} is not for the open world", "it is chosen on validation images in the closed world", "use --min-prob"
        )
    if options["bias"] == "none":
        raise UsageError(f"{chosen[0]} with --bias none", "it needs the run's operating point", "drop one of them")
    asked = Calibration(options["checkpoint"], adapt=adapt)
    if options["precision"] is not None:
        threshold, precision, coverage = confidence_threshold(run, asked, point, options["precision"])
        settings["min_prob"] = threshold
        say(
            f"names with a probability of {threshold:.3f} or more: on the validation images {100 * precision:.1f} % of them are right, "
            f"and {100 * coverage:.1f} % of the images get one"
        )
    if options["reject"] is not None:
        settings["reject"] = rejection_threshold(run, asked, point, options["reject"])
        say(f"images whose {_detector(settings['reject'][0])} is below {settings['reject'][1]:.4g} show none of the candidates")
    if named:
        warn(f"{' and '.join(chosen)}: chosen among the run's own labels; with other candidates the shares may differ")
    return settings


def ready_point(
    run: Run, checkpoint: str, bias: str | float, open_world: bool = False, adapt: Plan | None = None
) -> OperatingPoint:
    """The operating point of a run's answers, chosen first if missing; its notes are shown."""
    from methods.points import usable_point

    point = usable_point(run, checkpoint, open_world, bias, adapt.key if adapt else "")
    if point is None:
        from cluster.calibrate import ensure_point

        with progress_bar() as bar:
            point = ensure_point(run, checkpoint, open_world, bias, bar.update, say, adapt)
    for note in point.notes:
        say(note)
    return point


def check_doubts(options: dict[str, Any]) -> None:
    """UsageError for shares outside [0, 1] and options that exclude each other."""
    from czsl.errors import UsageError

    for key in ("min_prob", "precision", "reject"):
        value, name = options[key], f"--{key.replace('_', '-')}"
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{name} {value:g}", "it is a share", "give a number from 0 to 1")
    if options["min_prob"] is not None and options["precision"] is not None:
        raise UsageError("--min-prob and --precision were given", "--precision chooses --min-prob", "keep one of them")
    if options.get("zero_shot"):
        for key in ("precision", "reject"):
            if options[key] is not None:
                raise UsageError(
                    f"--{key} with --zero-shot",
                    "it is chosen on a run's validation images",
                    "make a run: czsl train --method zero-shot",
                )


def _detector(name: str) -> str:
    return {"probability": "largest probability", "score": "largest score", "energy": "energy"}[name]
