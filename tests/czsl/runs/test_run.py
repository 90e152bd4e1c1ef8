"""A run folder: what is written before the first step, and what a resumed run finds."""

import json
import os
import subprocess
import time
from dataclasses import replace

import pytest
import yaml

from czsl.errors import UsageError
from czsl.runs.config import RunConfig
from czsl.runs.run import Run, environment, latest_run


@pytest.fixture
def config():
    return RunConfig(method="csp", data="some/where/my data", lr=1e-4, model={"names": "clean", "pdl_terms": (1.0, 0.5)})


@pytest.fixture
def run(config, small_space, tmp_path):
    return Run.create(config, small_space, tmp_path / "runs", "first")


def test_a_new_run_holds_its_config_and_its_labels(run, config, small_space, tmp_path):
    assert run.path == tmp_path / "runs" / "first"
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "space.json"]
    again = Run(run.path)
    assert again.config == RunConfig(**{**config.to_dict(), "model": {"names": "clean", "pdl_terms": [1.0, 0.5]}})
    assert again.space.to_json() == small_space.to_json()
    assert list(yaml.safe_load((run.path / "config.yaml").read_text())) == list(config.to_dict())  # in a reader's order


def test_names_hold_method_data_and_time_and_never_collide(config, small_space, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    made = [Run.create(config, small_space, tmp_path).path.name for _ in range(3)]
    stem = "csp-my data-20260102-030405"
    assert made == [stem, f"{stem}-2", f"{stem}-3"]


def test_an_existing_run_is_never_overwritten(run, config, small_space):
    with pytest.raises(UsageError, match="exists"):
        Run.create(config, small_space, run.path.parent, "first")


@pytest.mark.parametrize(
    "content", [b"", b"- a\n", b"method: [", b"\xff\xfe", b"unheard_of: 1\n", b"epochs: many\n", b"precision: int8\n", b"5: 5\n"]
)
def test_a_config_that_is_none_is_refused(run, content):
    (run.path / "config.yaml").write_bytes(content)
    with pytest.raises(UsageError):
        Run(run.path)


def test_a_folder_without_a_config_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="is not a run folder"):
        Run(tmp_path)


def test_metrics_are_cut_back_to_a_step(run):
    for step in range(5):
        run.log({"event": "step", "step": step, "loss": 1.0 / (step + 1)})
    run.log({"event": "epoch", "step": 2})
    run.log({"event": "end", "step": 2})
    with run.metrics_file.open("a") as file:
        file.write('{"event": "step", "st')  # a process was killed here
    assert len(list(run.metrics())) == 7
    run.cut_metrics(2)
    assert [(r["event"], r["step"]) for r in run.metrics()] == [("step", 0), ("step", 1), ("step", 2), ("epoch", 2)]
    run.log({"event": "step", "step": 3})
    assert [r["step"] for r in run.metrics("step")] == [0, 1, 2, 3]
    assert run.metrics_file.read_text().endswith("\n")


def test_metrics_of_a_run_that_did_not_start(run):
    assert list(run.metrics()) == []
    run.cut_metrics(0)
    assert list(run.metrics()) == []


def test_reports_and_environment(run):
    assert run.environment() == {}
    run.write_environment(seed=3, clip_sha256="abc")
    written = run.environment()
    assert (written["seed"], written["clip_sha256"]) == (3, "abc")
    assert {"torch", "numpy", "ray"} <= set(written["versions"])
    path = run.write_report("report", {"auc": 0.5})
    assert path == run.path / "report.json"
    assert json.loads(path.read_text()) == {"auc": 0.5}


def test_the_latest_run(config, small_space, tmp_path):
    assert latest_run(tmp_path / "none") is None
    for age, name in ((10, "old"), (0, "new"), (20, "older")):
        made = Run.create(config, small_space, tmp_path, name)
        os.utime(made.path / "config.yaml", (1_000_000 - age, 1_000_000 - age))
    latest = latest_run(tmp_path)
    assert latest is not None
    assert latest.path.name == "new"


def test_a_checkout_on_a_machine_without_git(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert environment().get("git") is None
    assert environment()["python"]


def test_threads_are_those_of_the_settings_else_of_the_training(run, config, small_space, tmp_path):
    assert run.threads == 0
    run.write_environment(threads=3)
    assert run.threads == 3
    pinned = Run.create(replace(config, threads=2), small_space, tmp_path, "pinned")
    pinned.write_environment(threads=2)
    assert pinned.threads == 2
