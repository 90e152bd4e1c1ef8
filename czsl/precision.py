"""The number format of a run's matrix products: what fits a device, and what a device cannot do well."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from czsl.errors import SetupError

if TYPE_CHECKING:
    import torch

BFLOAT16_FROM = 8  # compute capability of NVIDIA cards whose tensor cores know bfloat16 and TF32 (Ampere, 2020)
CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}  # of x86, and of ARM


def fitting(device: torch.device) -> str:
    """The format that ``precision=auto`` stands for on a device: ``bfloat16`` where the card does it well, else ``float32``."""
    return "bfloat16" if device.type == "cuda" and _capability(device)[0] >= BFLOAT16_FROM else "float32"


def check_precision(precision: str, device: torch.device) -> None:
    """Raise SetupError if a run sets bfloat16 and the GPU does not support it."""
    if precision == "bfloat16" and device.type == "cuda" and (found := _capability(device))[0] < BFLOAT16_FROM:
        import torch

        raise SetupError(
            f"{torch.cuda.get_device_name(device)} has no bfloat16",
            f"its compute capability is {found[0]}.{found[1]}, and bfloat16 needs {BFLOAT16_FROM}.0",
            "set precision=auto or precision=float32",
        )


def emulated(precision: str, device: torch.device) -> str:
    """A warning about a finished run in bfloat16 on a GPU that does not support it; empty otherwise."""
    if precision != "bfloat16" or device.type != "cuda" or _capability(device)[0] >= BFLOAT16_FROM:
        return ""
    import torch

    return (
        f"the run computes in bfloat16, which {torch.cuda.get_device_name(device)} does not have: it is emulated and slow; "
        "to compute on the CPU: set CUDA_VISIBLE_DEVICES= (empty)"
    )


def allow_tf32(device: torch.device, setting: str) -> None:
    """Let float32 products of a GPU run in TF32 in this process if the setting is ``auto``, and in full float32 otherwise.

    On a CPU it changes nothing.
    """
    if device.type == "cuda":
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setting == "auto"


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Return whether this processor has instructions for bfloat16; without them its products take several times as long as in float32."""
    try:
        words = CPU_INFO.read_text(encoding="utf-8", errors="replace").lower().split()
    except OSError:
        return platform.machine() == "arm64" and _apple_has_bfloat16()
    return not CPU_FLAGS.isdisjoint(words)


def slow_on_cpu(precision: str) -> str:
    """A warning about ``precision`` for a command that will compute on this processor; empty if it is fast here."""
    if precision != "bfloat16" or cpu_has_bfloat16():
        return ""
    return (
        "precision=bfloat16 on a processor without bfloat16 instructions: that takes about 8 times as long as float32 (measured with "
        "ViT-B/16); precision=float32 is better here"
    )


def _capability(device: torch.device) -> tuple[int, int]:
    import torch

    if torch.version.hip:  # AMD: CDNA cards know bfloat16, and their numbers mean something else
        return (BFLOAT16_FROM, 0) if torch.cuda.is_bf16_supported() else (0, 0)
    return torch.cuda.get_device_capability(device)


def _apple_has_bfloat16() -> bool:
    try:
        command = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "1"
    except OSError:
        return False
