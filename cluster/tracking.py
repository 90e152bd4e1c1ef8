"""Trackers of a run in a thread of the command: they read the metrics file, so that no worker waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.work.progress import follow
from czsl.runs.run import Run
from czsl.runs.tracker_names import tracker_names
from czsl.runs.trackers import Trackers, check_installed, settings_of

POLL_S = 0.5
MAX_END_S = 120.0  # for what is left when training has ended


@contextmanager
def tracked(run: Run, on_warning: Callable[[str], None]) -> Iterator[None]:
    """Write a run's metrics to the trackers of its setting ``log``, from the first line on, until the block ends.

    ``on_warning`` is called from the thread of the trackers.
    """
    names = tracker_names(run.config.log)
    if not names:
        yield
        return
    check_installed(names)
    ended = threading.Event()
    thread = threading.Thread(target=_track, args=(run, names, ended, on_warning), daemon=True, name="trackers")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(MAX_END_S)
        if thread.is_alive():
            on_warning(f"log={run.config.log} is still writing after {MAX_END_S:.0f} s and is left: see czsl runs log")


def _track(run: Run, names: list[str], ended: threading.Event, on_warning: Callable[[str], None]) -> None:
    trackers, position, last = Trackers(names, run.path, settings_of(run), on_warning), 0, False
    while True:
        for record, behind in follow(run, position):
            trackers.write(record)
            position = behind
        if last:
            break
        last = ended.wait(POLL_S)  # once more after the end, for the last lines
    trackers.close()


def export(run: Run, names: list[str], on_warning: Callable[[str], None]) -> int:
    """Write all metrics of a run to trackers; returns the number of lines with numbers.

    Raises
    ------
    SetupError
        The package of one is not installed.
    """
    check_installed(names)
    trackers = Trackers(names, run.path, settings_of(run), on_warning)
    lines = sum(trackers.write(record) for record, _ in follow(run))
    trackers.close()
    return lines
