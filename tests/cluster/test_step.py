"""One training step: what it asks of the host, and what happens if it does not fit into the GPU's memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.work.comm import Group
from cluster.work.memory import GpuMemoryError, out_of_memory
from cluster.work.saving import save
from cluster.work.training import prepare, train_step
from czsl.runs import checkpoint

CPU = torch.device("cpu")


class Scalars(TorchDispatchMode):
    """Counts values that are read one by one, each of which waits for the device."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["csp", "clusPro"])
def test_losses_are_read_together(make_run, method):
    trainer = prepare(make_run(method=method), Group(), CPU)
    trainer.method.begin_epoch(0)
    rows = np.arange(24)
    with Scalars() as scalars:
        values, stop = train_step(trainer, rows)
    assert not stop
    parts = [v for k, v in values.items() if k != "loss"]
    assert values["loss"] == pytest.approx(sum(parts), rel=1e-6)
    if method == "csp":
        assert scalars.number == 0


def test_a_step_that_does_not_fit_says_what_would_and_keeps_the_checkpoint(make_run, monkeypatch):
    trainer = prepare(make_run(method="csp"), Group(), CPU)
    trainer.method.begin_epoch(0)
    train_step(trainer, np.arange(24))
    kept = save(trainer)

    def full(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trainer.method, "training_step", full)
    with pytest.raises(GpuMemoryError) as error:
        train_step(trainer, np.arange(24))
    assert error.value.exit_code == 4
    assert "step 1" in error.value.what
    assert "24 images per worker in float32" in error.value.why
    for way in ("checkpoint_blocks=true", "precision=bfloat16", "batch=12", "more workers"):
        assert way in error.value.fix
    assert checkpoint.newest_valid(trainer.run.checkpoints) == kept
    assert trainer.step == 1


def test_ways_that_are_taken_already_are_not_named(make_run):
    config = make_run(batch=1, checkpoint_blocks=True).config
    fix = out_of_memory(RuntimeError("x"), config, "bfloat16", 3).fix
    assert "checkpoint_blocks" not in fix
    assert "bfloat16" not in fix
    assert "batch=" not in fix
