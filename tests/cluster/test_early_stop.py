"""When training ends by itself and which epoch counts: by the chosen number, and the same after an interruption."""

from __future__ import annotations

import pytest
import torch

from cluster.train import train
from czsl.errors import UsageError
from czsl.runs import checkpoint
from czsl.runs.config import RunConfig


def epochs(run):
    return [{k: v for k, v in e.items() if k != "time"} for e in run.metrics("epoch")]


def last(run):
    return checkpoint.load(checkpoint.find(run.checkpoints, "last"))


@pytest.mark.slow
def test_training_ends_after_so_many_epochs_without_a_better_one_also_when_interrupted(make_run):
    # A learning rate of 0 changes nothing, so that no epoch is better than the first.
    settings = {"method": "csp", "lr": 0.0, "epochs": 9, "stop_after": 2}
    whole, halved = make_run(**settings), make_run(**settings)
    assert train(whole, engine="local") == "done"
    assert [e["epoch"] for e in epochs(whole)] == [1, 2, 3]

    def stop(record):
        if record.get("event") == "epoch" and record["epoch"] == 2:
            halved.stop_file.touch()

    assert train(halved, engine="local", on_record=stop) in ("stopped", "done")
    assert train(halved, engine="local") == "done"
    assert epochs(halved) == epochs(whole)
    one, other = last(whole), last(halved)
    assert one.state["waited"] == other.state["waited"] == 2
    assert all(torch.equal(one.method[name], other.method[name]) for name in one.method)


@pytest.mark.parametrize("selection", ["hm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("accuracy", "auc"))])
def test_the_best_epoch_is_the_first_with_the_largest_number(make_run, selection):
    run = make_run(method="csp", lr=0.05, epochs=4, selection=selection)
    assert train(run, engine="local") == "done"
    found = {e["epoch"]: e[selection] for e in epochs(run)}
    assert checkpoint.best(run.checkpoints)["epoch"] == max(found, key=lambda epoch: (found[epoch], -epoch))
    assert checkpoint.best(run.checkpoints)["figure"] == max(found.values())


def test_the_last_epoch_never_stops_by_itself():
    with pytest.raises(UsageError, match="would never stop"):
        RunConfig(stop_after=2, selection="last")
