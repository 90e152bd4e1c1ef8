"""CPU cores of this machine for one worker. Its GPUs are in :mod:`czsl.gpus`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cpus() -> int:
    """CPU cores that this process may use, counted as Ray counts those of a node: the machine's, or the share of its container."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = CPU_QUOTA.read_text().split()
        number = min(number, max(1, int(quota) // int(period)))
    return number
