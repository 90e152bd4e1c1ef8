"""Training on both engines: what a run leaves behind, and what may not change its result."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
import torch

from cluster.train import train
from czsl.errors import CzslError
from czsl.runs import checkpoint


def steps_of(run) -> list[dict]:
    return list(run.metrics("step"))


def final(run) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.find(run.checkpoints, "last"))


def assert_bit_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_a_run_keeps_everything_that_is_needed_to_trust_it(engine, make_run):
    run = make_run(method="csp", lr=0.01)
    seen = []
    assert train(run, engine=engine, on_record=seen.append) == "done"
    environment = run.environment()
    assert environment["versions"]["torch"]
    assert len(environment["clip_sha256"]) == len(environment["data_sha256"]) == 64
    steps = steps_of(run)
    assert [s["step"] for s in steps] == list(range(1, 9))  # the record of a step carries the number of steps done
    assert seen == list(run.metrics())
    assert steps[-1]["loss"] < steps[0]["loss"]
    epochs = list(run.metrics("epoch"))
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert all(0 <= e["auc"] <= 1 for e in epochs)
    best = checkpoint.best(run.checkpoints)
    assert best["auc"] == max(e["auc"] for e in epochs)
    kept = final(run)
    assert "prompts.table" in kept.method
    assert not any(key.startswith(("clip.", "visual.")) for key in kept.method)  # never the frozen CLIP
    assert not (run.path / ".attempts").exists()


LATER = ("coop", "vp-cmjl", "caila", "dfsp")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["csp", "troika", "clusPro", "msci", "clip-pzsl", "csp on candidates", *LATER])
def test_the_number_of_workers_does_not_change_the_result(ray_local, make_run, method, candidates_file):
    """float64, dropout 0, the same global batch: losses and weights to 1e-9 (the promise of the architecture)."""
    settings = {"method": method.split()[0], "precision": "float64", "attr_dropout": 0.0, "lr": 1e-3, "epochs": 3}
    if method in ("clip-pzsl", "csp on candidates"):
        settings |= {"partial_labels": str(candidates_file), "label_warmup": 1}
    if method == "clip-pzsl":
        settings |= {"adapter": 4}
        del settings["attr_dropout"]
    elif method in ("coop", "caila"):
        del settings["attr_dropout"]
        settings |= {"image_dropout": 0.0} if method == "caila" else {}
    elif method == "dfsp":
        settings |= {"fusion_dropout": 0.0}
    elif settings["method"] != "csp":
        settings |= {"adapter_dropout": 0.0, "head_dropout": 0.0, "adapter_dim": 8}
    if method == "troika":
        settings |= {"traction_dropout": 0.0}
    if method == "msci":
        settings |= {"low_blocks": 2, "high_blocks": 2, "aggregator_dropout": 0.0, "stage1_dropout": 0.0, "stage2_dropout": 0.0}
        settings |= {"train_mode": "reference", "optimizer": "adamw"}  # running batch statistics from the second epoch on
    runs = {}
    for workers in (1, 2, 3):
        runs[workers] = make_run(**settings)
        assert train(runs[workers], workers_per_node=workers) == "done"
    one = runs[1]
    for workers in (2, 3):
        other = runs[workers]
        np.testing.assert_allclose([s["loss"] for s in steps_of(one)], [s["loss"] for s in steps_of(other)], rtol=1e-9, atol=1e-9)
        for part in ("method", "labels"):
            for key, value in getattr(final(one), part).items():
                torch.testing.assert_close(getattr(final(other), part)[key], value, rtol=1e-9, atol=1e-9, msg=key)


STILL = {"method": "clusPro", "attr_dropout": 0.0, "adapter_dropout": 0.0, "head_dropout": 0.0, "adapter_dim": 8}


@pytest.mark.slow
def test_fifty_steps_on_four_workers_are_those_of_one(ray_local, make_run):
    runs = [make_run(**STILL, precision="float64", lr=1e-3, epochs=13, val_per_pair=1) for _ in range(2)]
    for run, workers in zip(runs, (1, 4), strict=True):
        assert train(run, workers_per_node=workers) == "done"
    one, four = ([s["loss"] for s in steps_of(run)] for run in runs)
    assert len(one) >= 50
    np.testing.assert_allclose(four, one, rtol=1e-9, atol=1e-9)
    for key, value in final(runs[0]).method.items():
        torch.testing.assert_close(final(runs[1]).method[key], value, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.slow
def test_one_step_in_float32_agrees_over_numbers_of_workers(ray_local, make_run):
    """Loss and gradients to 1e-5 relative: after the first step Adam's mean is a tenth of the gradient."""
    losses, gradients = [], []
    for workers in (1, 2, 4):
        run = make_run(**STILL, precision="float32", epochs=1, batch=500)
        assert train(run, workers_per_node=workers) == "done"
        assert len(steps_of(run)) == 1
        losses.append(steps_of(run)[0]["loss"])
        means = final(run).optimizer
        gradients.append(torch.cat([means[key].flatten() for key in sorted(means) if key.startswith("exp_avg.")]))
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        assert (gradient - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


@pytest.mark.slow
@pytest.mark.parametrize("where", [{"engine": "local"}, {"engine": "ray"}, {"workers_per_node": 2}], ids=str)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(ray_local, make_run, where):
    """Stopped in the middle of an epoch, with dropout and augmentation on: weights, moments and losses bit for bit."""
    settings = {"method": "clusPro", "adapter_dim": 8, "epochs": 4, "batch": 12}
    whole, broken = make_run(**settings), make_run(**settings)
    assert train(whole, **where) == "done"
    total = len(steps_of(whole))

    def stop_soon(record):
        if record.get("event") == "step" and record["step"] == total // 2 - 2:
            broken.stop_file.touch()

    assert train(broken, **where, on_record=stop_soon) == "stopped"
    done = steps_of(broken)[-1]["step"]
    assert 0 < done < total
    assert train(broken, **where) == "done"
    assert [s["loss"] for s in steps_of(broken)] == [s["loss"] for s in steps_of(whole)]
    assert_bit_equal(final(broken).method, final(whole).method)
    assert_bit_equal(final(broken).optimizer, final(whole).optimizer)


@pytest.mark.parametrize("method", ["msci", *LATER])
def test_a_resumed_run_knows_its_epoch_and_its_optimizer(make_run, monkeypatch, method):
    """Stopped in the second epoch, where the public loop of MSCI has left training mode; AdamW's moments go on."""
    from cluster.work.comm import Group
    from cluster.work.trainer import Trainer
    from cluster.work.training import train_worker

    settings = {"method": method, "optimizer": "adamw", "lr": 1e-3}
    settings |= {"train_mode": "reference"} if method == "msci" else {}
    settings |= {"adapter_dim": 4} if method in ("msci", "vp-cmjl") else {}
    whole, broken = make_run(**settings), make_run(**settings)
    assert train_worker(whole, Group(), torch.device("cpu")) == "done"
    total = len(steps_of(whole))
    log = Trainer.log

    def stop_soon(self, **record):
        log(self, **record)
        if record["event"] == "step" and self.step == total // 2 + 1 and self.run is broken:
            broken.stop_file.touch()

    monkeypatch.setattr(Trainer, "log", stop_soon)
    assert train_worker(broken, Group(), torch.device("cpu")) == "stopped"
    assert total // 2 < steps_of(broken)[-1]["step"] < total
    broken.stop_file.unlink()
    monkeypatch.setattr(Trainer, "log", log)
    assert train_worker(broken, Group(), torch.device("cpu")) == "done"
    assert [s["loss"] for s in steps_of(broken)] == [s["loss"] for s in steps_of(whole)]
    assert_bit_equal(final(broken).method, final(whole).method)
    assert_bit_equal(final(broken).optimizer, final(whole).optimizer)


@pytest.mark.fault
def test_a_killed_worker_costs_no_result(engine, make_run):
    import os
    import signal

    settings = {"method": "csp", "epochs": 30, "batch": 12}
    whole, killed = make_run(**settings), make_run(**settings)
    assert train(whole, engine=engine) == "done"
    victims = []

    def kill(record):
        if record.get("event") == "epoch" and record["epoch"] == 3 and not victims:
            victims.append(json.loads((killed.path / "worker-0.json").read_text())["pid"])
            os.kill(victims[0], signal.SIGKILL)

    failures = []
    assert train(killed, engine=engine, on_record=kill, on_failure=lambda *f: failures.append(f)) == "done"
    assert victims
    ((reason, count),) = failures
    assert count == 1
    assert "die" in reason.lower() or "dead" in reason.lower(), reason
    assert_bit_equal(final(killed).method, final(whole).method)
    assert [s["step"] for s in steps_of(killed)] == [s["step"] for s in steps_of(whole)]


def test_a_loss_that_is_no_number_stops_at_once_and_names_the_batch(engine, make_run):
    run, failures = make_run(method="csp", lr=1e30, epochs=3), []
    with pytest.raises(CzslError, match="not a number at step") as caught:
        train(run, engine=engine, on_failure=lambda *f: failures.append(f))
    assert not failures  # repeating would not cure it
    assert sum(1 for _ in run.metrics("start")) == 1
    assert caught.value.exit_code == 1
    assert "train/" in caught.value.why  # images of the batch
    assert not any(np.isnan(s["loss"]) for s in steps_of(run))


@pytest.mark.slow
def test_the_engines_end_in_the_same_bytes(ray_local, make_run):
    """With dropout, augmentation and validation: weights, moments, progress and metrics."""
    settings = {"method": "clusPro", "adapter_dim": 8, "epochs": 2, "batch": 12, "threads": 2}
    runs = [make_run(**settings) for _ in range(2)]
    for run, engine in zip(runs, ("local", "ray"), strict=True):
        assert train(run, engine=engine) == "done"
    here, there = (checkpoint.find(run.checkpoints, "last") for run in runs)
    for name in ("method.safetensors", "optimizer.safetensors", "state.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    said = [[r for r in run.metrics() if r["event"] in ("start", "step", "epoch")] for run in runs]
    learned = [[{k: v for k, v in r.items() if k not in ("time", "images_per_s")} for r in records] for records in said]
    assert learned[0] == learned[1]
    assert runs[0].environment()["threads"] == runs[1].environment()["threads"] == 2


def test_a_worker_that_dies_each_time_is_started_again_so_often_and_says_why(make_run, monkeypatch, tmp_path):
    """A native crash, seen from the driver: no traceback, the last words of the worker and the signal."""
    from cluster.train import TrainingFailedError

    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'cluster.machines.local' in sys.argv[0:1] or sys.argv[0] == '-c':\n"
        "    sys.stderr.write('Illegal instruction in libfoo\\n'); sys.stderr.flush(); os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run, failures = make_run(method="csp"), []
    with pytest.raises(TrainingFailedError) as caught:
        train(run, engine="local", max_failures=2, on_failure=lambda *f: failures.append(f))
    assert [count for _, count in failures] == [1, 2]
    assert all("SIGABRT" in reason for reason, _ in failures)
    assert "SIGABRT" in caught.value.why
    assert f"czsl train --resume {run.path}" in caught.value.fix
    assert "Illegal instruction in libfoo" in (run.path / "log.txt").read_text()


@pytest.mark.slow
def test_a_signal_ends_with_a_checkpoint(engine, make_run):
    """SIGINT reaches the driver's main thread; the workers finish their step, save, and the driver says stopped."""
    import os
    import signal

    run = make_run(method="csp", epochs=4000)

    def interrupt():
        while not steps_of(run):
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert train(run, engine=engine) == "stopped"
    assert checkpoint.newest_valid(run.checkpoints).name == f"step-{steps_of(run)[-1]['step']:08d}"
