"""``czsl calibrate`` and the options of answers: what they print, and what they refuse before anything is started."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from cluster.work.comm import Group
from cluster.work.training import train_worker
from czsl.data.table import open_data
from czsl.data.toy import dataset as toy
from czsl.runs.run import Run
from czsl_cli.config import resolve


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A short CSP run with the point that its training chose."""
    config = resolve({"method": "csp", "data": str(dataset), "clip": "tiny", "epochs": 1, "batch": 32, "threads": 1})
    run = Run.create(config, open_data(str(dataset)).space, tmp_path_factory.mktemp("runs"), "trained")
    assert train_worker(run, Group(), torch.device("cpu")) == "done"
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(trained.path, tmp_path / "mine")


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    toy.draw(toy.ATTRIBUTES[0], toy.OBJECTS[0], seed=1).save(tmp_path / "photos" / "a.png")
    return tmp_path / "photos"


def test_another_aim_is_kept_and_told(czsl, run):
    done = czsl("calibrate", run, "--for", "unseen-share=1")
    assert "for unseen-share=1" in done.stdout
    assert "operating point" in done.stdout and "temperature" in done.stdout
    assert "predict, search, explain and the index use it" in done.stderr
    found = json.loads(czsl("calibrate", run, "--for", "accuracy", "--json").stdout)
    assert found["for"] == "accuracy" and found["how"] == "val"
    assert found["on_these_images"]["op_acc_loss"] == pytest.approx(0, abs=1e-12)
    assert json.loads((run / "operating-point-closed.json").read_text())["bias"] == found["bias"]


def test_evaluation_shows_the_point_and_expects_its_numbers(czsl, run, tmp_path):
    done = czsl("evaluate", run, "--expect", "op_hm>=0", "--expect", "ece<=1", "--html", tmp_path / "page.html")
    assert "at this run's operating point: bias" in done.stdout
    assert "probabilities of compositions: ECE" in done.stdout
    assert "right names:" in done.stdout
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2 and "Reliability" in page and "operating point" in page
    czsl("evaluate", run, "--expect", "op_acc>=1.1", expect=5)
    report = json.loads((run / "report-test-closed.json").read_text())
    assert {"op_seen", "op_unseen", "op_hm", "op_acc", "op_intervals", "op_hm_loss", "reliability", "rejection"} <= set(report)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--for", "f1"], "is unknown"),
        (["--for", "seen>=1.2"], "is not a fraction"),
        (["--for", "seen>=1"], "no bias reaches a seen accuracy of 1"),
        (["--split", "test"], "--split goes with --data"),
        (["--checkpoint", "77"], "no usable checkpoint"),
    ],
)
def test_what_cannot_be_chosen_is_refused(czsl, run, options, words):
    assert words in czsl("calibrate", run, *options, expect=2).stderr


def test_data_without_images_or_of_another_kind_is_refused(czsl, run, tmp_path):
    assert "is not a dataset folder" in czsl("calibrate", run, "--data", tmp_path, expect=3).stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min-prob", "1.5"], "--min-prob 1.5"),
        (["--min-prob", "nan"], "--min-prob nan"),
        (["--precision", "-0.1"], "--precision -0.1"),
        (["--reject", "2"], "--reject 2"),
        (["--min-prob", "0.5", "--precision", "0.5"], "--min-prob and --precision were given"),
        (["--precision", "0.9", "--bias", "none"], "--precision with --bias none"),
        (["--precision", "0.9", "--open-world"], "--precision is not for the open world"),
        (["--bias", "much"], "is not a bias"),
        (["--bias", "inf"], "is not a bias"),
    ],
)
def test_options_of_answers_are_checked_before_a_cluster_starts(czsl, run, photos, options, words):
    done = czsl("predict", photos, "--run", run, *options, expect=2)
    assert words in done.stderr


def test_thresholds_need_a_run(czsl, photos, tmp_path):
    (tmp_path / "pairs.txt").write_text("wet dog\ndry cat\n")
    for option in ("--precision", "--reject"):
        done = czsl("predict", photos, "--zero-shot", "--pairs", tmp_path / "pairs.txt", option, "0.5", expect=2)
        assert f"{option} with --zero-shot" in done.stderr


def test_a_point_of_another_checkpoint_without_data_is_refused(czsl, run, photos):
    file = run / "operating-point-closed.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "checkpoint_sha256": "0" * 64}))
    config = run / "config.yaml"
    text = config.read_text()
    data = json.loads(file.read_text())["data"]
    config.write_text(text.replace(data, str(photos)))
    done = czsl("predict", photos, "--run", run, expect=3)
    assert "cannot be used" in done.stderr and "another checkpoint" in done.stderr


def test_explanations_rank_by_the_point(czsl, run, photos):
    shown = [
        json.loads(czsl("explain", photos / "a.png", "--run", run, "--json", "--bias", b, "--top", 5).stdout)
        for b in ("val", "none", "1000")
    ]
    point, none, given = (x["operating_point"] for x in shown)
    assert point["how"] == "val" and none["how"] == "none" and given == {**point, "bias": 1000.0, "how": "given"}
    for answer in shown:
        bias = answer["operating_point"]["bias"]
        order = [c["calibrated"] for c in answer["compositions"]]
        assert order == sorted(order, reverse=True)
        assert all(c["calibrated"] == pytest.approx(c["score"] + bias * (not c["seen"])) for c in answer["compositions"])
    assert not any(c["seen"] for c in shown[2]["compositions"])
