"""Progress of a job, reported to the caller, also from another process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from czsl.errors import DataError
from czsl.reading import json_record, read_json
from czsl.runs.files import write_json
from czsl.runs.run import Run, well_formed

POLL_S = 0.5

Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


def quiet(what: str, done: int, total: int) -> None:
    """No-op progress callback."""


Notice = Callable[[str], None]  # called with a warning for the user


def unnoticed(text: str) -> None:
    """No-op notice callback."""


def kept(folder: Path, rank: int) -> Progress:
    """A worker's progress, kept in a file of the folder where the driver finds it; that of the first worker stands for all."""
    last = 0.0

    def keep(what: str, done: int, total: int) -> None:
        nonlocal last
        if rank == 0 and (done >= total or time.monotonic() - last > POLL_S):
            last = time.monotonic()
            write_json(_file(folder), [what, done, total])

    return keep


def hand_on(folder: Path, progress: Progress) -> None:
    """Tell what :func:`kept` wrote last."""
    with contextlib.suppress(DataError, TypeError):  # none yet
        progress(*read_json(_file(folder)))


def _file(folder: Path) -> Path:
    return folder / "progress.json"


def follow(run: Run, position: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """New complete lines of a run's metrics from a place in the file on, each with the position after it."""
    if not run.metrics_file.exists():
        return
    with run.metrics_file.open("rb") as file:
        # Workers that replace dead ones cut the file back to their checkpoint; what is left was followed before.
        position = min(position, file.seek(0, os.SEEK_END))
        file.seek(position)
        while (line := file.readline()).endswith(b"\n"):
            position += len(line)
            record = json_record(line)
            if record is not None and well_formed(record, whole=True):  # the place may lie within a line then
                yield record, position
