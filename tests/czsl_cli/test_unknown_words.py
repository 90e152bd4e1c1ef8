"""Every command that uses labels of which the built-in CLIP has no vectors warns once and lists them."""

import json

import pytest

from czsl.data.toy import dataset as toy

WARNED = "never trained on"


@pytest.fixture
def photographs(tmp_path):
    """A folder of labelled images: `wet dog`, `dry dog`, `wet apple`, two each."""
    for attr, obj in (("wet", "dog"), ("dry", "dog"), ("wet", "apple")):
        folder = tmp_path / "photos" / f"{attr} {obj}"
        folder.mkdir(parents=True)
        for i in range(6):
            toy.draw("wet", "apple", seed=i + 10 * len(attr + obj)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def once(done, *words):
    assert done.stderr.count(WARNED) == 1, done.stderr
    line = next(line for line in done.stderr.splitlines() if WARNED in line)
    assert all(f" {word}" in line for word in words), line
    return line


def test_commands_that_read_a_label_space_warn_once(czsl, photographs, tmp_path):
    czsl("data", "import", photographs, "mydata")
    once(czsl("train", "--method", "csp", "--data", "mydata", "--dry-run"), "dog", "dry")
    once(czsl("tune", "--method", "csp", "--data", "mydata", "--dry-run"), "dog", "dry")
    once(czsl("feasibility", "mydata", "--out", "f.npy"), "dog", "dry")


@pytest.mark.slow
def test_every_command_warns_once(czsl, photographs, tmp_path):
    czsl("data", "import", photographs, "mydata")
    once(czsl("train", "--method", "zero-shot", "--data", "mydata", "--name", "mine"), "dog", "dry")
    once(czsl("predict", photographs, "--run", "runs/mine", "--engine", "local"), "dog", "dry")
    once(czsl("evaluate", "runs/mine", "--engine", "local"), "dog", "dry")
    once(czsl("search", "wet dog", "--in", photographs, "--run", "runs/mine", "--engine", "local"), "dog")
    once(czsl("explain", photographs / "wet dog" / "0.png", "--run", "runs/mine"), "dog")
    once(czsl("feasibility", "runs/mine", "--out", "f.npy"), "dog", "dry")
    once(czsl("match", photographs, "--text", "a dry apple"), "dry")
    (tmp_path / "pairs.csv").write_text("old,cup\n")
    once(czsl("predict", photographs, "--zero-shot", "--pairs", "pairs.csv", "--engine", "local"), "old")


def test_labels_that_it_knows_bring_no_warning(czsl, tmp_path):
    assert WARNED not in czsl("train", "--method", "zero-shot").stderr
    space = {"attributes": ["wet"], "objects": ["apple"], "train_pairs": [], "val_pairs": [], "test_pairs": [["wet", "apple"]]}
    (tmp_path / "space.json").write_text(json.dumps(space))
    assert WARNED not in czsl("feasibility", "space.json", "--out", "f.npy").stderr
