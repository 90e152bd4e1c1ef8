"""``czsl published``: the list, its forms, and names that are misspelt."""

from __future__ import annotations

import json

import pytest

from methods.published.records import published


def test_the_command_lists_them(czsl):
    shown = czsl("published", "MIT_states", "--method", "clusPro", "--world", "closed")
    assert "23.8 ± 0.2" in shown.stdout
    assert "ICLR 2025, table 1" in shown.stdout
    assert "verify before you cite" in shown.stderr
    rows = json.loads(czsl("published", "--world", "open", "--json").stdout)
    assert len(rows) == len(published().select(world="open"))
    assert czsl("published", "ut-zappos", "--csv").stdout.count("\n") == 1 + len(published().select("ut-zappos"))
    assert "| CSP | ViT-L/14 | 64.2 |" in czsl("published", "ut-zappos", "--method", "csp", "--md").stdout
    adapted = czsl("published", "mit-states", "--method", "tomcat")
    assert adapted.stdout.count("adapted to the unlabelled") == 2
    assert "read in the table of the named source" in adapted.stderr
    assert "no such number" in czsl("published", "vaw-czsl", "--method", "csp").stderr
    assert "did you mean 'ut-zappos'" in czsl("published", "zapos", expect=2).stderr
    assert "did you mean 'ClusPro'" in czsl("published", "--method", "clustpro", expect=2).stderr


@pytest.mark.parametrize("method", ["tomcat", *sorted({r.paper.ours for r in published().records if r.paper.ours})])
def test_the_commands_of_a_card_run(czsl, method):
    rows = json.loads(czsl("published", "--method", method, "--json").stdout)
    assert len(rows) == len(published().select(None, method, None)) > 0
    assert "plan" in czsl("reproduce", method, "mit-states", "--dry-run").stdout


def test_an_evaluation_stands_above_what_papers_report(czsl, dataset):
    czsl("train", "--method", "zero-shot", "--data", dataset, "--name", "plain")
    done = czsl("evaluate", "runs/plain", "--published", "mit-states")
    assert "next to what papers report on MIT-States" in done.stdout
    assert "these numbers cannot be compared" in done.stderr
    report = json.loads(czsl("evaluate", "runs/plain", "--published", "mit-states", "--json").stdout)
    assert {r["world"] for r in report["published"]} == {"closed"}
    open_world = json.loads(czsl("evaluate", "runs/plain", "--open-world", "--published", "mit-states", "--json").stdout)
    assert {r["world"] for r in open_world["published"]} == {"open"}


def test_an_adapted_row_says_so(czsl, dataset):
    czsl("train", "--method", "zero-shot", "--data", dataset, "--name", "plain")
    assert "adapted by tda" in " ".join(czsl("evaluate", "--published", "mit-states", "--adapt", "tda").stdout.split())


def test_numbers_of_papers_stand_beside_what_they_measured(czsl, dataset, tmp_path):
    czsl("train", "--method", "zero-shot", "--data", dataset, "--name", "plain")
    refused = {
        "did you mean 'mit-states'?": ("--published", "mit-state"),
        "--published with --split val": ("--published", "mit-states", "--split", "val"),
        "--published with --topk 3": ("--published", "mit-states", "--topk", "3"),
    }
    for said, options in refused.items():
        assert said in czsl("evaluate", "runs/plain", *options, expect=2).stderr
    (tmp_path / "scores.npz").write_bytes(b"")
    files = ("--scores", "scores.npz", "--published", "mit-states")
    assert "--published goes with a run" in czsl("evaluate", *files, expect=2).stderr
