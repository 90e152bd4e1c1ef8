"""A pretended NVIDIA machine for tests: what torch, its driver, nvidia-smi and the environment say."""

from __future__ import annotations

import shutil
import subprocess
import warnings

import torch

from czsl import gpus

GiB = 2**30
TOO_OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
    "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
ERROR = (
    "CUDA initialization: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() "
    "that might have already set an error? Error {}"
)
NO_GPUS = "No CUDA GPUs are available"


def pretend(
    monkeypatch,
    count=1,
    *,
    build="12.8",
    card=True,
    trouble="",
    visible=None,
    name="NVIDIA A100",
    listed=(),
    free=70.0,
    total=80.0,
    capability=(8, 0),
):
    """Pretend to be a machine on which torch finds ``count`` GPUs.

    build : the CUDA of torch's build, None for a build for CPUs
    card : the machine has an NVIDIA card
    trouble : torch's warning if it finds none
    visible : CUDA_VISIBLE_DEVICES
    listed : lines of ``nvidia-smi -L``
    free, total : GiB of each card
    """

    def available():
        if trouble and not count:
            warnings.warn(trouble, stacklevel=1)
        return count > 0

    def init():
        if not count:
            raise RuntimeError(trouble.removeprefix("CUDA initialization: ") or NO_GPUS)

    def which(command, *rest, real=shutil.which):
        return ("/usr/bin/nvidia-smi" if listed else None) if command == "nvidia-smi" else real(command, *rest)

    def run(command, *rest, real=subprocess.run, **options):
        if command[0] != "nvidia-smi":
            return real(command, *rest, **options)
        return subprocess.CompletedProcess(command, 0, "\n".join(listed), "")

    gpus.tell_once.cache_clear()
    for owner, attribute, value in (
        (torch.version, "cuda", build),
        (torch.cuda, "is_available", available),
        (torch.cuda, "device_count", lambda: count),
        (torch.cuda, "init", init),
        (torch.cuda, "get_device_name", lambda device=0: name),
        (torch.cuda, "get_device_capability", lambda device=0: capability),
        (torch.cuda, "mem_get_info", lambda device=0: (int(free * GiB), int(total * GiB))),
        (torch.cuda, "memory_reserved", lambda device=0: 0),
        (gpus, "NVIDIA_CARD", "/dev/null" if card else "/no/such/card"),
        (gpus, "SLICES", "/dev" if " MIG " in name else "/no/such/folder"),
        (gpus, "ACCELERATORS", ("/dev/null",) if card else ()),
        (shutil, "which", which),
        (subprocess, "run", run),
    ):
        monkeypatch.setattr(owner, attribute, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
