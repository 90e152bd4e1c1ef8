"""Plain classes at the command line: folders of drawings are imported, evaluated, compared, explained, predicted and searched."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from czsl.classes import ClassSpace
from czsl.data.toy import dataset as toy
from czsl_cli.predict import tell_new_words
from czsl_cli.search import candidates, read_composition

UNSEEN = ("ball", "banana", "tree")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Twelve drawings of each of six objects of the toy, in a folder each."""
    root, count = tmp_path_factory.mktemp("drawings"), Counter()
    for name, _, obj, _, png in toy.samples(scale=0.2):
        if obj in (*UNSEEN, "cup", "fish", "book") and count[obj] < 12:
            count[obj] += 1
            (root / obj).mkdir(exist_ok=True)
            (root / obj / name.replace("/", "-")).write_bytes(png)
    assert set(count.values()) == {12}
    return root


@pytest.fixture
def run(czsl, drawings):
    """The drawings as the dataset ``data``, and ``runs/zs`` of zero-shot CLIP on it."""
    Path("unseen.txt").write_text("\n".join(UNSEEN) + "\n")
    shown = czsl("data", "import", drawings, "data", "--unseen", "unseen.txt")
    assert "6 classes, 3 of them seen in training; 0 of 72 images unusable" in shown.stdout
    assert "pairs" not in shown.stdout
    czsl("train", "--method", "zero-shot", "--data", "data", "--name", "zs")
    return "runs/zs"


def test_the_dataset_is_described_as_classes(czsl, run):
    assert "72 images checked, 0 unusable" in czsl("data", "verify", "data").stdout
    described = czsl("data", "stats", "data").stdout
    assert "images a class" in described
    assert "attributes" not in described
    assert json.loads(czsl("data", "stats", "data", "--json").stdout)["classes"] == 6
    czsl("data", "export", "data", "out", "--limit", "5")
    test_classes = json.loads(Path("data/space.json").read_text())["test"]
    assert {p.parent.name for p in Path("out").glob("*/*.png")} == set(test_classes)


def test_evaluate_prints_and_expects_the_numbers_of_classes(czsl, run, drawings):
    result = json.loads(czsl("evaluate", run, "--json", "--expect", "H>0", "--expect", "top1>=0", "--expect", "auc>=0").stdout)
    val = json.loads(czsl("evaluate", run, "--json", "--split", "val").stdout)
    assert result["gamma"] == val["gamma"] != 0
    assert result["gamma_chosen"] == "val"
    assert result["H"] == pytest.approx(2 * result["S"] * result["U"] / (result["S"] + result["U"]))
    assert {"T1", "S0", "U0", "H0", "top1", "hm"} <= result.keys()
    assert not {"attr_acc", "obj_acc", "pairs"} & result.keys()
    assert result["classes"] == 5  # three seen ones, and those of test
    table = czsl("evaluate", run, "--bootstrap", "20").stdout
    assert "harmonic mean (H)" in table
    assert "the bias of the operating point" in table
    assert "composition" not in table
    failed = czsl("evaluate", run, "--expect", "H>=1.1", expect=5)
    assert "H is" in failed.stderr
    for command in (
        ["evaluate", run, "--open-world"],
        ["predict", drawings, "--run", run, "--open-world"],
        ["index", "build", run],
    ):
        assert "plain classes have no open world" in czsl(*command, expect=2).stderr


def test_without_unseen_classes_gamma_is_0_and_it_is_said(czsl, drawings):
    shown = czsl("data", "import", drawings, "all", "--classes")
    assert "name unseen classes with --unseen FILE" in shown.stderr
    czsl("train", "--method", "zero-shot", "--data", "all", "--name", "all")
    done = czsl("evaluate", "runs/all", "--json")
    result = json.loads(done.stdout)
    assert result["gamma"] == 0
    assert result["S"] == result["S0"] > 0
    assert result["U"] is result["T1"] is result["H"] is None
    assert "the bias on unseen labels is 0: no validation image shows an unseen label" in done.stderr
    czsl("evaluate", "runs/all", "--expect", "H>0", expect=2)


def test_a_method_that_needs_attributes_refuses_before_a_run_is_made(czsl, run):
    refused = czsl("train", "--method", "clusPro", "--data", "data", "--name", "cp", expect=2)
    assert "ClusPro needs attributes and objects" in refused.stderr
    assert "zero-shot, lazsl" in refused.stderr
    assert "needs attributes" in czsl("tune", "--method", "clusPro", "--data", "data", "--trials", "1", expect=2).stderr
    assert not Path("runs/cp").exists()
    assert "no open world" in czsl("feasibility", "data", "--out", "f.npy", expect=2).stderr


def test_explain_and_compare_name_classes(czsl, run, drawings):
    image = next(iter(sorted((drawings / "cup").iterdir())))
    czsl("train", "--method", "lazsl", "--data", "data", "--name", "la", "num_regions=3")
    shown = czsl("explain", image, "--run", "runs/la", "-c", "cup", "-c", "polar bear", "--html", "why.html")
    assert "polar bear: Shares by phrase" in shown.stdout
    assert "classes that training never saw" in shown.stderr
    assert "composition" not in shown.stdout
    page = Path("why.html").read_text()
    assert ">Classes</h2>" in page
    Path("names.txt").write_text("cup\nboat\n")
    content = json.loads(czsl("explain", image, "--method", "zero-shot", "--classes", "names.txt", "--json").stdout)
    assert {c["class"] for c in content["classes"]} == {"cup", "boat"}
    result = json.loads(czsl("compare", run, "runs/la", "--resamples", "20", "--json").stdout)
    assert {pair["class"] for pair in result["pairs"]} <= {*UNSEEN, "cup", "fish", "book"}
    assert "classes where most images" in czsl("compare", run, "runs/la", "--resamples", "20").stdout


def test_candidates_that_contradict_each_other_are_refused(czsl, run, drawings):
    Path("names.txt").write_text("cup\n")
    twice = czsl("predict", drawings, "--run", run, "--classes", "names.txt", "--pairs", "names.txt", expect=2)
    assert "--pairs and --classes were given" in twice.stderr


def test_a_class_is_read_in_the_spelling_of_the_space(capsys):
    space = ClassSpace.of(["Polar_Bear", "dog"], ["dog"])
    assert read_composition("polar bear", space) == ("", "Polar_Bear")
    assert read_composition(" sea lion ", space) == ("", "sea lion")
    content, pairs = candidates(space, [("", "sea lion"), ("", "dog")])
    assert content["classes"] == ["Polar_Bear", "dog", "sea lion"]
    assert pairs == [["", "Polar_Bear"], ["", "dog"], ["", "sea lion"]]
    tell_new_words(content, space)
    assert capsys.readouterr().err == "classes that training never saw, taken from CLIP's own words: sea lion\n"


@pytest.mark.slow
def test_predict_and_search_name_classes(czsl, run, drawings):
    czsl("predict", drawings, "--run", run, "-k", "2", "--out", "found.csv")
    rows = list(csv.DictReader(Path("found.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0].keys() == {"image", "rank", "class", "score", "calibrated", "prob"}
    assert len(rows) == 144
    right = [row["class"] == row["image"].split("/")[0] for row in rows if row["rank"] == "1"]
    assert sum(right) > 0.5 * len(right)
    Path("names.txt").write_text("cup\nboat\n")
    lines = czsl("predict", drawings / "cup", "--zero-shot", "--classes", "names.txt", "--json").stdout.splitlines()
    assert {json.loads(line)["predictions"][0]["class"] for line in lines} <= {"cup", "boat"}
    found = json.loads(czsl("search", run, "tree", "--in", drawings, "--top", "12", "--html", "found.html", "--json").stdout)[0]
    assert (found["class"], found["seen"]) == ("tree", False)
    assert sum(r["image"].startswith("tree/") for r in found["images"]) >= 6
    assert "tree (never seen in training)" in Path("found.html").read_text()


@pytest.mark.slow
def test_two_workers_find_the_same_numbers_and_gamma(czsl, run):
    alone = czsl("evaluate", run, "--json").stdout
    assert czsl("evaluate", run, "--workers-per-node", "2", "--json").stdout == alone
