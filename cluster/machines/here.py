"""Resources of this machine for one worker; found without torch on a machine without accelerator."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, and both below Windows
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def own_device() -> torch.device:
    """The device of the one worker of this machine."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpus() -> int:
    """GPUs that torch can use here; where the machine has none this is known without torch."""
    if not any(Path(p).exists() for p in ACCELERATORS):
        return 0
    import torch

    return torch.cuda.device_count()


def cpus() -> int:
    """CPU cores that this process may use, counted as Ray counts those of a node: the machine's, or the share of its container."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = CPU_QUOTA.read_text().split()
        number = min(number, max(1, int(quota) // int(period)))
    return number
