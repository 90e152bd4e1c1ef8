"""The operating point of a run, chosen in this process: at once from what is kept, else by scoring labelled images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.work.calibration import Calibration, choose_point, find_point
from cluster.work.comm import Group
from cluster.work.progress import Progress, quiet
from cluster.work.threads import cpu_threads
from czsl.errors import SetupError
from czsl.evaluation.operating import OperatingPoint
from czsl.gpus import own_device
from czsl.runs.run import Run
from methods.adaptation.plan import Plan
from methods.loading import load
from methods.method import Method
from methods.points import point_for, stored_point, usable_point


def calibrate_run(run: Run, asked: Calibration, progress: Progress = quiet) -> OperatingPoint:
    """Choose the point and keep it in the run folder; SetupError if nothing can be written there.

    Arguments and other errors are those of :func:`cluster.work.calibration.choose_point`.
    """
    if not run.writable:
        raise SetupError(
            f"the operating point of {run.path.name} cannot be kept",
            f"{run.path} cannot be written to",
            "copy the run folder, or change its permissions",
        )
    with cpu_threads(run.threads):
        return choose_point(run, asked, _method(run, asked.checkpoint), Group(), progress)


def ensure_point(
    run: Run,
    checkpoint: str,
    open_world: bool,
    bias: str | float,
    progress: Progress = quiet,
    say: Callable[[str], Any] = lambda text: None,
    adapt: Plan | None = None,
) -> OperatingPoint:
    """The point that answers of a run use, which is chosen now if the run keeps none that holds.

    ``say`` is called with a sentence before images are scored. In the open world the point of the closed one is enough.
    With an adaptation it is the point of the adapted scores of the validation images.
    """
    layer = adapt.key if adapt else ""
    usable = usable_point(run, checkpoint, open_world, bias, layer)
    if usable is not None:
        return usable
    why = stored_point(run, checkpoint, open_world, layer)[1]
    if not run.writable:
        return OperatingPoint(
            notes=(f"the bias on unseen labels is 0: {why or 'no point is kept'}, and {run.path} cannot be written to",)
        )
    say(
        f"choosing the operating point on the validation images first: {why or 'none was chosen yet'} (--bias none answers without it)"
    )
    world = open_world and bool(why)
    with cpu_threads(run.threads):
        found = find_point(run, Calibration(checkpoint, world, adapt=adapt), _method(run, checkpoint), Group(), progress)
    point = point_for(run, checkpoint, open_world, bias, layer)
    return point if point.notes else OperatingPoint(**{**vars(point), "notes": found.notes})


def _method(run: Run, checkpoint: str) -> Callable[[], Method]:
    device = own_device()
    return lambda: load(run, checkpoint).to(device)
