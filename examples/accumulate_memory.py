"""Memory and time of a training step in parts (`accumulate`), on the built-in data and CLIP.

Counts the bytes of all tensors that a step makes and that live at the same time, forward and backward, on a CPU. Weights, images and the
optimizer's moments, which `accumulate` does not change, are not counted.

    python examples/accumulate_memory.py --batch 64 --parts 1 2 4 8
"""

from __future__ import annotations

import argparse
import tempfile
import time
import weakref
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cluster.work.comm import Group
from cluster.work.training import prepare, train_step
from czsl.data.table import open_data
from czsl.runs.run import Run
from czsl_cli.config import resolve

METHODS = {"csp": {}, "clusPro": {"adapter_dim": 64}, "troika": {"adapter_dim": 64}, "caila": {}, "dfsp": {}}


class Living(TorchDispatchMode):
    """The largest number of bytes of tensors made here that lived at the same time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and (key := x.untyped_storage()._cdata) not in self._known and key not in before:
                storage, size = x.untyped_storage(), x.untyped_storage().nbytes()
                self._known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._gone(key, size))
                self.now += size
                self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


def measured(method: str, settings: dict[str, Any], parts: int, batch: int, folder: str) -> tuple[float, float, float]:
    """Return MiB, seconds and the loss of a step."""
    options = {"method": method, "batch": batch, "accumulate": parts, "threads": 1, "val_per_pair": 1, **settings}
    config = resolve(options)
    trainer = prepare(Run.create(config, open_data(config.data).space, folder, f"{method}-{parts}"), Group(), torch.device("cpu"))
    trainer.method.begin_epoch(0)
    if trainer.method.needs_initialisation:
        from cluster.work.training import initialise

        initialise(trainer)
        trainer.method.train()
    rows = trainer.rows[:: max(len(trainer.rows) // batch, 1)][:batch]
    loss = train_step(trainer, rows)[0]["loss"]  # the first one decodes images and makes the optimizer's moments
    with Living() as living:
        train_step(trainer, rows)
    began = time.perf_counter()
    train_step(trainer, rows)
    return living.peak / 2**20, time.perf_counter() - began, loss


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    args = parser.parse_args()
    print("| method | " + " | ".join(f"{n} part{'s' * (n > 1)}" for n in args.parts) + " | time against the first |")
    print("| --- |" + " --- |" * (len(args.parts) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            found = np.array([measured(method, METHODS.get(method, {}), n, args.batch, folder) for n in args.parts])
            times = ", ".join(f"{t / found[0, 1]:.2f}" for t in found[1:, 1])
            print(f"| {method} | " + " | ".join(f"{mib:,.0f} MiB" for mib in found[:, 0]) + f" | {times} |", flush=True)


if __name__ == "__main__":
    main()
