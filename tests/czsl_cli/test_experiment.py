"""``czsl experiment`` as typed: what is trained and what is not, its files, its errors."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from czsl.runs import checkpoint
from czsl.runs.run import Run

ROOT = Path(__file__).parents[2]
TABLE = """
common: epochs=1 batch=32
baseline: zero-shot
resamples: 50
rows:
  zero-shot: {train: --method zero-shot}
  csp: {train: {method: csp, lr: 1e-3}}
"""


@pytest.fixture
def experiment(czsl, dataset, tmp_path):
    """``czsl experiment`` on a small dataset with a file of the given content."""

    def run(*args, text=TABLE, expect=0):
        (tmp_path / "table.yaml").write_text(text)
        return czsl("experiment", "table.yaml", "--data", dataset, *args, expect=expect)

    return run


def starts(path: Path) -> int:
    return len(list(Run(path).metrics("start")))


def test_missing_runs_are_trained_once_and_every_form_has_the_table(experiment, tmp_path):
    files = [x for kind in ("md", "csv", "tex", "html") for x in (f"--{kind}", f"table.{kind}")]
    first = json.loads(experiment(*files, "--json").stdout)
    [table] = first["tables"]
    assert [row["row"] for row in table["rows"]] == ["zero-shot", "csp"]
    assert table["rows"][1]["seeds"] == [0, 1]
    assert table["rows"][0]["seeds"] == [None]
    report = json.loads((tmp_path / "runs/table/csp-seed1/report-test-closed.json").read_text())
    assert table["rows"][1]["reports"][1]["auc"] == report["auc"]
    assert "| csp - zero-shot |" in (tmp_path / "table.md").read_text()
    assert "\\midrule" in (tmp_path / "table.tex").read_text()
    assert "<table" in (tmp_path / "table.html").read_text()
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [r["seed"] for r in rows] == ["", "0", "1", "mean", "sd"]

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/table").rglob("*")}
    again = experiment("--json")
    assert "3 of 3 runs are finished" in again.stderr
    assert {k: v for k, v in json.loads(again.stdout).items() if k != "seconds"} == {
        k: v for k, v in first.items() if k != "seconds"
    }
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/table").rglob("*")} == before

    # A removed run is trained again, a changed setting has a folder of its own, an interrupted run continues.
    shutil.rmtree(tmp_path / "runs/table/csp-seed1")
    assert "run 1 of 1: csp-seed1" in experiment().stderr
    assert starts(tmp_path / "runs/table/csp-seed0") == 1
    plan = json.loads(experiment("lr=2e-3", "--dry-run", "--json").stdout)
    assert [Path(r["run"]).name for r in plan["runs"]] == ["zero-shot-seed0", "csp-seed0-2", "csp-seed1-2"]
    assert [r["state"] for r in plan["runs"]] == ["done", "missing", "missing"]
    run = Run(tmp_path / "runs/table/csp-seed0")
    lines = run.metrics_file.read_text().splitlines()
    run.metrics_file.write_text("\n".join(x for x in lines if '"end"' not in x) + "\n")
    assert "run 1 of 1: csp-seed0" in experiment().stderr
    assert starts(run.path) == 2
    assert next(reversed(list(run.metrics("end"))))["status"] == "done"


def test_rows_stand_next_to_what_papers_report_by_the_fields_evaluator(experiment, tmp_path):
    text = "rows:\n  zero-shot: {train: --method zero-shot}\n"
    files = [x for kind in ("md", "csv", "tex", "html") for x in (f"--{kind}", f"table.{kind}")]
    [table] = json.loads(experiment("--published", "mit-states", "--json", *files, text=text).stdout)["tables"]
    csp = next(r for r in table["published"] if (r["method"], r["backbone"]) == ("CSP", "ViT-L/14"))
    assert (csp["auc"], csp["world"]) == (19.4, "closed")
    [report] = table["rows"][0]["reports"]
    line = next(x for x in (tmp_path / "table.md").read_text().splitlines() if "this run" in x)
    assert [cell.strip() for cell in line.split("|")][3:7] == [
        f"{100 * report[key]:.1f}" for key in ("seen_ref20", "unseen_ref20", "hm_ref20", "auc_ref20")
    ]
    assert "these numbers cannot be compared" in (tmp_path / "table.md").read_text()
    assert "CSP" in (tmp_path / "table.tex").read_text()
    assert "CSP" in (tmp_path / "table.html").read_text()
    assert any(r["row"] == "CSP (reported)" for r in csv.DictReader((tmp_path / "table.csv").open()))
    assert "did you mean 'mit-states'?" in experiment("--published", "mit-state", expect=2).stderr


def test_a_dry_run_counts_steps_and_knows_times_of_finished_rows_only(experiment, tmp_path):
    plan = json.loads(experiment("--dry-run", "--json").stdout)
    assert not (tmp_path / "runs").exists()
    assert plan["seconds"] is None
    assert [r["steps"] for r in plan["runs"]] == [0, plan["runs"][1]["steps"], plan["runs"][1]["steps"]]
    experiment("--rows", "csp", "--seeds", "0")
    plan = json.loads(experiment("--dry-run", "--json").stdout)
    assert plan["runs"][1]["seconds"] == 0
    assert plan["runs"][2]["seconds"] > 0
    assert plan["seconds"] == plan["runs"][2]["seconds"]


def test_a_run_that_fails_ends_alone(experiment):
    text = TABLE.replace("lr: 1e-3", "lr: 1e30, precision: float32, weight_decay: 0") + "  two: {train: --method csp}\n"
    shown = experiment("--seeds", "0", text=text, expect=6)
    assert "csp-seed0 failed: the loss is not a number" in shown.stderr
    assert "failed: csp-seed0" in shown.stdout
    assert "two - zero-shot" in shown.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rows: {a: {trian: x}}", "did you mean 'train'?"),
        ("row: {a: {}}", "did you mean 'rows'?"),
        ("rows: {a: {train: --method csp}, a: {train: --method troika}}", "'a' is there twice"),
        ("rows: {a: {train: --method csp --nodes 3}}", "--nodes is not a setting"),
        ("rows: {a: {train: --method csp --from x}}", "--from is not a setting"),
        ("rows: {a: {train: --method csq}}", "row a: unknown method 'csq'"),
        ("rows: {a: {train: {method: csp, epocs: 3}}}", "did you mean 'epochs'?"),
        ("rows: {a: {train: --method csp --data toy}}", "row a sets data"),
        ("rows: {a: {train: --method csp --seed 1}}", "row a sets seed"),
        ("seeds: [0, 0]\nrows: {a: {}}", "twice"),
        ("seeds: 3\nrows: {a: {}}", "seeds is 3"),
        ("rows: {a: {}}\ncompare: [[a, b]]", "unknown row 'b'"),
        ("rows: {a: {}}\nbaseline: b", "unknown row 'b'"),
        ("rows: {a/b: {}}", "'a/b' cannot be used"),
        ("rows: []", "rows is a list"),
        ("[1]", "is not an experiment"),
        ("evaluate: [opne]\nrows: {a: {}}", "did you mean 'open'?"),
        ("evaluate: [{per_piar: 3}]\nrows: {a: {}}", "did you mean 'per_pair'?"),
        ("evaluate: [{per_pair: x}]\nrows: {a: {}}", "wrong type"),
        ("rows: {a: {train: --methd csp}}", "--method"),
        ("rows: {a: {train: '--method \"csp'}}", "No closing quotation"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(experiment, tmp_path, text, words):
    assert words in experiment(text=text, expect=2).stderr
    assert not (tmp_path / "runs").exists()


def test_half_gone_folders_and_other_data_are_refused_with_the_reason(experiment, tmp_path):
    folder = tmp_path / "runs/table/csp-seed0"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("")
    assert "config.yaml is missing" in experiment(expect=3).stderr
    shutil.rmtree(folder)
    experiment("--rows", "csp", "--seeds", "0")
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**environment, "data_sha256": "0" * 64}))
    assert "trained on other data" in experiment(expect=3).stderr
    (folder / "environment.json").write_text(json.dumps(environment))
    shutil.rmtree(folder / "checkpoints")
    assert "its checkpoints are missing" in experiment(expect=3).stderr


def test_several_datasets_and_worlds_have_a_table_each(czsl, dataset, tmp_path):
    text = TABLE.replace("baseline: zero-shot\n", f"data: {{one: '{dataset}', two: '{dataset}'}}\nevaluate: [closed, open]\n")
    (tmp_path / "t.yaml").write_text(text)
    found = json.loads(czsl("experiment", "t.yaml", "--rows", "zero-shot", "--json").stdout)
    assert [(t["data"], t["evaluation"]) for t in found["tables"]] == [
        ("one", "closed world"), ("one", "open world"), ("two", "closed world"), ("two", "open world")
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "runs/t").iterdir()) == ["zero-shot-one-seed0", "zero-shot-two-seed0"]


@pytest.mark.parametrize("table", sorted((ROOT / "examples/tables").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_tables_of_the_documents_can_be_read(table):
    from czsl_cli.experiment_file import read_experiment

    asked = read_experiment(table, data="toy")
    for name in asked.rows:
        if "partial_labels" not in asked.rows[name].settings:
            assert asked.config(name, "toy", 0).method


ADAPTED = """
common: epochs=1 batch=32
seeds: [0]
resamples: 20
rows:
  csp: {train: --method csp}
  csp-tomcat: {of: csp, adapt: tomcat recipe=ut-zappos stream_seed=3}
  zero-tda: {train: --method zero-shot, adapt: {name: tda, shots: 2, stream_seed: given}}
compare: [[csp, csp-tomcat]]
"""


def test_an_adapted_row_shares_the_runs_of_another_and_has_the_numbers_of_evaluate(experiment, czsl, tmp_path):
    plan = json.loads(experiment("--dry-run", "--json", text=ADAPTED).stdout)
    assert [Path(r["run"]).name for r in plan["runs"]] == ["csp-seed0", "zero-tda-seed0"]
    files = ("--md", "table.md", "--csv", "table.csv")
    [table] = json.loads(experiment("--json", *files, text=ADAPTED).stdout)["tables"]
    plain, tomcat, tda = table["rows"]
    assert (plain["adaptation"], tomcat["adaptation"]["name"], tda["adaptation"]["stream_seed"]) == (None, "tomcat", None)
    assert tomcat["trained"].endswith("; adapted by tomcat")
    run = tmp_path / "runs/table/csp-seed0"
    alone = czsl("evaluate", run, "--adapt", "tomcat", "recipe=ut-zappos", "--stream-seed", "3", "--json")
    alone = json.loads(alone.stdout)
    assert tomcat["reports"][0]["auc"] == alone["auc"]
    assert plain["reports"][0]["auc"] == alone["without_adaptation"]["auc"]
    [difference] = table["differences"][0]["auc"]["by_seed"]
    assert difference["difference"] == pytest.approx(alone["auc"] - alone["without_adaptation"]["auc"], abs=1e-12)
    assert "transductive" in (tmp_path / "table.md").read_text()
    alone = experiment("--rows", "csp-tomcat", "--json", text=ADAPTED)  # the runs of its row are there
    assert json.loads(alone.stdout)["tables"][0]["rows"][0]["reports"] == tomcat["reports"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{train: --method csp, adapt: tomcatt}", ["did you mean 'tomcat'", "row x"]),
        ("{train: --method csp, adapt: tomcat alfa=1}", ["'alpha'", "row x"]),
        ("{train: --method csp, adapt: tomcat stream_seed=-1}", ["stream_seed is -1"]),
        ("{train: --method csp, adapt: [tomcat]}", ["write  adapt: tomcat"]),
        ("{train: --method csp, adapt: ''}", ["unknown adaptation"]),
        ("{train: --method csp, adapt: 'tomcat \"'}", ["row x", "close the quotes"]),
        ("{train: --method troika, adapt: tomcat}", ["row x cannot be adapted", "methods that can: zero-shot"]),
        ("{of: zero, adapt: tomcat}", ["unknown row 'zero'"]),
        ("{of: x, adapt: tomcat}", ["no runs of its own"]),
        ("{of: csp}", ["of without adapt"]),
        ("{of: csp, train: --method csp, adapt: tomcat}", ["train and of"]),
        ("{method: csp}", ["has the key 'method'", "settings belong below train:", "{train: {method: ...}}"]),
        ("{trian: --method csp}", ["did you mean 'train'"]),
    ],
)
def test_rows_that_cannot_be_adapted_are_refused_before_anything_runs(experiment, tmp_path, row, words):
    text = f"common: epochs=1\nseeds: [0]\nrows:\n  csp: {{train: --method csp}}\n  x: {row}\n"
    error = experiment(text=text, expect=2).stderr
    assert not [word for word in words if word not in error], error
    assert not (tmp_path / "runs").exists()


def test_an_evaluation_of_all_rows_has_no_adaptation(experiment):
    text = "rows: {csp: {train: --method csp}}\nevaluate: [{world: closed, adapt: tomcat}]\n"
    assert "an adaptation belongs to a row" in experiment(text=text, expect=2).stderr


STOPPED = "common: epochs=30 batch=12 threads=1\nresamples: 20\nrows:\n  csp: {train: {method: csp, lr: 1e-2}}\n"
WEIGHTS = ("method.safetensors", "optimizer.safetensors", "state.json")


def newest_step(run: Path) -> int:
    found = checkpoint.newest_valid(run / "checkpoints") if run.exists() else None
    return checkpoint.step_of(found) if found else -1


@pytest.mark.fault
def test_signals_cost_nothing_that_is_finished_and_the_same_command_continues_bit_for_bit(experiment, dataset, tmp_path):
    experiment("--out", "whole", text=STOPPED)
    first, second = (tmp_path / "broken" / f"csp-seed{seed}" for seed in (0, 1))
    command = [Path(sys.executable).parent / "czsl", "experiment", "table.yaml", "--data", dataset, "--out", "broken"]

    def interrupted(run: Path, signals: list[int]) -> str:
        """Give signals after the next checkpoint of a run; the first ones come while a worker does not answer."""
        before = newest_step(run)
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            end = time.monotonic() + 120
            while newest_step(run) <= before:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.02)
            worker = json.loads((run / "worker-0.json").read_text())["pid"]
            for number in signals[:-1]:
                os.kill(worker, signal.SIGSTOP)
                process.send_signal(number)
                while not Run(run).stop_file.exists():
                    time.sleep(0.02)
            process.send_signal(signals[-1])
            out, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        assert not out
        assert "Traceback" not in err
        return err.splitlines()[-1]

    said = interrupted(first, [signal.SIGINT])
    step = newest_step(first)
    assert (
        said == f"interrupted; 0 of 2 trainings are finished, csp-seed0 continues at step {step}; repeat the command to continue"
    )
    assert not list(second.glob("checkpoints/step-*"))
    assert "csp-seed0 continues at step" in interrupted(first, [signal.SIGINT, signal.SIGINT])
    said = interrupted(second, [signal.SIGTERM])
    assert "1 of 2 trainings are finished, csp-seed1 continues at step" in said
    finished = {p: p.stat().st_mtime_ns for p in first.rglob("*")}

    [table] = json.loads(experiment("--out", "broken", "--json", text=STOPPED).stdout)["tables"]
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    assert (starts(first), starts(second)) == (3, 2)
    [whole] = json.loads(experiment("--out", "whole", "--json", text=STOPPED).stdout)["tables"]
    assert table["rows"][0]["reports"] == whole["rows"][0]["reports"]
    for run in (first, second):
        ours, theirs = (checkpoint.find(folder / "checkpoints", "last") for folder in (run, tmp_path / "whole" / run.name))
        assert ours.name == theirs.name
        assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in WEIGHTS)


@pytest.mark.fault
def test_a_signal_stops_all_trainings_that_share_a_cluster_and_the_same_command_continues(experiment, dataset, tmp_path):
    """Both trainings run through Ray Tune; each is stopped with a checkpoint and ends with the weights of an uninterrupted one."""
    experiment("--out", "whole", text=STOPPED)
    runs = [tmp_path / "broken" / f"csp-seed{seed}" for seed in (0, 1)]
    command = [
        Path(sys.executable).parent / "czsl",
        "experiment",
        "table.yaml",
        "--data",
        dataset,
        "--out",
        "broken",
        "--engine",
        "ray",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 240
        while max(map(newest_step, runs)) < 0:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert not out
    assert "Traceback" not in err
    assert "repeat the command to continue" in err.splitlines()[-1]
    assert any(newest_step(run) >= 0 for run in runs)
    experiment("--out", "broken", "--engine", "ray", "--json", text=STOPPED)
    for run in runs:
        ours, theirs = (checkpoint.find(folder / "checkpoints", "last") for folder in (run, tmp_path / "whole" / run.name))
        assert ours.name == theirs.name
        assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in WEIGHTS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_evaluation_says_how_to_continue(experiment, monkeypatch, number):
    import cluster.experiment

    monkeypatch.setattr(cluster.experiment, "measured", lambda *args, **more: signal.raise_signal(number))
    before = signal.getsignal(signal.SIGTERM)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        done = experiment("--seeds", "0", expect=130)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert done.stderr.splitlines()[-1] == "interrupted; 1 of 1 trainings are finished; repeat the command to continue"
    assert signal.getsignal(signal.SIGTERM) == before
