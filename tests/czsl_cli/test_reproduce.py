"""``czsl reproduce`` from the command to the verdict, on small data with expectation files of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from czsl.runs.run import Run
from methods.published.expectation import Expected, from_papers, resolved
from methods.published.records import published
from methods.registry import METHODS

EXPECT = {
    "clip": "tiny",
    "settings": "--recipe small epochs=1 batch=32",
    "expect": {"closed": {"auc": 0.1, "seen": 2}, "open": {"hm": 0}},
}


@pytest.fixture
def reproduce(czsl, dataset, tmp_path):
    """``czsl reproduce csp drawn`` with an expectation file of the given content."""

    def run(*args, content=EXPECT, expect=0, data=dataset):
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (tmp_path / "mine.yaml").write_text(text)
        more = ("--data", data) if data else ()
        return czsl("reproduce", "csp", "drawn", "--expect", "mine.yaml", *more, *args, expect=expect)

    return run


def test_a_reproduction_trains_compares_and_is_repeated_without_training(reproduce, czsl, tmp_path):
    plan = json.loads(reproduce("--dry-run", "--json").stdout)
    assert (plan["epochs"], plan["batch"], plan["recipe"], plan["clip"]) == (1, 32, "small", "tiny")
    assert plan["expected"]["closed"]["auc"] == {"value": 0.1, "tolerance": 1.0}
    assert not (tmp_path / "runs").exists()
    assert "epochs" in reproduce("--dry-run").stdout

    shown = reproduce("--seeds", "0,1")
    assert "all expected numbers were reached" in shown.stdout
    out = tmp_path / "runs/reproduce-csp-drawn"
    result = json.loads((out / "reproduction.json").read_text())
    assert [(n["world"], n["number"]) for n in result["numbers"]] == [("closed", "auc"), ("closed", "seen"), ("open", "hm")]
    auc = result["numbers"][0]
    binned = [json.loads(czsl("evaluate", run, "--json").stdout)["auc_ref20"] for run in result["runs"]]
    assert auc["seeds"] == pytest.approx([100 * x for x in binned])
    assert auc["ours"] == pytest.approx(100 * sum(binned) / 2)

    # The same command evaluates only; a number that is out of reach ends with exit code 5, whatever was reached before.
    starts = len(list(Run(result["runs"][0]).metrics("start")))
    high = {**EXPECT, "expect": {"closed": {"auc": {"value": 99, "tolerance": 0.5}, "hm": 0}}}
    missed = reproduce("--seed", "0", content=high, expect=5)
    assert "1 of 2 numbers were not reached" in missed.stderr
    assert "below" in missed.stdout
    assert "1 of 1 runs are finished" in missed.stderr
    assert len(list(Run(result["runs"][0]).metrics("start"))) == starts
    reproduce("--seed", "0", "--tolerance", "100", content=high)

    # Another evaluation of the run, with the other rule for infeasible pairs, does not change what is compared.
    czsl("evaluate", result["runs"][0], "--open-world", "--threshold", "0.9")
    assert json.loads(reproduce("--seeds", "0,1", "--json").stdout)["numbers"] == result["numbers"]

    # An interrupted run continues.
    run = Run(result["runs"][0])
    lines = run.metrics_file.read_text().splitlines()
    run.metrics_file.write_text("\n".join(x for x in lines if '"end"' not in x) + "\n")
    assert "run 1 of 1: csp-seed0" in reproduce("--seed", "0").stderr
    assert len(list(run.metrics("start"))) == starts + 1


def test_an_adapted_reproduction_says_so(reproduce):
    content = {**EXPECT, "adapt": "tomcat recipe=ut-zappos", "expect": {"closed": {"auc": 0}}}
    found = reproduce("--json", content=content)
    assert json.loads(found.stdout)["adaptation"]["name"] == "tomcat"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("expect: {closed: {auc: .nan}}", ["auc is nan", "percent"]),
        ("expect: {closed: {auc: 101}}", ["auc is 101"]),
        ("expect: {closed: {auc: high}}", ["auc is 'high'"]),
        ("expect: {closed: {auc: true}}", ["auc is True"]),
        ("expect: {closed: {auc: {tolerance: 1}}}", ["auc is None"]),
        ("expect: {closed: {auc: {value: 1, tolerence: 1}}}", ["did you mean 'tolerance'"]),
        ("expect: {closed: {}}", ["expects no numbers in the closed world"]),
        ("expect: {}", ["expects no numbers"]),
        ("clip: tiny", ["expects no numbers"]),
        ("", ["holds no expectation"]),
        ("[1]", ["holds no expectation"]),
        ("expct: {closed: {auc: 1}}", ["did you mean 'expect'"]),
        ("expect: {closd: {auc: 1}}", ["did you mean 'closed'"]),
        ("expect: {closed: {acu: 1}}", ["did you mean 'auc'"]),
        ("expect: {closed: {seen: 0.5, unseen: 0.4, auc: 0.2}}", ["look like fractions"]),
        ("expect: {closed: {seen: 50, unseen: 40, auc: 30}}", ["auc 30 is impossible"]),
        ("{expect: {closed: {auc: 1}}, tolerance: -1}", ["tolerance is -1"]),
        ("{expect: {closed: {auc: 1}}, clip: 3}", ["clip is 3"]),
        ("{expect: {closed: {auc: 1}}, dataset: toy}", ["is about toy"]),
        ("{expect: {closed: {auc: 1}}, settings: {epochz: 1}}", ["'epochs'"]),
        ("{expect: {closed: {auc: 1}}, settings: {epochs: 1, seed: 3}}", ["seeds"]),
        ("{expect: {closed: {auc: 1}}, adapt: tomcatt}", ["did you mean 'tomcat'"]),
        ("expect: !!python/object:os.system {}", ["cannot be read"]),
    ],
)
def test_a_bad_expectation_file_is_refused_before_anything_runs(reproduce, tmp_path, content, words):
    error = reproduce(content=content, expect=2).stderr
    assert not [word for word in words if word not in error], error
    assert not (tmp_path / "runs").exists()


def test_missing_and_other_data_say_what_to_do(czsl, reproduce, dataset, tmp_path):
    error = czsl("reproduce", "clusPro", "mit-states", expect=3).stderr
    assert all(
        word in error for word in ("release_dataset.zip", "compositional_split_natural.tar.gz", "czsl data import", "--data")
    )
    plan = czsl("reproduce", "clusPro", "mit-states", "--dry-run")
    assert "released" in plan.stdout
    assert "23.8" in plan.stdout
    assert "release_dataset.zip" in plan.stderr
    other = czsl("reproduce", "clusPro", "mit-states", "--data", dataset, expect=3).stderr
    assert "is not MIT-States as published" in other
    assert "(30,338)" in other
    # A folder of the usual name is found; with an expectation of one's own other labels are a warning.
    shutil.copytree(dataset, tmp_path / "data" / "ut-zappos")
    content = yaml.safe_dump({**EXPECT, "expect": {"closed": {"auc": 0}}})
    (tmp_path / "own.yaml").write_text(content)
    shown = czsl("reproduce", "csp", "UT_Zappos", "--expect", "own.yaml", "--dry-run")
    assert "cannot be compared" in shown.stderr
    assert not (tmp_path / "runs").exists()
    assert "drawn" in reproduce(data=None, expect=3).stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("clustpro", "mit-states"), "clusPro"),
        (("clusPro", "mit-stats"), "did you mean 'mit-states'"),
        (("tomcat", "vaw-czsl"), "--expect FILE"),
        (("csp", "cgqa"), "has no recipe for cgqa"),
        (("lazsl", "mit-states"), "lazsl"),
        (("caila", "mit-states", "--backbone", "ViT-B/16"), "did you mean 'ViT-"),
        (("vp-cmjl", "mit-states", "epochz=3"), "'epochs'"),
    ],
)
def test_what_is_unknown_has_the_nearest_name(czsl, args, words):
    assert words in czsl("reproduce", *args, expect=2).stderr


@pytest.mark.parametrize(
    ("value", "verdict"), [(10.0, "reached"), (9.0, "reached"), (8.99, "below"), (11.01, "above"), (None, "undefined")]
)
def test_a_verdict_is_about_the_tolerance(value, verdict):
    assert Expected(10.0, 1.0).verdict(value) == verdict


def test_every_published_row_of_a_method_with_a_recipe_resolves():
    """Settings that papers' rows lead to exist: preset, recipe and CLIP."""
    from czsl_cli.config import resolve

    count = 0
    for record in published().records:
        ours = record.paper.ours
        if ours not in METHODS or not record.backbone.startswith("ViT"):
            continue
        try:
            found = from_papers(ours, record.dataset, (record.world,), None, record.backbone)
        except Exception as error:
            assert "has no recipe" in str(error), error
            continue
        assert found.numbers[record.world]["auc"].value == record.numbers["auc"]
        config = resolve({**found.settings, "clip": found.clip, "data": "x"})
        assert config.method == ours
        count += 1
    assert count > 40
    assert resolved("tomcat", "cgqa")["recipe"] == "tomcat-cgqa"
    assert from_papers("caila", "cgqa", ("closed",), None, "ViT-B/32").settings["recipe"] == "cgqa"
    assert from_papers("caila", "cgqa", ("closed",), None, None).settings["batch"] == 16
    assert Path(from_papers("clusPro", "cgqa", ("closed",), None, None).clip).name == "ViT-L-14"
