"""The GPUs that this process can compute on, and why there are fewer than the machine has: one look that all commands share.

Environment variables read here: ``CUDA_VISIBLE_DEVICES`` (for AMD also ``HIP_VISIBLE_DEVICES``), the GPUs that a process may use.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from czsl.errors import SetupError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("czsl")

ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, and both below Windows
NVIDIA_CARD = "/dev/nvidia0"
SLICES = "/dev/nvidia-caps"  # where slices of cards (MIG) are made known
LISTING_S = 20.0
NONE_OF_THEM = ("", "-1", "NoDevFiles", "none")  # values of CUDA_VISIBLE_DEVICES that hide all GPUs
ON_CPU = "to compute on the CPU: set CUDA_VISIBLE_DEVICES= (empty)"
BUILDS = (
    "install a CUDA build: pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128 "
    "(https://pytorch.org lists them)"
)
# What torch says about a driver that does not work, and what to do about it.
DRIVER_TROUBLES = {
    r"driver on your system is too old": "update the NVIDIA driver, or install a torch build for an older CUDA (https://pytorch.org)",
    r"Error 80[34]\b": "restart the machine if its driver was updated; in a container take an image whose CUDA fits the driver",
    r"Error 802\b": "start the service nvidia-fabricmanager, which machines with NVSwitch need",
    r"Error 999\b": "load the driver again (sudo modprobe -r nvidia_uvm; sudo modprobe nvidia_uvm), or restart the machine",
    r"Error (?!100\b)\d+\b": "nvidia-smi shows whether the driver works; restart the machine",
}


@dataclass(frozen=True)
class Gpus:
    """GPUs that torch can use, and what the user should know about them.

    count : GPUs that torch can use
    what, why, fix : what differs from what the machine has or the user asked for; empty if nothing does. Without a ``fix`` it was chosen.
    broken : commands end with this as an error
    """

    count: int
    what: str = ""
    why: str = ""
    fix: str = ""
    broken: bool = False

    def __str__(self) -> str:
        return "; ".join(filter(None, [f"{self.what}: {self.why}" if self.why else self.what, self.fix]))


def own_device() -> torch.device:
    """Return the device of the one worker of this process: the first GPU, or the CPU.

    Raises
    ------
    SetupError
        The GPU does not work, is not the one that was asked for, or has no memory left to start on.
    """
    import torch

    if not gpus():
        return torch.device("cpu")
    device = torch.device("cuda")
    try:
        torch.cuda.mem_get_info(device)  # the first contact
    except RuntimeError as error:
        raise SetupError(
            "the GPU cannot be used", _one_line(error), f"nvidia-smi shows whether other processes hold it; {ON_CPU}"
        ) from None
    return device


def onto(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor on a device; a copy from the host's memory to a GPU goes through pinned memory, and the host does not wait for it."""
    if str(device).startswith("cuda") and not x.is_cuda and not x.is_pinned():
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def gpus() -> int:
    """Return the number of GPUs that torch can use here; on a machine without any this is known without torch.

    What the user should know about them is logged once. SetupError as of :func:`own_device`.
    """
    if (
        not any(Path(p).exists() for p in ACCELERATORS)
        and not shutil.which("nvidia-smi")
        and not _named(os.environ.get("CUDA_VISIBLE_DEVICES"))
    ):
        return 0
    found = find()
    if found.broken:
        raise SetupError(found.what, found.why, found.fix)
    tell_once(str(found))
    return found.count


def find() -> Gpus:
    """Look at torch, the driver and CUDA_VISIBLE_DEVICES."""
    import torch

    name, wish = _wish()
    if not torch.version.cuda and not torch.version.hip:
        return _with_cpu_build(torch.__version__)
    available, trouble = _available()
    count = torch.cuda.device_count() if available else 0
    if wish in NONE_OF_THEM:
        why = f"{name} is {wish or 'empty'}, which hides this machine's GPUs"
        return Gpus(0, "the CPU is used", why) if _card() else Gpus(0)
    for pattern, fix in DRIVER_TROUBLES.items():
        if not count and (at := re.search(pattern, trouble)):
            what = f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use this machine's GPU"
            why = trouble if "Error" not in pattern else trouble[at.start() :]
            return Gpus(0, what, why, f"{fix}; {ON_CPU}", broken=True)
    asked = _named(wish)
    slices = [x for x in asked if x.startswith("MIG-")]
    if len(asked) > count and not (slices and count):
        cards = "; ".join(cards_there()) or "nvidia-smi lists no GPU"
        what, why = (
            f"{name}={wish} names GPUs that are not there",
            f"torch finds {count} of {len(asked)}; this machine has: {cards}",
        )
        return Gpus(count, what, why, f"name GPUs that are listed; {ON_CPU}", broken=True)
    if not count and _card():
        why = trouble or "torch finds no GPU"
        return Gpus(0, "this machine has an NVIDIA GPU that torch cannot use: the CPU is used", why, "czsl doctor, nvidia-smi")
    return _slice(count, slices)


def cards_there() -> list[str]:
    """Return the lines of ``nvidia-smi -L``: all cards of this machine and their MIG slices, whatever the environment hides."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=LISTING_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]


def _with_cpu_build(version: str) -> Gpus:
    name, wish = _wish()
    if wish in NONE_OF_THEM:
        return Gpus(0)
    if _card():
        return Gpus(0, "this machine has an NVIDIA GPU, but the CPU is used", f"torch {version} is a build for CPUs", BUILDS)
    if _named(wish):
        return Gpus(0, f"{name}={wish} names a GPU, but the CPU is used", f"torch {version} is a build for CPUs", BUILDS)
    return Gpus(0)


def _slice(count: int, asked: list[str]) -> Gpus:
    """Say which slice is used if a GPU is divided (MIG): CUDA gives a process one of them, however many it may see."""
    import torch

    may_be = count and (asked or Path(SLICES).is_dir())  # names cost a look at each card
    names = [torch.cuda.get_device_name(i) for i in range(count)] if may_be else []
    if not asked and not any(" MIG " in name for name in names):
        return Gpus(count)
    used = f"{names[0]}, {asked[0]}" if asked else names[0]
    others = max(len(asked), sum("MIG" in line.split(":")[0] or "(UUID: MIG-" in line for line in cards_there())) - 1
    why = f"CUDA gives a process one slice; {others} more {'is' if others == 1 else 'are'} not used" if others > 0 else ""
    return Gpus(count, f"computing on a slice (MIG) of a GPU: {used}", why)


def _available() -> tuple[bool, str]:
    """Whether torch can use a GPU, and in its own words why not."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return True, ""
    words = [str(w.message) for w in said]
    try:
        torch.cuda.init()  # torch warns only once per process; this says it again
    except Exception as error:
        words.append(str(error))
    return False, _one_line(next(iter(words), ""))


def _wish() -> tuple[str, str | None]:
    """The variable that chooses GPUs, and its value; None if it is not set."""
    import torch

    names = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if torch.version.hip else ("CUDA_VISIBLE_DEVICES",)
    name = next((n for n in names if n in os.environ), names[-1])
    value = os.environ.get(name)
    return name, None if value is None else value.strip()


def _named(value: str | None) -> list[str]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names; a negative number ends the list."""
    value = (value or "").strip()
    names = [] if value in NONE_OF_THEM else [x.strip() for x in value.split(",")]
    end = next((i for i, x in enumerate(names) if x.startswith("-")), len(names))
    return names[:end]


def _card() -> bool:
    """Return whether this machine has an NVIDIA card."""
    return Path(NVIDIA_CARD).exists() or bool(cards_there())


def _one_line(words: object) -> str:
    """The first 300 characters of a message in one line, without torch's advice after the version of the driver."""
    text = " ".join(str(words).split()).removeprefix("CUDA initialization: ")
    return re.split(r"(?<=\)\.) Please update| CUDA kernel errors might| For debugging consider", text)[0][:300]


@functools.cache
def tell_once(text: str) -> None:
    """Log a warning once per process; an empty one is none."""
    if text:
        log.warning("%s", text)
