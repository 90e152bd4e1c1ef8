"""States of run folders, whole and half gone."""

from __future__ import annotations

import shutil

import pytest
import torch

from czsl.runs import checkpoint
from czsl.runs.checkpoint import Checkpoint
from czsl.runs.config import RunConfig
from czsl.runs.files import held
from czsl.runs.run import Run
from czsl.runs.states import is_half_gone, seconds_of_work, state_of


@pytest.fixture
def run(tmp_path, small_space):
    return Run.create(RunConfig(), small_space, tmp_path, "one")


def trained(run: Run, step: int = 4) -> None:
    run.log({"event": "step", "step": step, "loss": 1.0, "time": 1.0})
    path = checkpoint.save(run.checkpoints, Checkpoint({"a": torch.ones(2)}, {}, {"step": step}))
    checkpoint.mark_best(run.checkpoints, path, step=step, epoch=1, auc=0.5)


def end(run: Run, status: str, **more) -> None:
    run.log({"event": "end", "status": status, "step": 4, **more})


def test_a_run_goes_through_its_states(run):
    assert state_of(run, trains=True).name == "new"
    assert state_of(run, trains=False).name == "done"
    with held(run.path, "training"):
        assert state_of(run, trains=True).name == "running"
    trained(run)
    assert state_of(run, trains=True).name == "interrupted"
    end(run, "stopped")
    assert state_of(run, trains=True).name == "stopped"
    end(run, "failed", reason="out of luck")
    assert (state_of(run, trains=True).name, state_of(run, trains=True).why) == ("failed", "out of luck")
    end(run, "done")
    assert state_of(run, trains=True).name == "done"


@pytest.mark.parametrize(
    ("gone", "why"),
    [
        ("space.json", "space.json is missing"),
        ("metrics.jsonl", "metrics.jsonl is missing"),
        ("checkpoints", "its checkpoints are missing"),
        ("checkpoints/step-00000004", "its checkpoints are missing"),
    ],
)
def test_what_is_missing_is_named(run, gone, why):
    trained(run)
    end(run, "done")
    path = run.path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    state = state_of(run, trains=True)
    assert state.name == "damaged"
    assert why in state.why


def test_the_best_checkpoint_is_missed_although_others_are_there(run):
    trained(run)
    checkpoint.save(run.checkpoints, Checkpoint({"a": torch.ones(2)}, {}, {"step": 8}))
    end(run, "done")
    assert state_of(run, trains=True).name == "done"
    shutil.rmtree(run.checkpoints / "step-00000004")
    assert "step-00000004" in state_of(run, trains=True).why


def test_folders_that_are_no_runs(run, tmp_path):
    assert is_half_gone(tmp_path / "absent") == ""
    (tmp_path / "empty").mkdir()
    assert is_half_gone(tmp_path / "empty") == ""
    assert is_half_gone(run.path) == ""
    (run.path / "config.yaml").write_text("seed: [")
    assert is_half_gone(run.path)
    (run.path / "config.yaml").unlink()
    assert is_half_gone(run.path) == "config.yaml is missing"
    assert "a file" in is_half_gone(run.path / "space.json")


def test_pauses_do_not_count_as_work(run):
    for event, time in (("start", 10.0), ("step", 12.0), ("start", 100.0), ("step", 103.0)):
        run.log({"event": event, "time": time, "step": 1})
    assert seconds_of_work(run) == 5.0
