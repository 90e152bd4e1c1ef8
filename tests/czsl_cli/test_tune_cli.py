"""``czsl tune`` as typed: its errors, its dry run, its plot, and the guide's commands from start to end."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from czsl.runs.config import RunConfig
from czsl.runs.run import Run
from czsl.runs.search import Domain, sample
from czsl.runs.trials import Search, SearchConfig
from czsl_cli.trials_plot import plot_trials

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tune(czsl, dataset):
    """``czsl tune`` on a small dataset."""

    def run(*args, expect=0):
        data = [] if {"--data", "--resume"} & set(args) else ["--data", dataset]
        return czsl("tune", *args, *data, expect=expect)

    return run


@pytest.fixture
def space(tmp_path):
    def write(text):
        (tmp_path / "space.yaml").write_text(text)
        return "space.yaml"

    return write


def test_a_dry_run_shows_the_very_trials_and_writes_nothing(tune, space, tmp_path):
    file = space("lr: {loguniform: [1e-4, 1e-1]}\nattr_dropout: {choice: [0, 0.3]}")
    plan = json.loads(tune("-m", "csp", "--search", file, "--trials", 5, "--seed", 3, "epochs=16", "--dry-run", "--json").stdout)
    domains = {"lr": Domain("loguniform", (1e-4, 1e-1)), "attr_dropout": Domain("choice", (0.0, 0.3))}
    assert [t["values"] for t in plan["trials"]] == [sample(domains, 3, n) for n in range(5)]
    assert plan["search"]["grace"] == 2
    assert plan["search"]["config"]["epochs"] == 16
    assert plan["search"]["config"]["seed"] == plan["search"]["seed"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["space.yaml"]
    shown = tune("-m", "csp", "--search", file, "--trials", 2, "--dry-run")
    assert yaml.safe_load(shown.stdout)["trials"] == 2
    assert "attr_dropout" in shown.stderr


def test_a_grid_has_all_its_points_and_trials_take_the_first(tune, space):
    file = space("attr_dropout: {choice: [0, 0.3]}\nbatch: {quniform: [32, 96, 32]}")
    ask = ("-m", "csp", "--search", file, "--algorithm", "grid", "--dry-run", "--json")
    everything = json.loads(tune(*ask).stdout)["trials"]
    assert len({json.dumps(t["values"]) for t in everything}) == len(everything) == 6
    assert json.loads(tune(*ask, "--trials", 4).stdout)["trials"] == everything[:4]
    assert len(json.loads(tune(*ask, "--trials", 40).stdout)["trials"]) == 6


def test_the_methods_suggestion_is_searched_without_what_is_fixed(tune):
    plan = json.loads(tune("--dry-run", "--json", "num_prototypes=7").stdout)
    assert {"lr", "momentum", "pcl_weight", "pcl_tau", "pdl_weight"} <= set(plan["search"]["space"])
    assert "num_prototypes" not in plan["search"]["space"]
    assert plan["search"]["config"]["model"]["num_prototypes"] == 7
    assert len(plan["trials"]) == 16


def test_values_that_cannot_be_are_marked_beforehand(tune, space):
    file = space("momentum: {choice: [0.9, 1.5]}")
    plan = json.loads(tune("--search", file, "--algorithm", "grid", "--dry-run", "--json").stdout)
    assert sorted(bool(t["reason"]) for t in plan["trials"]) == [False, True]


@pytest.mark.parametrize(
    ("args", "text", "code", "said"),
    [
        (["-m", "zero-shot"], None, 2, "nothing to tune"),
        (["-m", "csp", "epochs=0"], None, 2, "epochs is 0"),
        (["-m", "csp", "--data", "nowhere"], None, 3, "czsl data import"),
        (["-m", "csp", "--trials", "0"], None, 2, "--trials"),
        (["-m", "csp"], "lrr: {uniform: [0, 1]}", 2, "did you mean 'lr'"),
        (["-m", "csp"], "num_prototypes: {choice: [3]}", 2, "unknown setting"),  # another method's
        (["-m", "csp"], "lr: {uniform: [0, b]}", 2, "finite numbers"),
        (["-m", "csp"], "lr: [", 2, "not YAML"),
        (["-m", "csp"], "- lr", 2, "nothing to search"),
        (["-m", "csp"], "lr: !!python/object/apply:os.getcwd []", 2, "not YAML"),
        (["-m", "csp", "lr=1"], "lr: {uniform: [0, 1]}", 2, "fixed and searched"),
        (["-m", "csp", "--algorithm", "grid"], "lr: {uniform: [0, 1]}", 2, "countable"),
        (["-m", "csp", "--algorithm", "gird"], None, 2, "'grid'"),
        (["--resume", "nowhere"], None, 2, "not a search"),
    ],
)
def test_errors_say_what_to_do_and_leave_nothing_behind(tune, space, tmp_path, args, text, code, said):
    search = ["--search", space(text)] if text is not None else []
    shown = tune(*args, *search, expect=code)
    assert shown.stdout == ""
    assert said in shown.stderr
    assert not (tmp_path / "runs").exists()


def test_a_resumed_search_keeps_its_settings(tune, tmp_path):
    config = SearchConfig({"lr": {"choice": [0.1, 0.2]}}, RunConfig(method="csp").to_dict(), algorithm="grid", trials=1)
    search = Search.create(config, tmp_path / "runs", "s")
    for given in (["--method", "csp"], ["epochs=3"], ["--seed", "0"], ["--algorithm", "grid"], ["--nodes", "1"]):
        err = tune("--resume", "runs/s", *given, expect=2).stderr
        assert "keeps its settings" in err
        assert given[0].strip("-").split("=")[0] in err or "overrides" in err
    assert Search(search.path).config == config


def test_the_plot_has_a_panel_for_each_setting(tmp_path):
    space = {"lr": Domain("loguniform", (1e-5, 1e-2)), "k": Domain("choice", (3, "five")), "w": Domain("uniform", (0, 1))}
    statuses = ["done", "pruned", "failed", "failed"]
    rows = [
        {
            "trial": n,
            "status": s,
            "val_auc": None if n == 3 else 0.4 - 0.1 * n,
            "values": {"lr": 10.0 ** -(n + 2), "k": "five", "w": 0.5},
        }
        for n, s in enumerate(statuses)
    ]
    curves = {n: [(e, 0.03 * n * e) for e in range(1, 4)] for n in range(3)}
    plot_trials(rows, curves, space, "val_auc", tmp_path / "t.svg")
    text = (tmp_path / "t.svg").read_text()
    words = ["".join(e.itertext()).strip() for e in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"lr", "k", "w", "five", "best", "stopped early", "failed"} <= set(words)
    plot_trials(rows, curves, space, "val_auc", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text
    plot_trials(rows[3:], {}, space, "val_auc", tmp_path / "empty.svg")  # nothing but failures
    long = {"k": Domain("choice", ("a choice with $5 and $6 and more", "another choice of many words", "five"))}
    plot_trials(rows, curves, long, "val_auc", tmp_path / "long.svg")
    text = (tmp_path / "long.svg").read_text()
    words = ["".join(e.itertext()).strip() for e in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"a choice with $5 and ...", "another choice of man...", "five"} <= set(words)
    assert text.count("rotate(-30)") == 3


@pytest.mark.slow
def test_the_guide_runs_as_printed(tmp_path):
    """A search, one more trial, its run evaluated, its best settings trained again; images are encoded once."""
    text = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    first = next(part for part in text.split("\n## ") if part.startswith("A search in a few minutes"))
    (tmp_path / "space.yaml").write_text(re.search(r"```yaml\n(.*?)```", first, re.DOTALL).group(1))
    env = {**os.environ, "CZSL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    env.pop("COLUMNS", None)  # the width of whoever runs the tests
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    outputs = []
    for line in re.search(r"```bash\n(.*?)```", first, re.DOTALL).group(1).splitlines():
        done = subprocess.run(shlex.split(line, comments=True), cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        outputs.append(done)
    assert len(outputs) == 4
    folder = tmp_path / "runs" / "first"
    for name in ("trials.csv", "report.json", "trials.svg", "best.yaml"):
        assert f"`{name}`" in first
        assert (folder / name).exists()
    assert "czsl train --config runs/first/best.yaml" in outputs[0].stderr
    assert "3 of 4 trials are over" in outputs[1].stderr
    table = outputs[1].stdout
    report = json.loads((folder / "report.json").read_text())
    assert [t["status"] for t in report["trials"]].count("failed") == 0
    with (folder / "trials.csv").open() as file:
        assert [row["lr"] for row in csv.DictReader(file)] == [str(t["values"]["lr"]) for t in report["trials"]]
    shown = [f"{t['values']['lr']:.4g}" for t in report["trials"]]
    assert all(lr in table for lr in shown), (shown, table)

    trials = Search(folder).trials()
    assert len(trials) == 4
    encoded = [any(r["what"].startswith(("encoding", "decoding")) for r in t.run.metrics("progress")) for t in trials]
    assert encoded == [True, False, False, False]
    best = report["best"]
    tuned = Run(tmp_path / "runs" / "tuned")
    assert tuned.config == trials[best["trial"]].run.config
    again = {r["epoch"]: r["auc"] for r in tuned.metrics("epoch")}
    assert again[best["best_epoch"]] == pytest.approx(best["val_auc"], abs=0.02)  # another number of threads
