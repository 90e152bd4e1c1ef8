"""Training on candidate sets: the true labels stay outside, the weights are part of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import cluster.work.training
from cluster.work.comm import Group
from cluster.work.labels import disambiguation, make_confidences
from cluster.work.trainer import Trainer
from cluster.work.training import train_worker
from czsl.clip.loading import load_clip
from czsl.data.files.ambiguity import make_partial_labels
from czsl.data.files.partial_labels import write_partial_labels
from czsl.data.table import open_data
from czsl.errors import DataError, UsageError
from czsl.runs import checkpoint
from czsl.runs.config import RunConfig
from methods.building import build

SMALL = {
    "clip-pzsl": {"epochs": 3, "label_warmup": 1, "adapter": 4, "lr": 1e-2},
    "csp": {"epochs": 3, "label_warmup": 1},
    "clusPro": {"epochs": 2, "label_warmup": 0, "adapter_dim": 0},
    "troika": {"epochs": 2, "label_warmup": 0, "adapter_dim": 4},
    "msci": {"epochs": 2, "label_warmup": 0, "adapter_dim": 4},
    "coop": {"epochs": 3, "label_warmup": 1},
    "vp-cmjl": {"epochs": 2, "label_warmup": 0, "adapter_dim": 0},
    "caila": {"epochs": 2, "label_warmup": 0},
    "dfsp": {"epochs": 2, "label_warmup": 0},
}


@pytest.fixture
def sidecar(dataset, tmp_path):
    """A function that writes candidate sets of the drawn data."""

    def write(q: float = 0.1, seed: int = 0):
        data = open_data(dataset)
        path = tmp_path / f"candidates-{q}-{seed}.parquet"
        write_partial_labels(path, make_partial_labels(data, "uniform", q, seed), data.split("train").ids)
        return path

    return write


@pytest.fixture
def work(make_run, sidecar):
    """A function that trains a run on candidate sets within this process."""

    def go(method: str, run=None, **settings):
        if run is None:
            run = make_run(**{"method": method, "partial_labels": str(sidecar()), **SMALL[method], **settings})
        return run, train_worker(run, Group(), torch.device("cpu"))

    return go


def last(run) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.find(run.checkpoints, "last"))


def assert_same(one, two) -> None:
    assert [s["loss"] for s in one.metrics("step")] == [s["loss"] for s in two.metrics("step")]
    for part in ("method", "optimizer", "labels"):
        here, there = getattr(last(one), part), getattr(last(two), part)
        assert here.keys() == there.keys()
        assert here
        assert all(torch.equal(value, there[key]) for key, value in here.items()), part


@pytest.mark.parametrize("method", SMALL)
def test_training_never_sees_the_true_labels(work, monkeypatch, method):
    """Bit for bit the same run where the labels of the training split do not exist."""
    honest, _ = work(method)

    def without_labels(where, decode=None):
        data = open_data(where)
        split = data.split("train")
        split.attr = split.obj = None  # any use raises
        return data

    monkeypatch.setattr(cluster.work.training, "open_data", without_labels)
    monkeypatch.setattr(cluster.work.training, "disambiguation", lambda weights, data: {})  # a report, and the only reader
    blind, _ = work(method)
    assert_same(honest, blind)
    assert all("disambiguation" in e for e in honest.metrics("epoch"))
    weights = last(honest).labels["weight"]
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    assert len(weights.unique()) > len(weights)  # they moved from where they started


@pytest.mark.parametrize("method", ["clip-pzsl", "csp"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(work, monkeypatch, method):
    whole, _ = work(method, epochs=4)
    total, log = len(list(whole.metrics("step"))), Trainer.log

    def stop_soon(self, **record):
        log(self, **record)
        if record["event"] == "step" and self.step == total // 2 + 1:
            self.run.stop_file.touch()

    monkeypatch.setattr(Trainer, "log", stop_soon)
    broken, status = work(method, epochs=4)
    assert status == "stopped"
    broken.stop_file.unlink()
    monkeypatch.setattr(Trainer, "log", log)
    assert work(method, run=broken)[1] == "done"
    assert_same(whole, broken)


def test_a_run_keeps_to_the_file_it_began_with(work, sidecar):
    run, _ = work("csp", epochs=1)
    assert len(run.environment()["partial_labels_sha256"]) == 64
    assert last(run).state["partial_labels_sha256"] == run.environment()["partial_labels_sha256"]
    Path(run.config.partial_labels).write_bytes(sidecar(seed=1).read_bytes())
    with pytest.raises(DataError, match="another file than at the start") as caught:
        work("csp", run=run)
    assert caught.value.exit_code == 3
    assert caught.value.fix


def test_warm_up_and_momentum_0_leave_the_first_weights(work, dataset):
    frozen, _ = work("clip-pzsl", label_warmup=3)
    fixed, _ = work("clip-pzsl", label_momentum=0.0)
    moved, _ = work("clip-pzsl")
    first = last(frozen).labels["weight"]
    assert torch.equal(first, last(fixed).labels["weight"])
    assert not torch.equal(first, last(moved).labels["weight"])
    assert not torch.equal(first, (first > 0) / (first > 0).sum(1, keepdim=True))  # they are CLIP's


def test_the_closed_form_needs_no_step(work):
    run, status = work("clip-pzsl", epochs=0, em_rounds=3)
    assert status == "done"
    assert not list(run.metrics("step"))
    assert last(run).method["average"].norm(dim=1).allclose(torch.ones(1))
    assert checkpoint.best(run.checkpoints)["step"] == 0


def test_the_diagnostic_counts_likeliest_true_labels(dataset, work):
    run, _ = work("csp", epochs=1)
    data = open_data(dataset)
    labels = make_partial_labels(data, "uniform", 0.1, 0)
    method = build("csp", data.space, load_clip(run.config.clip), {})
    weights = make_confidences(labels, RunConfig(label_momentum=1.0), method, torch.device("cpu"))
    true = data.space.locate(data.split("train").pairs, data.space.train_pairs)
    right = [row[0] == t for row, t in zip(labels.index, true, strict=True)]  # uniform weights: the first candidate
    assert disambiguation(weights, data)["disambiguation"] == pytest.approx(np.mean(right))
    logits = torch.full((len(true), len(data.space.train_pairs)), -100.0)
    logits[torch.arange(len(true)), torch.from_numpy(true)] = 0
    weights.update(torch.arange(len(true)), logits)
    assert disambiguation(weights, data) == {"disambiguation": 1.0, "label_calibration": pytest.approx(0, abs=1e-6)}


def test_settings_that_contradict_are_refused():
    with pytest.raises(UsageError, match="train_per_pair cannot be had with partial labels"):
        RunConfig(partial_labels="x.parquet", train_per_pair=2)
    for odd in ({"label_init": "random"}, {"label_momentum": 1.5}, {"label_rescue": -0.1}, {"label_temperature": 0.0}):
        with pytest.raises(UsageError, match=next(iter(odd))):
            RunConfig(**odd)
