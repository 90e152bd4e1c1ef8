"""Training on streamed pixels equals training on kept ones, bit for bit, whatever the number of workers and interruptions."""

from __future__ import annotations

import pytest
import torch

from cluster.train import train
from cluster.work.comm import Group
from cluster.work.training import train_worker
from czsl.data import batches
from czsl.data.table import open_data
from czsl.errors import UsageError
from czsl.runs import checkpoint

CPU = torch.device("cpu")
SETTINGS = {"method": "clusPro", "adapter_dim": 8, "epochs": 2, "batch": 24}  # dropout and augmentation are on


def results(run) -> tuple[list[float], list[float], checkpoint.Checkpoint]:
    losses = [record["loss"] for record in run.metrics("step")]
    return losses, [record["auc"] for record in run.metrics("epoch")], checkpoint.load(checkpoint.find(run.checkpoints, "last"))


def assert_equal(one, other) -> None:
    assert results(one)[:2] == results(other)[:2]
    a, b = results(one)[2], results(other)[2]
    for part in ("method", "optimizer"):
        assert getattr(a, part).keys() == getattr(b, part).keys()
        for key, value in getattr(a, part).items():
            assert torch.equal(getattr(b, part)[key], value), key


def test_streamed_training_is_that_on_kept_pixels(make_run, tmp_path, monkeypatch):
    kept = make_run(**SETTINGS, pixels="kept")
    assert train_worker(kept, Group(), CPU) == "done"
    streamed = make_run(**SETTINGS, pixels="streamed")
    split = open_data(streamed.config.data).split("train")
    own = tmp_path / "cache"
    monkeypatch.setenv("CZSL_CACHE", str(own))
    assert train_worker(streamed, Group(), CPU) == "done"
    assert_equal(kept, streamed)
    assert not batches.pixel_file(split, 32).exists()  # no pixels were kept
    assert [p.name for p in (own / "pixels").iterdir() if "places" not in p.name] == []


def test_an_interrupted_streamed_run_goes_on_as_a_whole_one_on_kept_pixels(make_run, stopped_after):
    whole, broken = make_run(**SETTINGS, pixels="kept"), make_run(**SETTINGS, pixels="streamed")
    assert train_worker(whole, Group(), CPU) == "done"
    stopped_after(broken, 2)
    assert checkpoint.load(checkpoint.find(broken.checkpoints, "last")).state["place"] > 0
    assert train_worker(broken, Group(), CPU) == "done"
    assert_equal(whole, broken)


@pytest.mark.slow
def test_two_workers_stream_what_two_workers_keep(ray_local, make_run):
    runs = [make_run(**SETTINGS, pixels=pixels) for pixels in ("kept", "streamed")]
    for run in runs:
        assert train(run, workers_per_node=2) == "done"
    assert_equal(*runs)


def test_an_unknown_way_of_pixels_is_an_error(make_run):
    with pytest.raises(UsageError, match="unknown way of pixels 'stremed'"):
        make_run(pixels="stremed")
