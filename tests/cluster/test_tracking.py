"""Trackers with the real packages writing to disk: each point once, resumed or not, and training never waits or fails."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import time

import pytest
from click.testing import CliRunner

from cluster.tracking import export, tracked
from cluster.train import train
from czsl.errors import SetupError, UsageError
from czsl.runs import trackers
from czsl.runs.config import RunConfig
from czsl.runs.going_on import go_on
from czsl.runs.tracker_names import PACKAGES, tracker_names
from czsl_cli.run_folders import runs
from czsl_cli.train import train as command


def needs(name: str) -> None:
    for package in PACKAGES[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the extra czsl[{name}] is not installed ({package})")


@pytest.fixture
def offline(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def tensorboard_points(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(run, event: str, key: str) -> list[tuple[int, float]]:
    return [(r["step"], r[key]) for r in run.metrics(event)]


def written(run) -> None:
    """Metrics of a run of three steps and one validation."""
    for step in (1, 2, 3):
        run.log({"event": "step", "loss": 1 / step, "epoch": 0, "lr": 0.1, "images_per_s": 5.0, "step": step, "time": 1e9 + step})
    run.log({"event": "epoch", "epoch": 1, "auc": 0.25, "hm": 0.5, "step": 3, "time": 1e9 + 4})


def test_a_run_that_goes_on_has_each_point_once_in_tensorboard(make_run, offline):
    needs("tensorboard")
    run = make_run(method="csp", epochs=1, log="tensorboard")
    assert train(run, engine="local") == "done"
    run, _ = go_on(run, {"epochs": 2})
    notes = []
    assert train(run, engine="local", on_record=notes.append) == "done"
    points = tensorboard_points(run.path / "tensorboard")
    for tag, event, key in (("train/loss", "step", "loss"), ("train/lr", "step", "lr"), ("val/auc", "epoch", "auc")):
        assert [step for step, _ in points[tag]] == [step for step, _ in expected(run, event, key)]
        assert [value for _, value in points[tag]] == pytest.approx([value for _, value in expected(run, event, key)])
    assert not [n for n in notes if n.get("event") == "note"]


def test_repeated_steps_after_a_failure_are_written_once(make_run, offline):
    needs("tensorboard")
    run = make_run(method="csp", log="tensorboard")
    with tracked(run, pytest.fail):
        written(run)
        written(run)  # as workers that start again from an earlier checkpoint do
    assert [step for step, _ in tensorboard_points(run.path / "tensorboard")["train/loss"]] == [1, 2, 3]


def test_mlflow_has_each_point_once_when_exported_twice(make_run, offline):
    needs("mlflow")
    run = make_run(method="csp")
    written(run)
    for _ in range(2):
        assert export(run, ["mlflow"], pytest.fail) == 4
    with sqlite3.connect(run.path.parent / "mlflow.db") as store:
        rows = store.execute("select step, value from metrics where key = 'train/loss' order by step").fetchall()
        named = store.execute("select name, status from runs").fetchall()
        params = dict(store.execute("select key, value from params").fetchall())
    assert rows == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert named == [(run.path.name, "FINISHED")]
    assert params["method"] == "csp"


def test_wandb_writes_one_offline_run(make_run, offline):
    needs("wandb")
    run = make_run(method="csp")
    written(run)
    for _ in range(2):
        assert export(run, ["wandb"], pytest.fail) == 4
    root = run.path / "wandb"
    (file,) = (root / "wandb" if (root / "wandb").is_dir() else root).glob("offline-run-*/*.wandb")
    end = time.monotonic() + 60  # wandb's own process writes the last lines after finish() has returned
    while b"val/auc" not in (content := file.read_bytes()) and time.monotonic() < end:
        time.sleep(0.05)
    assert content.count(b"train/loss") >= 3
    assert b"val/auc" in content


def test_the_folder_of_an_earlier_tracker_goes_although_its_process_still_writes(tmp_path, monkeypatch):
    (tmp_path / "wandb/offline-run-1").mkdir(parents=True)
    rmtree, tries = trackers.shutil.rmtree, []

    def disturbed(folder, ignore_errors):
        tries.append(folder)
        rmtree(folder, ignore_errors=ignore_errors)
        if len(tries) < 3:  # a log that appears meanwhile
            (folder / "offline-run-1/logs").mkdir(parents=True)

    monkeypatch.setattr(trackers.shutil, "rmtree", disturbed)
    trackers._remove(tmp_path / "wandb")
    assert not (tmp_path / "wandb").exists()
    assert len(tries) == 3


def test_a_tracker_that_fails_is_left_out_with_one_warning_and_training_ends_well(make_run, monkeypatch):
    class Broken:
        def __init__(self, path, settings):
            self.written = 0

        def write(self, numbers, step, time):
            raise OSError("no space left")

        def close(self):
            raise AssertionError("a tracker that failed is not used again")

    monkeypatch.setitem(trackers._MAKERS, "tensorboard", Broken)
    monkeypatch.setattr("cluster.tracking.check_installed", lambda names: None)
    run, heard = make_run(method="csp", epochs=1, log="tensorboard"), []
    assert train(run, engine="local", on_record=heard.append) == "done"
    (note,) = [r["note"] for r in heard if r.get("event") == "note"]
    assert "no space left" in note and "czsl runs log" in note


def test_a_missing_package_is_told_before_there_is_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"czsl\[wandb\]"):
        trackers.check_installed(["wandb"])
    shown = CliRunner().invoke(command, ["log=wandb", "--out", str(tmp_path / "runs")])
    assert isinstance(shown.exception, SetupError)
    assert not (tmp_path / "runs").exists()


def test_names_are_checked():
    assert tracker_names("tensorboard, MLflow,tensorboard") == ["tensorboard", "mlflow"]
    assert tracker_names(None) == tracker_names("") == []
    with pytest.raises(UsageError, match="tensorboard, mlflow, wandb"):
        RunConfig(log="tensorbord")


def test_runs_log_writes_what_there_is(make_run, offline):
    needs("tensorboard")
    run = make_run(method="csp")
    written(run)
    shown = CliRunner().invoke(runs, ["log", str(run.path), "--to", "tensorboard"])
    assert shown.exit_code == 0, shown.output
    assert "4 lines of metrics" in shown.output
    assert [value for _, value in tensorboard_points(run.path / "tensorboard")["val/auc"]] == [0.25]
    shown = CliRunner().invoke(runs, ["log", str(run.path), "--to", "nothing"])
    assert isinstance(shown.exception, UsageError)
    json.dumps(trackers.settings_of(run))
