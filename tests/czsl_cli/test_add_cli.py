"""``czsl train --method gde`` and ``czsl add`` as a user meets them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def tagger(czsl, dataset):
    """A run of gde and a folder of new photos."""
    shown = czsl("train", "--method", "gde", "--data", dataset, "--name", "tagger", "threads=1")
    assert "chosen on validation images: text" in shown.stderr
    assert "epoch" not in shown.stderr
    for i, name in enumerate(("red apple", "frosted apple")):
        Path("photos", name).mkdir(parents=True)
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
        Path("photos", name, "new.png").write_bytes(buffer.getvalue())
    return "runs/tagger"


def test_a_tagger_is_trained_grown_searched_and_brought_back(czsl, tagger):
    assert "would add 2 images" in czsl("add", tagger, "photos", "--dry-run").stderr
    assert "nothing was added" in czsl("add", tagger, "--history").stderr
    shown = czsl("add", tagger, "photos")
    assert "new word: frosted" in shown.stdout
    assert "added 2 images of 2 compositions; back with: czsl add runs/tagger --undo" in shown.stderr
    assert "are there already" in czsl("add", tagger, "photos", expect=3).stderr
    listed = json.loads(czsl("add", tagger, "--history", "--json").stdout)
    assert [len(one["images"]) for one in listed] == [2]
    assert "frosted" in czsl("add", tagger, "--history").stdout
    found = json.loads(czsl("search", tagger, "frosted apple", "--in", "photos", "--json").stdout)
    assert "never saw" not in json.dumps(found)
    explained = czsl("explain", "photos/frosted apple/new.png", "--run", tagger, "-c", "frosted apple", "--html", "why.html")
    assert "the direction of frosted" in explained.stdout
    assert "The direction of apple" in Path("why.html").read_text()
    assert "images were added to this run" in czsl("evaluate", tagger).stderr
    czsl("index", "build", tagger)
    answers = czsl("predict", "photos", "--run", tagger, "--index", "--json").stdout
    assert "frosted" in answers
    assert "undone: 2 images" in czsl("add", tagger, "--undo").stderr
    assert "nothing to undo" in czsl("add", tagger, "--undo", expect=2).stderr
    assert "were added" not in czsl("evaluate", tagger).stderr


def test_add_refuses_what_contradicts_itself(czsl, tagger):
    for arguments, told, code in (
        (("photos", "--undo"), "give one folder PHOTOS, or one of", 2),
        ((), "give one folder PHOTOS, or one of", 2),
        (("--undo", "--skip-known"), "take no other option", 2),
        (("nowhere",), "no folder nowhere", 3),
    ):
        assert told in czsl("add", tagger, *arguments, expect=code).stderr


def test_what_gde_has_none_of_is_refused(czsl, tagger, dataset):
    assert "gde has no epochs" in czsl("train", "--method", "gde", "epochs=5", expect=2).stderr
    assert "starts from nothing" in czsl("train", "--from", tagger, "--data", dataset, expect=2).stderr
    assert "is finished" in czsl("train", "--resume", tagger, expect=2).stderr
    assert "chooses its own settings" in czsl("tune", "--method", "gde", expect=2).stderr
    assert "it is a share between 0 and 1" in czsl("train", "--method", "gde", "text=2", expect=2).stderr
    assert '"steps": 0' in czsl("train", "--method", "gde", "--data", dataset, "--dry-run", "--json").stdout
    assert "is not a run folder" in czsl("add", "photos", "photos", expect=2).stderr


def test_plain_classes_train_and_are_refused_by_add(czsl, dataset):
    from czsl.data.table import open_data

    data = open_data(dataset)
    for i, row in enumerate(data.split("train").rows()):
        folder = Path("objects", row.obj)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(data.split("train").image_bytes(i))
    names = sorted(p.name for p in Path("objects").iterdir())
    Path("unseen.txt").write_text("\n".join(names[:4]))
    czsl("data", "import", "objects", "classes", "--unseen", "unseen.txt")
    shown = czsl("train", "--method", "gde", "--data", "classes", "--name", "kinds", "threads=1")
    assert "chosen on validation images" in shown.stderr
    assert "have no training image" in shown.stderr
    assert json.loads(czsl("evaluate", "runs/kinds", "--json").stdout)["classes"] > 4
    assert "is a run on plain classes" in czsl("add", "runs/kinds", "objects", expect=2).stderr
