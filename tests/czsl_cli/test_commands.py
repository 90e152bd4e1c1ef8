"""What the commands print, where, and with which exit code: some through the installed entry point, most in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from czsl.data.toy import dataset as toy

CZSL = [str(Path(sys.executable).parent / "czsl")]


def command(*args, cwd, env=None, expect=0):
    """Run the installed command; its completed process."""
    done = subprocess.run(
        [*CZSL, *map(str, args)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "2", **(env or {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def work(tmp_path_factory, czsl_cache):
    """A working folder with a small dataset of drawn images, imported from a tree by the command itself."""
    folder = tmp_path_factory.mktemp("work")
    for name, attr, obj, split, image in toy.samples(scale=0.05):
        file = folder / "source" / split / f"{attr} {obj}" / Path(name).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image)
    done = command("data", "import", "source", "drawn", cwd=folder)
    assert "140" in done.stdout + done.stderr or (folder / "drawn" / "dataset.json").exists()
    return folder


@pytest.fixture(scope="module")
def run(work):
    """A CSP run, trained by the command."""
    done = command(
        "train", "--method", "csp", "--data", "drawn", "--epochs", 2, "--name", "csp", "lr=0.01", "threads=1", cwd=work
    )
    assert done.stdout.strip() == "runs/csp"  # stdout carries data: the run's path
    assert "validation: AUC" in done.stderr
    return work / "runs" / "csp"


def test_help_is_quick_and_lists_the_commands(work):
    done = command("--help", cwd=work)
    for name in ("train", "evaluate", "predict", "data", "methods"):
        assert name in done.stdout


def test_a_misspelt_command_method_setting_and_option_name_the_nearest(czsl, work):
    assert "did you mean 'train'" in czsl("trian", cwd=work, expect=2).stderr
    assert "clusPro" in czsl("train", "--method", "cluspr0", cwd=work, expect=2).stderr
    assert "'epochs'" in czsl("train", "--method", "csp", "epoch=3", cwd=work, expect=2).stderr
    assert "--epochs" in czsl("train", "--epoch", "3", cwd=work, expect=2).stderr


def test_names_of_methods_may_be_written_in_any_case(czsl, work):
    for name in ("clusPro", "cluspro", "clus-pro"):
        shown = czsl("train", "--method", name, "--data", "drawn", "--dry-run", "--json", cwd=work)
        assert json.loads(shown.stdout)["config"]["method"] == "clusPro"


def test_a_method_tells_its_settings_presets_and_what_tuning_tries(czsl, work):
    told = json.loads(czsl("methods", "clusPro", "--json", cwd=work).stdout)
    assert {"of": "run", "field": "batch"}.items() <= next(f for f in told["fields"] if f["field"] == "batch").items()
    assert all(f["about"] for f in told["fields"])
    assert {"default", "paper", "released"} <= set(told["presets"])
    assert told["search"]["lr"]
    shown = czsl("methods", "clusPro", cwd=work).stdout
    assert "czsl tune tries" in shown
    assert "loguniform" in shown


def test_a_dry_run_prints_all_and_writes_nothing(czsl, work):
    before = sorted(work.rglob("*"))
    done = czsl("train", "--data", "drawn", "--nodes", 4, "--dry-run", "--json", cwd=work)
    plan = json.loads(done.stdout)
    assert plan["steps"] == plan["steps_per_epoch"] * plan["config"]["epochs"] > 0
    assert plan["memory_bytes_per_worker"]["total"] > plan["memory_bytes_per_worker"]["clip"] > 1e6
    assert plan["placement"]["workers"] == 1
    assert "4 nodes asked, 1 in the cluster" in plan["placement"]["note"]
    assert sorted(work.rglob("*")) == before
    assert "steps per epoch" in czsl("train", "--data", "drawn", "--dry-run", cwd=work).stderr


def test_evaluate_prints_a_table_or_json_and_keeps_expectations(czsl, run, work):
    done = czsl("evaluate", "runs/csp", cwd=work)
    assert "AUC" in done.stdout
    assert "20 bins" in done.stdout
    report = json.loads(czsl("evaluate", "--json", "--expect", "auc>=0", "--bootstrap", 50, cwd=work).stdout)  # the newest run
    assert report["images"] == json.loads((run / "report-test-closed.json").read_text())["images"]
    assert report["intervals"]
    failed = czsl("evaluate", "runs/csp", "--expect", "auc>=0.999", cwd=work, expect=5)
    assert "--expect auc>=0.999" in failed.stderr
    assert "no number 'auk'" in czsl("evaluate", "runs/csp", "--expect", "auk>=1", cwd=work, expect=2).stderr
    open_world = json.loads(czsl("evaluate", "runs/csp", "--open-world", "--json", cwd=work).stdout)
    assert open_world["pairs"] == 168


def test_score_files_of_others_are_evaluated(czsl, shared, work):
    for name, key in (("ut_closed_test", "auc_ref20"), ("tiny_few", "auc_ref20")):
        files = ["--scores", shared / f"fixtures/{name}.npz", "--space", shared / f"fixtures/{name}.json"]
        report = json.loads(czsl("evaluate", *files, "--json", cwd=work).stdout)
        expected = json.loads((shared / f"fixtures/{name}.json").read_text())["reference"]["plain"]["AUC"]
        assert report[key] == pytest.approx(expected, abs=1e-6)


def test_predict_writes_tables_and_files_and_counts_broken_images(czsl, run, work):
    czsl("data", "export", "drawn", "photos", "--limit", 5, cwd=work)
    (work / "photos" / "broken.png").write_bytes(b"\x89PNG")
    done = czsl("predict", "photos", "--run", "runs/csp", "--top", 2, "--json", cwd=work, expect=6)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 6
    assert sum(r["error"] is not None for r in records) == 1
    assert all(len(r["predictions"]) == 2 for r in records if not r["error"])
    assert "broken.png" in done.stderr
    shown = czsl("predict", "photos", "--run", "runs/csp", "--top", 1, cwd=work, expect=6).stdout
    assert "next" not in shown and "note" in shown  # the broken image's
    (work / "photos" / "broken.png").rename(work / "broken.png")
    assert "note" not in czsl("predict", "photos", "--run", "runs/csp", "--top", 1, cwd=work).stdout
    (work / "broken.png").rename(work / "photos" / "broken.png")
    (work / "pairs.txt").write_text("wet,fish\nshiny new,house\n")
    done = czsl("predict", "photos", "--run", "runs/csp", "--pairs", "pairs.txt", "--out", "found.csv", cwd=work, expect=6)
    assert "shiny new" in done.stderr  # a word that training never saw
    rows = (work / "found.csv").read_text().splitlines()
    assert rows[0] == "image,rank,attr,obj,score,calibrated,prob"
    assert len(rows) == 1 + 5 * 2 + 1


def test_errors_are_three_lines_with_the_right_exit_code(czsl, work):
    assert "not a run folder" in czsl("evaluate", "nowhere", cwd=work, expect=2).stderr
    assert "czsl data import" in czsl("train", "--data", "nowhere", cwd=work, expect=3).stderr
    (work / "empty").mkdir(exist_ok=True)
    assert "no images" in czsl("predict", "empty", "--run", "runs/csp", cwd=work, expect=3).stderr
    assert "unknown CLIP model" in czsl("train", "--data", "drawn", "--clip", "ViT-L-144", "--dry-run", cwd=work, expect=2).stderr
    assert "a resumed run keeps" in czsl("train", "--resume", "runs/csp", "lr=0.5", cwd=work, expect=2).stderr


def test_a_training_free_method_makes_a_run_that_evaluates(czsl, work):
    done = czsl("train", "--method", "zero-shot", "--data", "drawn", "--name", "zs", cwd=work)
    assert "needs no training" in done.stderr
    assert json.loads(czsl("evaluate", "runs/zs", "--json", cwd=work).stdout)["method"] == "zero-shot"


def test_completion_scripts(czsl, work):
    assert "_CZSL_COMPLETE" in czsl("completion", "bash", cwd=work).stdout


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_resume_goes_on(work):
    """SIGINT as a terminal sends it: exit code 130, a checkpoint, and --resume finishes."""
    command = [*CZSL, "train", "--method", "csp", "--data", "drawn", "--name", "stopped", "epochs=1500", "threads=1"]
    process = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = work / "runs" / "stopped" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and '"event": "epoch"' in metrics.read_text():
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "czsl train --resume runs/stopped" in err
    assert list((work / "runs" / "stopped" / "checkpoints").glob("step-*"))
    process = subprocess.Popen(
        [*CZSL, "train", "--resume", "runs/stopped"], cwd=work, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if "going on" in metrics.read_text() or metrics.read_text().count('"event": "start"') > 1:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "continuing at step" in err
