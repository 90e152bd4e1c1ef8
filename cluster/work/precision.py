"""The number format of a run's products, agreed by all workers."""

from __future__ import annotations

import torch

from cluster.work.comm import Group
from czsl.precision import allow_tf32, check_precision, fitting
from czsl.runs.run import Run


def agreed_precision(run: Run, comm: Group, device: torch.device) -> str:
    """The format of the run's products on every worker: its own, or with ``auto`` bfloat16 if the cards of all do it well."""
    check_precision(run.config.precision, device)
    allow_tf32(device, run.config.precision)
    fit = comm.gather_objects(fitting(device))
    return run.precision or ("bfloat16" if set(fit) == {"bfloat16"} else "float32")
