"""The folder of a search: what it says about its trials, also after somebody killed the search."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from czsl.errors import UsageError
from czsl.runs.config import RunConfig
from czsl.runs.trials import Search, SearchConfig

SPACE = {"lr": {"loguniform": ["1e-5", "1e-2"]}, "pdl_terms": {"choice": [[1.0, 1.0], [1.0, 0.5]]}}


@pytest.fixture
def search(tmp_path):
    return Search.create(SearchConfig(SPACE, RunConfig(method="csp").to_dict(), trials=4), tmp_path, "s")


@pytest.fixture
def add(search, small_space):
    def make(number, *aucs, end=None, **facts):
        values = {"lr": 0.1 * (number + 1), "pdl_terms": [1.0, 0.5]}
        trial = search.add(number, values, RunConfig(method="csp", lr=values["lr"]), small_space)
        for epoch, auc in enumerate(aucs, 1):
            trial.run.log(
                {"event": "epoch", "epoch": epoch, "auc": auc, "hm": 0.5, "step": epoch, "time": 100.0 * number + epoch}
            )
        if end:
            trial.run.log({"event": "end", "status": end, "step": 9, "time": 100.0 * number + 9, **facts})
        return trial

    return make


def test_a_search_reads_back_what_it_was_made_with(search, tmp_path):
    again = Search(search.path)
    assert again.config == search.config
    assert again.config.base == RunConfig(method="csp")
    with pytest.raises(UsageError, match="never overwritten"):
        Search.create(search.config, tmp_path, "s")
    with pytest.raises(UsageError, match=r"no tune\.yaml"):
        Search(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[1]", "trials: [", "space: {}\nnonsense: 5", "algorithm: sorcery", "trials: many", "config: {lrr: 1}"]
)
def test_settings_edited_by_hand_are_checked(search, text):
    content = yaml.safe_load((search.path / "tune.yaml").read_text())
    kept = "" if text in ("", "[1]") or text.endswith("[") else yaml.safe_dump({**content, **yaml.safe_load(text)})
    (search.path / "tune.yaml").write_text(kept or text)
    with pytest.raises(UsageError, match="cannot be read"):
        Search(search.path)


def test_status_comes_from_the_runs_own_files(search, add, small_space):
    add(0, 0.1, 0.3, end="done")
    assert add(1, 0.1).status() == "unfinished"
    assert add(2, 0.1, end="stopped").status() == "unfinished"  # somebody pressed Ctrl-C
    failed = add(3, 0.2, end="failed", reason="the loss is not a number")
    assert failed.status() == "failed"
    assert search.add(4, {"lr": -1.0}, None, small_space, "lr is -1").status() == "failed"
    stopped = add(5, 0.1, end="stopped")
    stopped.pruned = 1
    stopped.keep()
    assert not search.is_over()
    found = search.trials()
    assert [t.number for t in found] == list(range(6))
    assert [t.status() for t in found] == ["done", "unfinished", "unfinished", "failed", "failed", "pruned"]
    assert found[3].summary("val_auc")["reason"] == "the loss is not a number"
    assert found[4].run is None
    assert found[4].summary("val_auc")["val_auc"] is None


def test_a_trial_counts_by_its_best_epoch_and_time_leaves_out_pauses(search, add):
    trial = add(0, 0.2, 0.4, 0.3)
    assert [r["value"] for r in trial.curve("val_auc")] == [0.2, 0.4, 0.3]
    assert [r["value"] for r in trial.reports("val_auc")] == [0.2, 0.4, 0.4]
    trial.run.log({"event": "start", "step": 3, "time": 5000.0})
    trial.run.log({"event": "end", "status": "done", "step": 3, "time": 5004.0})
    row = trial.summary("val_auc")
    assert (row["best_epoch"], row["val_auc"], row["epochs_done"], row["seconds"]) == (2, 0.4, 3, 6.0)


def test_results_as_files(search, add):
    add(0, 0.3, end="done")
    add(1, 0.5, 0.4, end="done")
    add(2, 0.9, end="failed", reason="broke")  # better, but nobody could train it again
    add(3, end="done")  # no epoch had the metric
    report = search.write_results(search.summaries(), status="done")
    assert report == json.loads((search.path / "report.json").read_text())
    assert report["best"]["trial"] == 1
    assert yaml.safe_load((search.path / "best.yaml").read_text())["lr"] == pytest.approx(0.2)
    with (search.path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["status"] for r in rows] == ["done", "done", "failed", "done"]
    assert rows[1]["pdl_terms"] == "[1.0, 0.5]"
    assert rows[2]["reason"] == "broke"


def test_a_search_is_over_when_all_that_was_asked_for_is(search, add):
    for number in range(3):
        add(number, 0.1, end="done")
    assert not search.is_over()
    add(3, end="failed")
    assert search.is_over()
    add(7, 0.1)
    assert not search.is_over()


def test_nothing_best_writes_no_settings(search, add):
    add(0, 0.3, end="failed", reason="broke")
    assert search.write_results(search.summaries())["best"] is None
    assert not (search.path / "best.yaml").exists()


def test_what_a_killed_process_left_half_made_goes(search, add):
    add(0, 0.1)
    half = add(1)
    (half.path / "trial.json").unlink()
    assert [t.number for t in search.trials()] == [0]
    search.clean()
    assert sorted(p.name for p in search.folder.iterdir()) == ["000"]
    add(1)
    (search.folder / "000" / "trial.json").write_text("{")
    with pytest.raises(UsageError, match="repeat this trial"):
        search.trials()
