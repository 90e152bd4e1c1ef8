"""ComCLIP on the command line: explained without a run, and evaluated on a part of the images."""

import json
from pathlib import Path

import pytest

from czsl.data.toy import dataset as toy


def test_explain_shows_weights_and_maps(czsl, tmp_path):
    toy.draw("red", "apple", seed=1).resize((120, 90)).save(tmp_path / "apple.png")
    args = ("explain", "apple.png", "--method", "comclip", "--data", "toy", "-c", "red apple")
    done = czsl(*args, "--json", "--html", "why.html")
    (answer,) = json.loads(done.stdout)["compositions"]
    parts = {part["title"]: part for part in answer["explanation"]["parts"]}
    words = {row[1]: row for row in parts["What the words see"]["rows"]}
    assert words["red"][4] + words["apple"][4] == pytest.approx(1, abs=1e-3)
    maps = [part for part in parts.values() if part["kind"] == "heat map"]
    assert [m["title"].split(" (")[0] for m in maps] == ["attribute: red", "object: apple"]
    assert (tmp_path / "why.html").read_text().count("<img") == 1 + 2 + 1
    table = czsl(*args, "regions=patch").stdout
    assert "What it changes" in table
    assert "plain CLIP" in table


def test_evaluate_says_that_it_saw_a_part(czsl):
    from czsl.data.table import open_data
    from czsl.runs.run import Run
    from czsl_cli.config import resolve

    data = open_data("toy")
    settings = resolve({"method": "comclip", "data": "toy", "threads": 1}, ["regions=patch"])
    run = Run.create(settings, data.space, Path("runs"), "mine")
    done = czsl("evaluate", run.path, "--per-pair", 1)
    pairs = {tuple(pair) for pair in data.split("test").pairs.tolist()}
    assert f"{len(pairs)} of {len(data.split('test')):,} images (at most 1 a pair, seed 0)" in done.stdout
    (run.path / "scores.npz").write_bytes(b"")
    refused = czsl(
        "evaluate", "--scores", run.path / "scores.npz", "--space", run.path / "config.yaml", "--per-pair", 1, expect=2
    )
    assert "--per-pair goes with a run" in refused.stderr
