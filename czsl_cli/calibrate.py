"""``czsl calibrate``: the operating point of a run, which its answers use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import percent, print_json, print_table, print_text, progress_bar, say, warn
from czsl_cli.options import named_run

if TYPE_CHECKING:
    from czsl.evaluation import OperatingPoint
    from czsl.runs.run import Run


@click.command()
@named_run()
@click.option(
    "--for",
    "aim",
    default="hm",
    show_default=True,
    help="Aim of the bias: hm (best harmonic mean), accuracy (under the images' mix of seen and unseen), unseen-share=0.3 (accuracy if "
    "this share of images shows unseen labels), seen>=0.5 (best unseen accuracy at this seen accuracy).",
)
@click.option("--data", help="Dataset folder of labelled images of your own.  [default: the run's validation images]")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Images of --data to use.  [default: val]")
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@click.option("--open-world", is_flag=True, help="Choose the bias among all attribute-object pairs.")
@click.option("--json", "as_json", is_flag=True, help="Print the operating point as JSON.")
def calibrate(run, aim, data, split, checkpoint, open_world, as_json) -> None:
    """Choose the operating point of RUN (the newest one by default) on labelled images, and keep it in the run folder.

    \b
      czsl calibrate RUN
      czsl calibrate RUN --for 'seen>=0.5'
      czsl calibrate RUN --data mylabelled --split test --for unseen-share=0.3

    Models prefer the labels of their training. The operating point is the bias that is added to the scores of all other labels, and the
    temperature that turns scores into probabilities. Training chooses one, and predict, search, explain and the index use it. The scores of
    the images are kept: another aim takes no new pass.
    """
    from cluster.calibrate import calibrate_run
    from cluster.work.calibration import Calibration, kept_answers
    from czsl.errors import UsageError
    from czsl.evaluation.operating import Aim
    from czsl_cli.runs import chosen_run, usable_checkpoint

    Aim.parse(aim)
    if split and not data:
        raise UsageError(
            "--split goes with --data", "a run's own point is chosen on its validation images", "drop it, or name --data"
        )
    found = chosen_run(run)
    usable_checkpoint(found, checkpoint)
    asked = Calibration(checkpoint, open_world, aim, data, split or "val")
    with progress_bar() as bar:
        point = calibrate_run(found, asked, bar.update)
    numbers = _numbers(found, point, kept_answers(found, asked))
    if as_json:
        print_json({**point.to_json(), "on_these_images": numbers})
    else:
        _print(found, point, numbers)
    for note in point.notes:
        warn(note)


def _numbers(run: Run, point: OperatingPoint, kept: Any) -> dict[str, Any]:
    """Print what the point reaches on the images it was chosen on."""
    import numpy as np

    from czsl.evaluation import point_numbers
    from czsl.evaluation.calibration import log_likelihood
    from czsl.evaluation.operating import OperatingPoint, is_classes
    from czsl.evaluation.report import plain

    found = point_numbers(kept.extremes, point, is_classes(run.space))
    if kept.sums is not None:
        known = np.isfinite(kept.sums.true_weight)
        for suffix, at in (("_before", OperatingPoint()), ("", point)):
            found[f"nll{suffix}"] = -float(log_likelihood(kept.sums, kept.extremes.true_seen, at.composition)[known].mean())
    return {key: plain(value) if isinstance(value, float) else value for key, value in found.items()}


def _print(run: Run, point: OperatingPoint, numbers: dict[str, Any]) -> None:
    images = f"{point.facts['images']:,} images ({point.facts['seen_images']:,} of seen labels)"
    rows = [
        ["without", "0", *(percent(numbers[f"none_{key}"]) for key in ("seen", "unseen", "hm", "acc"))],
        ["operating point", f"{point.bias:.4g}", *(percent(numbers[f"op_{key}"]) for key in ("seen", "unseen", "hm", "acc"))],
    ]
    title = f"{run.path.name}, for {point.aim}, on {images}; percent"
    print_table(["", "bias", "seen", "unseen", "HM", "all"], rows, title)
    scale = point.composition
    text = f"probabilities: temperature {scale.temperature:.3g}, bias {scale.bias:.3g}"
    if "nll" in numbers:
        text += f"; negative log-likelihood {numbers['nll_before']:.3f} before, {numbers['nll']:.3f} after"
    print_text(text)
    say(f"kept in {run.path.name}; predict, search, explain and the index use it")
