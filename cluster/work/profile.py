"""Profile of a prediction: seconds by phase, of the worker's own thread and of the threads that read ahead."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Phases of the worker's own thread, which add up to the wall time, and of the other threads.
OWN = {
    "start": "starting Python, importing",
    "model": "loading CLIP and the run",
    "candidates": "encoding the candidates' texts",
    "waiting": "waiting for images",
    "encoding": "encoding images",
    "ranking": "scoring and ranking",
    "rest": "writing and the rest",
}
THREADS = {"reading": "reading files", "decoding": "decoding and resizing"}
COUNTS = {
    "answers": "images answered as by an earlier command",
    "kept": "images found among the kept features",
    "encoded": "images encoded",
    "bad": "images that cannot be read",
}


class Profile:
    """Seconds and counts by name; several threads may add at once.

    Parameters
    ----------
    began : float, optional
        When the process began, in the seconds of :func:`time.time`; by default now.
    """

    def __init__(self, began: float | None = None):
        self._lock = threading.Lock()
        now = time.time()
        self._began = now if began is None else min(began, now)
        self.seconds = dict.fromkeys([*OWN, *THREADS], 0.0)
        self.counts = dict.fromkeys(COUNTS, 0)

    def started(self) -> None:
        """Note that the program is imported: what has passed until now is the start, but for other phases."""
        self.seconds["start"] += time.time() - self._began - sum(self.seconds[name] for name in OWN)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            with self._lock:
                self.seconds[name] += spent

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        with self._lock:
            self.counts[name] += number

    def facts(self) -> dict[str, Any]:
        """Seconds by phase with their sum ``wall``, seconds of the reading threads, and counts, as plain data."""
        wall = time.time() - self._began
        own = {name: self.seconds[name] for name in OWN}
        own["rest"] = max(0.0, wall - sum(own.values()))
        rounded = {name: round(value, 3) for name, value in own.items()}
        threads = {name: round(self.seconds[name], 3) for name in THREADS}
        return {"wall": round(wall, 3), "own": rounded, "threads": threads, "counts": dict(self.counts)}


def process_began() -> float | None:
    """Start of this process, in the seconds of :func:`time.time`; None if the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = float(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        return time.time() - (up - ticks / os.sysconf("SC_CLK_TCK"))
    return None
