"""``czsl runs``: the list, one run, tags, and what is deleted and what never is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from czsl.runs import checkpoint
from czsl.runs.checkpoint import Checkpoint
from czsl.runs.config import RunConfig
from czsl.runs.files import held, write_json
from czsl.runs.run import Run
from methods.fingerprint import fingerprint


@pytest.fixture
def make(tmp_path, small_space):
    """A run that looks trained: three checkpoints and more, of which the first is best."""

    def run(name="one", method="csp", auc=0.5, steps=(1, 2, 3), out=None):
        run = Run.create(RunConfig(method=method, data="toy"), small_space, out or tmp_path / "runs", name)
        for step in steps:
            run.log({"event": "epoch", "epoch": step, "step": step, "time": float(step), "auc": auc, "hm": auc / 2})
            path = checkpoint.save(run.checkpoints, Checkpoint({"a": torch.ones(9)}, {}, {"step": step}))
            if step == steps[0]:
                checkpoint.mark_best(run.checkpoints, path, step=step, epoch=step, auc=auc)
        run.log({"event": "end", "status": "done", "step": steps[-1], "time": 9.0})
        return run

    return run


def listed(czsl, *args):
    return json.loads(czsl("runs", "list", *args, "--json").stdout)


def test_the_list_has_every_run_at_any_depth_with_its_numbers(czsl, make, tmp_path):
    one = make()
    make("deep", method="zero-shot", auc=0.7, out=tmp_path / "runs/experiment")
    write_json(one.path / "report-test-closed.json", {"auc": 0.25, "hm": 0.5})
    (tmp_path / "runs/half/checkpoints").mkdir(parents=True)
    found = {Path(e["run"]).name: e for e in listed(czsl)}
    assert set(found) == {"one", "deep", "half"}
    assert (found["one"]["auc"], found["one"]["of"]) == (0.25, "test")
    assert (found["deep"]["auc"], found["deep"]["hm"], found["deep"]["of"]) == (0.7, 0.35, "val")
    assert (found["half"]["state"], found["half"]["why"]) == ("damaged", "config.yaml is missing")
    assert found["one"]["bytes"] == sum(p.stat().st_size for p in one.path.rglob("*") if p.is_file())
    assert [Path(e["run"]).name for e in listed(czsl, "--sort", "auc")] == ["deep", "one", "half"]
    assert [Path(e["run"]).name for e in listed(czsl, "--method", "CSP")] == ["one"]
    assert listed(czsl, "--state", "failed") == []
    shown = czsl("runs", "list").stdout
    assert "70.0 v" in shown
    assert "runs/experiment/deep" in shown  # what the other commands take
    assert "did you mean runs/one?" in czsl("runs", "show", "one", expect=2).stderr


def test_a_report_of_other_weights_is_not_told(czsl, make):
    run = make()
    write_json(run.path / "report-test-closed.json", {"auc": 0.25, "hm": 0.5, "checkpoint_sha256": "0" * 64})
    assert listed(czsl)[0]["of"] == "val"
    write_json(run.path / "report-test-closed.json", {"auc": 0.25, "hm": 0.5, "checkpoint_sha256": fingerprint(run)})
    assert (listed(czsl)[0]["auc"], listed(czsl)[0]["of"]) == (0.25, "test")


def test_an_empty_folder_and_a_wrong_word_are_answered(czsl):
    assert "no run in runs" in czsl("runs", "list").stderr
    assert "did you mean 'csp'?" in czsl("runs", "list", "--method", "csq", expect=2).stderr
    assert "is not a run folder" in czsl("runs", "show", "nowhere", expect=2).stderr


def test_a_run_is_shown_with_what_differs_from_the_default(czsl, make):
    run = make()
    shown = czsl("runs", "show", run.path).stdout
    assert "done" in shown
    assert "50.0 in epoch 1" in shown
    facts = json.loads(czsl("runs", "show", run.path, "--json").stdout)
    assert [c["step"] for c in facts["checkpoints"]] == [1, 2, 3]
    assert [c["best"] for c in facts["checkpoints"]] == [True, False, False]


def test_tags_stay_with_the_run(czsl, make):
    run = make()
    assert czsl("runs", "tag", run.path, "paper", "best").stdout == "best paper\n"
    assert czsl("runs", "tag", run.path).stdout == "best paper\n"
    assert [e["tags"] for e in listed(czsl, "--tag", "paper")] == [["best", "paper"]]
    assert czsl("runs", "tag", run.path, "--remove", "best").stdout == "paper\n"
    assert "has no tag 'best'" in czsl("runs", "tag", run.path, "--remove", "best", expect=2).stderr
    assert "cannot be a tag" in czsl("runs", "tag", run.path, "a b", expect=2).stderr
    (run.path / "tags.json").write_text("{")
    assert listed(czsl)[0]["tags"] == []


def steps(run):
    return [checkpoint.step_of(p) for p in checkpoint.steps(run.checkpoints)]


def test_pruning_keeps_the_best_and_the_last_whole_checkpoint(czsl, make):
    run = make(steps=(1, 2, 3))
    damaged = make("damaged", steps=(1, 2, 3))
    (damaged.checkpoints / "step-00000003/state.json").write_text("x")
    assert "stdin is not a terminal" in czsl("runs", "prune", expect=2).stderr
    assert "would delete" in czsl("runs", "prune", "--dry-run").stderr
    assert steps(run) == [1, 2, 3]
    czsl("runs", "prune", "--yes")
    assert steps(run) == [1, 3]
    assert steps(damaged) == [1, 2]
    assert "nothing to delete" in czsl("runs", "prune", "--yes").stderr
    assert next(reversed(list(run.metrics("end"))))["status"] == "done"


def test_no_checkpoint_goes_where_none_is_whole(czsl, make):
    run = make()
    for path in checkpoint.steps(run.checkpoints):
        (path / "state.json").write_text("x")
    assert "nothing to delete" in czsl("runs", "prune", "--yes").stderr
    assert steps(run) == [1, 2, 3]


def test_whole_runs_go_only_by_name_and_never_if_tagged_at_work_or_no_run(czsl, make, tmp_path):
    run = make()
    assert "--whole without runs" in czsl("runs", "prune", "--whole", "--yes", expect=2).stderr
    czsl("runs", "tag", run.path, "paper")
    assert "tagged runs are never deleted" in czsl("runs", "prune", run.path, "--whole", "--yes", expect=2).stderr
    czsl("runs", "tag", run.path, "--remove", "paper")
    with held(run.path, "training"):
        assert "is at work" in czsl("runs", "prune", run.path, "--whole", "--yes", expect=2).stderr
        assert "skipped" in czsl("runs", "prune", "--yes").stderr
    (tmp_path / "mine/checkpoints").mkdir(parents=True)
    assert "is not a run folder" in czsl("runs", "prune", "mine", "--whole", "--yes", expect=2).stderr
    czsl("runs", "prune", run.path, "--whole", "--yes")
    assert not run.path.exists()


def test_a_link_is_not_followed(czsl, make, tmp_path):
    run = make(out=tmp_path / "elsewhere")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/link").symlink_to(run.path.parent)
    assert listed(czsl) == []
    shutil.rmtree(tmp_path / "runs")
