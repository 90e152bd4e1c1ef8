"""Going on with runs: to more epochs, and exactly through accumulation, warm-up and cosine."""

from __future__ import annotations

import pytest
import torch
import yaml
from click.testing import CliRunner

from cluster.work.comm import Group
from cluster.work.trainer import Trainer
from cluster.work.training import train_worker
from czsl.errors import UsageError
from czsl.runs import checkpoint
from czsl.runs.going_on import changes, go_on
from czsl.runs.run import Run
from czsl_cli.train import train as command

ALL_OF_IT = {"accumulate": 3, "warmup": 1.5, "schedule": "cosine", "batch": 12}


def train(run: Run) -> str:
    return train_worker(Run(run.path), Group(), torch.device("cpu"))


def assert_equal(run: Run, other: Run) -> None:
    """Weights, moments, losses and validation numbers to the last bit."""
    one, two = (checkpoint.load(checkpoint.find(r.checkpoints, "last")) for r in (run, other))
    for part in ("method", "optimizer"):
        assert getattr(one, part).keys() == getattr(two, part).keys()
        for key, value in getattr(one, part).items():
            assert torch.equal(value, getattr(two, part)[key]), key
    for event, left_out in (("step", ("time", "images_per_s")), ("epoch", ("time",))):
        records = [[{k: v for k, v in e.items() if k not in left_out} for e in r.metrics(event)] for r in (run, other)]
        assert records[0] == records[1]
    assert checkpoint.best(run.checkpoints) == checkpoint.best(other.checkpoints)


@pytest.mark.parametrize(
    "settings",
    [{}, {"schedule": "constant", "warmup": 1.5, "accumulate": 4}, {"lr_step": 1, "stop_after": 3}],
    ids=["as it is", "warm-up", "early stopping"],
)
def test_two_epochs_and_two_more_are_four(make_run, settings):
    settings = {"method": "csp", "lr": 0.01, **settings}
    whole, halved = make_run(**settings, epochs=4), make_run(**settings, epochs=2)
    assert train(whole) == train(halved) == "done"
    halved, notes = go_on(halved, {"epochs": 4})
    assert notes == []
    assert train(halved) == "done"
    assert_equal(whole, halved)
    assert [e["status"] for e in halved.metrics("end")] == ["done"]
    assert halved.config == whole.config
    content = yaml.safe_load((halved.path / "config.yaml").read_text())
    assert [(h["epoch"], h["changed"]) for h in content["history"]] == [(2, {"epochs": [2, 4]})]


@pytest.mark.parametrize("method", ["csp", "clusPro"])
def test_a_run_stopped_within_an_epoch_goes_on_exactly_with_all_of_it(make_run, method, monkeypatch):
    """Dropout and, for ClusPro with adapters, augmentation are on."""
    settings = {"method": method, "epochs": 3, **ALL_OF_IT} | ({"adapter_dim": 8} if method == "clusPro" else {})
    whole, broken = make_run(**settings), make_run(**settings)
    assert train(whole) == "done"

    log = Trainer.log

    def stop_soon(trainer, **record):
        log(trainer, **record)
        if trainer.step == 3:
            broken.stop_file.touch()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "log", stop_soon)
        assert train(broken) == "stopped"
    broken.stop_file.unlink()
    assert [e["epoch"] for e in broken.metrics("epoch")] == []
    assert train(broken) == "done"
    assert_equal(whole, broken)
    rates = [s["lr"] for s in whole.metrics("step")]
    assert rates[0] < max(rates) > rates[-1]
    assert max(rates) == pytest.approx(whole.config.lr)


def test_an_early_stopped_run_waits_again_after_going_on(make_run):
    run = make_run(method="csp", lr=0.0, epochs=5, stop_after=1)  # no epoch is better than the first
    assert train(run) == "done"
    assert len(list(run.metrics("epoch"))) == 2
    run, notes = go_on(run, {"epochs": 8})
    assert "counts from 0 again" in notes[0]
    assert train(run) == "done"
    assert len(list(run.metrics("epoch"))) == 3
    run, _ = go_on(run, {"stop_after": 0})
    assert train(run) == "done"
    assert len(list(run.metrics("epoch"))) == 8


def test_a_schedule_that_depends_on_the_epochs_says_what_changes(make_run):
    run = make_run(method="csp", epochs=1, schedule="cosine")
    assert train(run) == "done"
    steps = len(list(run.metrics("step")))
    before = (run.path / "config.yaml").read_bytes()
    _, notes = go_on(run, {"epochs": 2}, dry=True)
    assert (run.path / "config.yaml").read_bytes() == before
    run, again = go_on(run, {"epochs": 2})
    assert notes == again
    assert "schedule=cosine depends on the number of epochs" in notes[0]
    assert f"{run.config.learning_rate(steps, steps):.3g}" in notes[0]
    assert train(run) == "done"
    assert [s["lr"] for s in run.metrics("step")][steps] == run.config.learning_rate(steps, steps) == run.config.lr / 2


def test_what_cannot_be_meant_is_refused_and_changes_nothing(make_run):
    run = make_run(method="csp", epochs=2)
    assert train(run) == "done"
    before = (run.path / "config.yaml").read_bytes()

    def refused(*words: str) -> str:
        shown = CliRunner().invoke(command, ["--resume", str(run.path), *words])
        assert isinstance(shown.exception, UsageError), shown.output
        return str(shown.exception)

    assert "2 epochs are done (step 8)" in refused("epochs=1")
    assert "epochs=12" in refused()
    other = refused("epochs=4", "lr=0.5", "--seed", "7")
    assert "lr=0.5" in other and "seed=7" in other and "--from" in other
    assert "did you mean 'epochs'" in refused("epoch=4")
    assert "wrong type" in refused("epochs=many")
    assert "never reach" not in refused("epochs=2")  # its own number: the run is finished
    with pytest.raises(UsageError, match="epochs"):
        go_on(run, {"epochs": -1})
    assert changes(run, {"epochs": 2, "lr": run.config.lr}) == {}
    assert (run.path / "config.yaml").read_bytes() == before


def test_a_method_without_steps_has_no_epochs_to_go_on_to(make_run):
    run = make_run(method="zero-shot")
    shown = CliRunner().invoke(command, ["--resume", str(run.path), "epochs=4"])
    assert isinstance(shown.exception, UsageError)
    assert "needs no training" in str(shown.exception)


@pytest.mark.parametrize("history", ["text", [1], [{"step": "x", "changed": {}}], [{"step": 1}]])
def test_a_history_of_another_form_is_no_run(make_run, history):
    run = make_run(method="csp")
    file = run.path / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "history": history}))
    with pytest.raises(UsageError, match="cannot be read"):
        Run(run.path)
