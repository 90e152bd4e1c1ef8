"""``czsl tune RUN --adapt``: the same numbers as ``czsl evaluate``, resumed after an interruption, refusals before any work."""

from __future__ import annotations

import csv
import json
from xml.etree import ElementTree

import pytest
import torch

from cluster.evaluate import evaluate_run
from cluster.tuning import adapting
from cluster.tuning.adaptation_search import TRIALS, AdaptationSearch, AdaptationSearchConfig
from cluster.work.evaluation import EvalConfig
from czsl.data.table import open_data
from czsl.errors import DataError, UsageError
from czsl.runs.run import Run
from czsl.runs.search import Domain, sample
from czsl_cli.config import resolve
from czsl_cli.trials_plot import plot_trials
from methods.adaptation.plan import Plan

SPACE = "alpha: {uniform: [0, 4]}\nshots: {choice: [1, 3]}\n"


@pytest.fixture
def run(dataset, tmp_path):
    """A run that can be adapted."""
    config = resolve({"method": "zero-shot", "data": str(dataset), "clip": "tiny", "threads": 1})
    return Run.create(config, open_data(str(dataset)).space, tmp_path / "runs", "zero-shot")


@pytest.fixture
def tune(czsl, run, tmp_path):
    """``czsl tune runs/zero-shot`` with a small space."""
    (tmp_path / "space.yaml").write_text(SPACE)

    def start(*args, expect=0):
        return czsl("tune", "runs/zero-shot", "--search", "space.yaml", *args, expect=expect)

    return start


@pytest.mark.parametrize("world", [[], ["--open-world"]])
def test_rows_are_what_evaluate_says_on_the_validation_images(tune, run, tmp_path, world):
    shown = tune("--adapt", "tda", "--trials", 2, "--stream-seed", 0, "--stream-seed", "given", "--name", "s", "beta=3", *world)
    report = json.loads((tmp_path / "runs/s/report.json").read_text())
    rows = {row["trial"]: row for row in report["trials"]}
    assert list(rows) == ["none", "given", 0, 1]
    domains = {"alpha": Domain("uniform", (0.0, 4.0)), "shots": Domain("choice", (1, 3))}
    plans = {"none": [None], "given": [Plan.of("tda", {"beta": 3}, seed) for seed in (0, None)]}
    for number in range(2):
        assert rows[number]["values"] == sample(domains, 0, number)
        plans[number] = [Plan.of("tda", {"beta": 3, **rows[number]["values"]}, seed) for seed in (0, None)]
    for name, row in rows.items():
        reports = [evaluate_run(run, EvalConfig(split="val", open_world=bool(world), adapt=plan)) for plan in plans[name]]
        best = [max(r["thresholds"], key=lambda t: t["auc"]) if world else r for r in reports]
        assert row["val_auc"] == pytest.approx(sum(b["auc"] for b in best) / len(best), abs=1e-15)
        assert row["val_hm"] == pytest.approx(sum(b["hm"] for b in best) / len(best), abs=1e-15)
        assert row["auc_range"] == [min(b["auc"] for b in best), max(b["auc"] for b in best)]
    with (tmp_path / "runs/s/trials.csv").open() as file:
        assert [r["alpha"] for r in csv.DictReader(file)] == ["", "", *(str(rows[n]["values"]["alpha"]) for n in range(2))]
    words = {"".join(e.itertext()).strip() for e in ElementTree.parse(tmp_path / "runs/s/trials.svg").iter()}
    assert {"alpha", "shots", "no adaptation", "as given"} <= words
    assert "no adaptation" in shown.stdout


def test_the_best_settings_are_printed_as_words_or_none_at_all(tune, monkeypatch):
    aucs = iter([0.3, 0.2, 0.4, 0.4, 0.3, 0.2, 0.3, 0.1])
    monkeypatch.setattr(adapting, "_numbers", lambda *_: {"auc": next(aucs), "hm": 0.5})
    monkeypatch.setattr(adapting._Scorer, "_extremes", lambda *_: None)
    some = ("--adapt", "tda", "--trials", 2, "--stream-seed", 0, "beta=3")
    won = tune(*some, "--name", "won").stderr
    values = json.loads(tune(*some, "--dry-run", "--json").stdout)["trials"][0]["values"]
    assert "best: trial 0, validation AUC 40.0, +10.00 points" in won
    assert f"czsl evaluate runs/zero-shot --adapt tda beta=3 alpha={values['alpha']} shots={values['shots']}" in won
    lost = tune(*some, "--name", "lost").stderr
    assert "use it without --adapt" in lost
    assert "czsl evaluate" not in lost


@pytest.mark.parametrize("algorithm", ["random", "optuna", "grid"])
def test_an_interrupted_search_goes_on_with_the_same_rows(tune, czsl, tmp_path, monkeypatch, algorithm):
    if algorithm == "optuna":
        pytest.importorskip("optuna")
    (tmp_path / "space.yaml").write_text("shots: {choice: [1, 2, 3]}\nnegative: {choice: [true, false]}\n")
    some = ("--adapt", "tda", "--trials", 4, "--stream-seed", 0, "--algorithm", algorithm)
    tune(*some, "--name", "whole")
    score, calls = adapting.reduce_stream, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(*args, **options)

    monkeypatch.setattr(adapting, "reduce_stream", interrupted)
    assert "czsl tune --resume runs/part" in tune(*some, "--name", "part", expect=130).stderr
    with (tmp_path / "runs/part" / TRIALS).open("a") as file:
        file.write('{"trial": 2, "stat')  # as a crash leaves it
    whole, part = AdaptationSearch(tmp_path / "runs/whole"), AdaptationSearch(tmp_path / "runs/part")
    assert [r["trial"] for r in part.rows()] == ["none", "given", 0, 1]
    assert "4 of 6 rows are over" in czsl("tune", "--resume", "runs/part").stderr
    assert [r["trial"] for r in part.rows()] == ["none", "given", 0, 1, 2, 3]
    if algorithm != "optuna":  # which knows less after a resume
        assert [_numbers(r) for r in part.rows()] == [_numbers(r) for r in whole.rows()]
    more = czsl("tune", "--resume", "runs/part", "--trials", 6)
    assert [r["trial"] for r in AdaptationSearch(part.path).rows()][2:] == [0, 1, 2, 3, 4, 5]
    assert "trial 5" in more.stderr
    assert "trial 3:" not in more.stderr


def _numbers(row):
    return {key: value for key, value in row.items() if key != "seconds"}


def test_impossible_values_are_rows_with_a_reason(tune, tmp_path):
    (tmp_path / "space.yaml").write_text("beta: {choice: [1.0, -1.0]}\n")
    shown = tune("--adapt", "tda", "--algorithm", "grid", "--stream-seed", 0, "--json")
    rows = json.loads(shown.stdout)["trials"][2:]
    assert sorted(row["status"] for row in rows) == ["done", "failed"]
    assert "failed: tda: beta=-1.0" in shown.stderr
    marked = json.loads(tune("--adapt", "tda", "--algorithm", "grid", "--dry-run", "--json").stdout)["trials"]
    assert [bool(trial["reason"]) for trial in marked] == [row["status"] == "failed" for row in rows]


def test_what_is_searched_is_encoded_once(run, tmp_path, monkeypatch):
    """Also where features are no cache's: a tower with adapters."""
    config = AdaptationSearchConfig(str(run.path), "tda", {"shots": {"choice": [1, 2]}}, {}, trials=2, orders=[0])
    config.checkpoint_sha256 = adapting.fingerprint(run, "best")
    tower = []
    from methods.zero_shot.model import ZeroShot

    kept = ZeroShot.image_features
    monkeypatch.setattr(ZeroShot, "frozen_images", property(lambda self: False))
    monkeypatch.setattr(ZeroShot, "image_features", lambda self, batch: tower.append(len(batch["ids"])) or kept(self, batch))
    search = AdaptationSearch.create(config, tmp_path / "runs", "s")
    with torch.inference_mode():
        adapting.search_adaptation(search)
    assert len(search.rows()) == 4
    images, batch = len(open_data(run.config.data).split("val")), run.config.eval_batch
    assert len(tower) == -(-images // batch)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--adapt", "tomcut"], "did you mean 'tomcat'"),
        (["--adapt", "tomcat", "alhpa=1"], "did you mean 'alpha'"),
        (["--adapt", "tda", "alpha=1"], "fixed and searched"),
        (["--adapt", "tda", "beta=-1"], "0 or more"),
        (["--adapt", "tda", "--epochs", "3"], "--epochs with --adapt"),
        (["--adapt", "tda", "--nodes", "2"], "--nodes with --adapt"),
        (["--adapt", "tda", "--stream-seed", "x"], "not a seed"),
        (["--adapt", "tda", "--algorithm", "grid"], "countable"),
        (["--adapt", "tda", "lr=1"], "unknown setting"),
        ([], "a run without --adapt"),
    ],
)
def test_refusals_leave_nothing_behind(tune, tmp_path, args, said):
    shown = tune(*args, expect=2)
    assert said in shown.stderr
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["zero-shot"]


def test_further_refusals(czsl, run, dataset, tmp_path):
    assert "not a run folder" in czsl("tune", "nowhere", "--adapt", "tda", expect=2).stderr
    assert "--open-world without --adapt" in czsl("tune", "--open-world", expect=2).stderr
    (tmp_path / "lr.yaml").write_text("lr: {uniform: [0, 1]}")
    assert "unknown setting 'lr'" in czsl("tune", run.path, "--adapt", "tda", "--search", "lr.yaml", expect=2).stderr
    config = resolve({"method": "troika", "data": str(dataset), "clip": "tiny"})
    other = Run.create(config, open_data(str(dataset)).space, tmp_path / "runs", "troika")
    assert "methods that can" in czsl("tune", other.path, "--adapt", "tda", expect=2).stderr
    czsl("tune", run.path, "--adapt", "tda", "--trials", 1, "--stream-seed", 0, "--name", "s")
    assert "keeps its settings" in czsl("tune", "--resume", "runs/s", "--adapt", "tda", expect=2).stderr


def test_a_search_does_not_continue_with_other_weights(run, tmp_path):
    config = AdaptationSearchConfig(str(run.path), "tda", {"shots": {"choice": [1, 2]}}, {}, checkpoint_sha256="0" * 64)
    search = AdaptationSearch.create(config, tmp_path / "runs", "s")
    with pytest.raises(UsageError, match="has changed"):
        adapting.search_adaptation(search)
    with pytest.raises(UsageError, match="exists"):
        AdaptationSearch.create(config, tmp_path / "runs", "s")


def test_validation_images_of_seen_pairs_alone_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "Curve", lambda extremes: type("Curve", (), {"numbers": lambda self: {"auc": float("nan")}})())
    config = AdaptationSearchConfig(str(run.path), "tda", {"shots": {"choice": [1, 2]}}, {})
    config.checkpoint_sha256 = adapting.fingerprint(run, "best")
    with pytest.raises(DataError, match="no seen, or no unseen"):
        adapting.search_adaptation(AdaptationSearch.create(config, tmp_path / "runs", "s"))


@pytest.mark.parametrize(
    "text", ["[", "- a", "run: 3", "orders: []", "orders: [-1]", "orders: [x]", "trials: many", "more: 1", "!!python/name:os.x"]
)
def test_a_damaged_search_is_an_error(run, tmp_path, text):
    config = AdaptationSearchConfig(str(run.path), "tda", {"shots": {"choice": [1, 2]}}, {})
    search = AdaptationSearch.create(config, tmp_path / "runs", "s")
    kept = (search.path / search.settings).read_text()
    content = text if text[0] in "[-!" else "\n".join([ln for ln in kept.splitlines() if not ln.startswith(text[:5])] + [text])
    if text.startswith("orders"):
        content = kept[: kept.index("orders:")] + text + "\n" + kept[kept.index("trials:") :]
    (search.path / search.settings).write_text(content)
    with pytest.raises(UsageError, match="cannot be read"):
        AdaptationSearch(search.path)


def test_rows_that_were_edited_are_scored_again(tune, czsl, tmp_path):
    tune("--adapt", "tda", "--trials", 2, "--stream-seed", 0, "--name", "s")
    search = AdaptationSearch(tmp_path / "runs/s")
    whole = [_numbers(row) for row in search.rows()]
    for key, value in [
        ("auc_range", None), ("auc_range", [None]), ("auc_range", "x"), ("values", {}), ("values", {"alpha": 1.0, "shots": 77}),
        ("values", {"alpha": "x", "shots": 1}), ("values", {"alpha": True, "shots": 1}), ("trial", True), ("trial", 0.0), ("trial", 7),
        ("val_auc", None), ("val_auc", "0.3"), ("val_hm", float("nan")), ("seconds", None), ("status", "failed"), ("status", []),
        ("more", 1),
    ]:  # fmt: skip
        rows = search.rows()
        rows[2][key] = value
        (search.path / TRIALS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert "3 of 4 rows are over" in czsl("tune", "--resume", "runs/s").stderr, (key, value)
        assert [_numbers(row) for row in search.rows()] == whole
    rows = search.rows()
    (search.path / TRIALS).write_text("".join(json.dumps({**row, "status": "failed", "reason": "x"}) + "\n" for row in rows))
    czsl("tune", "--resume", "runs/s")  # the two rows without values cannot fail, so they are scored again
    assert [_numbers(row) for row in search.rows()] == whole


def test_a_plot_leaves_out_values_that_no_setting_has(tmp_path):
    rows = [
        {"trial": n, "status": "done", "values": v, "val_auc": 0.3} for n, v in enumerate([{"k": 3}, {"k": 9}, {}, {"k": None}])
    ]
    plot_trials(rows, None, {"k": Domain("choice", (3, 5))}, "val_auc", tmp_path / "t.svg")
    assert ElementTree.parse(tmp_path / "t.svg").getroot().tag.endswith("svg")
