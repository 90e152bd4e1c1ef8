"""Learning-rate schedules: functions of (step, total number of steps) only, so that a resumed run continues exactly."""

from __future__ import annotations

import math

from czsl.errors import UsageError

SCHEDULES = ("step", "cosine", "constant")


def factor(schedule: str, step: int, total: int, rising: float) -> float:
    """Return the share of the full learning rate that a step has; the falls of ``step`` are the caller's.

    Parameters
    ----------
    schedule : str
        One of ``SCHEDULES``.
    step : int
        Counted from 0.
    total : int
        Steps of the whole training.
    rising : float
        Steps of the warm-up: step s has the share (s + 1) / rising, until that is 1. After it ``cosine`` falls as half a cosine from 1
        to 0, which it would reach one step after the last (Loshchilov, Hutter: SGDR, ICLR 2017, without restarts).
    """
    warm = min(1.0, (step + 1) / rising) if rising > 0 else 1.0
    if schedule != "cosine" or warm < 1.0:
        return warm
    first = max(math.ceil(rising) - 1, 0)  # the first step with the full learning rate
    done = min((step - first) / max(total - first, 1), 1.0)
    return 0.5 * (1 + math.cos(math.pi * done))


def check_schedule(schedule: str, warmup: float, epochs: int) -> None:
    """Check a schedule's name and the length of its warm-up.

    Raises
    ------
    UsageError
        No such schedule exists, or the warm-up is longer than the training.
    """
    if schedule not in SCHEDULES:
        raise UsageError(
            f"unknown schedule {schedule!r}", "the schedules are those listed below", f"choose one of {', '.join(SCHEDULES)}"
        )
    if epochs and warmup > epochs:
        raise UsageError(
            f"warmup is {warmup:g}",
            f"the run has {epochs} epochs, so the learning rate would never reach its full value",
            f"set warmup={epochs} or less, or more epochs",
        )


def depends_on_epochs(schedule: str) -> bool:
    """Return whether a step's learning rate depends on the total number of epochs."""
    return schedule == "cosine"
