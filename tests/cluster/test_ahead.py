"""Batches prepared one ahead: the same batches in the same order, one at most, and trainings that are equal bit for bit."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from cluster.work import ahead, training
from cluster.work.ahead import SideStream, prepared_ahead, side_of
from cluster.work.comm import Group
from cluster.work.memory import GpuMemoryError
from czsl.runs import checkpoint

CPU = torch.device("cpu")


class Thread:
    """The side of a GPU without one: only the thread."""

    def prepared(self, prepare, rows):
        return prepare(rows), None

    def handed_over(self, batch, mark):
        return batch


def test_a_cpu_has_no_side_and_prepares_what_is_asked_for():
    assert side_of(CPU) is None
    made = []
    batches = prepared_ahead(lambda n: made.append(n) or {"n": n}, [1, 2, 3], None)
    assert next(batches) == {"n": 1}
    assert made == [1]
    assert list(prepared_ahead(dict, [], Thread())) == []


def test_the_next_batch_is_made_while_this_one_is_used_and_no_other():
    began = {n: threading.Event() for n in range(4)}

    def prepare(n):
        began[n].set()
        return {"n": n, "thread": threading.current_thread().name}

    batches = prepared_ahead(prepare, list(range(4)), Thread())
    for n in range(4):
        batch = next(batches)
        assert batch["n"] == n
        assert batch["thread"].startswith("czsl-ahead")
        if n < 3:
            assert began[n + 1].wait(5)  # nobody asked for it yet
        assert not any(began[later].is_set() for later in range(n + 2, 4))
    assert next(batches, None) is None


def test_an_error_comes_with_its_own_batch_and_an_end_leaves_no_thread():
    def prepare(n):
        if n == 2:
            raise ValueError("batch 2")
        return {"n": n}

    batches = prepared_ahead(prepare, [1, 2, 3], Thread())
    assert next(batches) == {"n": 1}
    with pytest.raises(ValueError, match="batch 2"):
        next(batches)
    closed = prepared_ahead(prepare, [1, 3, 3], Thread())
    next(closed)
    closed.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("czsl-ahead")]


def test_a_stream_hands_over_without_a_wait_of_the_host(monkeypatch):
    """With a stand-in for CUDA: the step's stream waits for the mark, and the memory is noted as in use there."""
    seen = []
    current = SimpleNamespace(wait_event=lambda mark: seen.append(("waits", mark)))
    made = SimpleNamespace(record_event=lambda: "mark")
    monkeypatch.setattr(ahead.torch.cuda, "Stream", lambda device: made)
    monkeypatch.setattr(ahead.torch.cuda, "stream", lambda stream: nullcontext(seen.append(("on", stream))))
    monkeypatch.setattr(ahead.torch.cuda, "current_stream", lambda device: current)

    class OnCard(torch.Tensor):
        is_cuda = True

        def record_stream(self, stream):
            seen.append(("used on", stream))

    side = SideStream(torch.device("cuda"))
    batch, mark = side.prepared(lambda rows: {"images": torch.zeros(2).as_subclass(OnCard), "ids": ["a", "b"]}, [0, 1])
    assert side.handed_over(batch, mark) is batch
    assert seen == [("on", made), ("waits", "mark"), ("used on", current)]


@pytest.mark.parametrize("pixels", ["kept", "streamed"])
def test_training_with_batches_made_ahead_is_the_same_bit_for_bit(make_run, stopped_after, monkeypatch, pixels):
    """With dropout and augmentation; one of the runs is stopped in the middle of an epoch, while a batch is being made."""
    settings = {"method": "clusPro", "adapter_dim": 8, "epochs": 2, "batch": 24, "pixels": pixels}
    plain, early = make_run(**settings), make_run(**settings)
    assert training.train_worker(plain, Group(), CPU) == "done"
    monkeypatch.setattr(training, "side_of", lambda device, quiet: Thread())
    stopped_after(early, 2)
    assert training.train_worker(early, Group(), CPU) == "done"
    assert [r["loss"] for r in early.metrics("step")] == [r["loss"] for r in plain.metrics("step")]
    ends = [checkpoint.load(checkpoint.find(run.checkpoints, "last")) for run in (plain, early)]
    for part in ("method", "optimizer"):
        one, other = (getattr(end, part) for end in ends)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_memory_that_runs_out_while_a_batch_is_made_is_the_same_error(make_run, monkeypatch):
    trainer = training.prepare(make_run(method="csp"), Group(), CPU)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(training, "side_of", lambda device, quiet: Thread())
    monkeypatch.setattr(training, "own_batch", full)
    with pytest.raises(GpuMemoryError):
        training.train_epoch(trainer)
