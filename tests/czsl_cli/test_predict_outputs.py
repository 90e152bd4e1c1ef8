"""``czsl predict`` with a page, sorted folders and a review file: through the entry point, with real answers, in one process."""

from __future__ import annotations

import csv
import errno
import json
import shutil

import pytest
import torch

import cluster.predict
from cluster.work.predictor import Predictor
from czsl.data.toy import dataset as toy

PAIRS = [("red", "apple"), ("blue", "ball"), ("red", "ball")]


@pytest.fixture
def computed(monkeypatch):
    """Answers without Ray: the same predictor in this process; ``fail_after`` batches it is interrupted."""
    facts = {"batches": 0, "fail_after": None}

    def batches(work, profile):
        predictor = Predictor(work.config, torch.device("cpu"))
        for batch in work.batches:
            if facts["fail_after"] == facts["batches"]:
                raise KeyboardInterrupt
            facts["batches"] += 1
            yield predictor.predict(work.source, batch)

    monkeypatch.setattr(cluster.predict, "_computed", batches)
    monkeypatch.setattr(cluster.predict, "BATCH", 4)
    return facts


@pytest.fixture
def work(tmp_path, czsl, computed):
    """Nine drawings in two folders, one broken file, and candidates."""
    for i in range(9):
        folder = tmp_path / "photos" / ("new" if i % 3 else "")
        folder.mkdir(parents=True, exist_ok=True)
        toy.draw(*PAIRS[i % 3], seed=i).save(folder / f"{i}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    (tmp_path / "pairs.txt").write_text("".join(f"{a},{o}\n" for a, o in PAIRS))
    return tmp_path


CANDIDATES = ("--zero-shot", "--pairs", "pairs.txt")


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_all_three_agree_with_the_records(work, czsl):
    before = files(work / "photos")
    done = czsl("predict", "photos", *CANDIDATES, "--html", "page.html", "--sort-into", "sorted", "--review", "r.csv",
                "--review-size", 3, "--out", "out.jsonl", expect=6)  # fmt: skip
    records = [json.loads(line) for line in (work / "out.jsonl").read_text().splitlines()]
    good = {r["image"]: r["predictions"] for r in records if not r["error"]}
    assert len(records) == 10 and len(good) == 9
    for found in good.values():
        assert sum(p["prob"] for p in found) == pytest.approx(1, abs=1e-5)  # all three candidates are named
        assert found[0]["prob"] == max(p["prob"] for p in found)
    expected = {f"{p[0]['attr']} {p[0]['obj']}/{image.rpartition('/')[2]}": before[image] for image, p in good.items()}
    assert files(work / "sorted") == expected
    with (work / "r.csv").open(newline="") as file:
        review = list(csv.DictReader(file))
    least = sorted(good, key=lambda image: (good[image][0]["prob"], image))[:3]
    assert [row["image"] for row in review] == [f"photos/{image}" for image in least]
    page = (work / "page.html").read_text()
    assert all(f'"{image}"' in page for image in good)
    assert "broken.png" in page
    for text in (
        "page: page.html",
        "9 images copied",
        "1 are not sorted",
        "review: 3 images in r.csv",
        "broken.png: not an image",
    ):
        assert text in done.stderr
    assert files(work / "photos") == before


def test_an_interrupted_prediction_ends_with_the_same_page_folders_and_file(work, czsl, computed):
    outputs = ("--html", "page.html", "--sort-into", "sorted", "--review", "r.csv", "--out", "out.jsonl")
    czsl(
        "predict",
        "photos",
        *CANDIDATES,
        "--html",
        "whole/page.html",
        "--sort-into",
        "whole/sorted",
        "--review",
        "whole/r.csv",
        expect=6,
    )
    computed.update(batches=0, fail_after=2)
    czsl("predict", "photos", *CANDIDATES, *outputs, expect=130)
    assert not (work / "page.html").exists() and not (work / "r.csv").exists()
    assert 0 < len(files(work / "sorted")) < 9
    computed["fail_after"] = None
    done = czsl("predict", "photos", *CANDIDATES, *outputs, expect=6)
    assert computed["batches"] == 3  # two before, one after
    assert "were in place before" in done.stderr
    assert files(work / "sorted") == files(work / "whole" / "sorted")
    assert set(files(work / "page.files")) == set(files(work / "whole" / "page.files"))
    labels = [
        [row.rpartition("/")[2] for row in path.read_text().splitlines()] for path in (work / "r.csv", work / "whole" / "r.csv")
    ]
    assert labels[0] == labels[1]


def test_a_disk_that_fills_up_keeps_the_predictions(work, czsl, computed, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        done = czsl("predict", "photos", *CANDIDATES, "--sort-into", "sorted", "--out", "out.jsonl", expect=4)
    assert "no space left to sort into" in done.stderr
    assert not files(work / "sorted")
    czsl("predict", "photos", *CANDIDATES, "--sort-into", "sorted", "--out", "out.jsonl", expect=6)
    assert len(files(work / "sorted")) == 9
    assert computed["batches"] == 3  # none was computed a second time


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--sort-into", "photos"), "is the folder of the images"),
        (("--sort-into", "photos/sorted"), "lies inside photos"),
        (("--sort-into", "photos/../photos/new"), "lies inside photos"),
        (("--sort-into", "."), "lies inside --sort-into"),
        (("--sort-into", "pairs.txt"), "is a file"),
        (("--link",), "--link goes with --sort-into"),
        (("--html", "photos/page.html"), "lies inside photos"),
        (("--html", "sorted/page.html", "--sort-into", "sorted"), "lies inside sorted"),
        (("--html", "page.txt"), "ends in .html"),
        (("--html", "mine.html"), "not a page of czsl predict"),
        (("--review", "pairs.txt"), "is a .csv"),
        (("--review", "mine.csv"), "not overwritten"),
        (("--review", "new.csv", "--out", "new.csv"), "as --out and as --review"),
        (("--review-size", 3), "--review-size goes with --review"),
        (("--review", "new.csv", "--review-size", 0), "0 is not in the range"),
    ],
)
def test_bad_outputs_are_refused_before_anything_is_done(work, czsl, computed, options, what):
    (work / "mine.html").write_text("mine")
    (work / "mine.csv").write_text("mine")
    before = files(work)
    done = czsl("predict", "photos", *CANDIDATES, *options, expect=2)
    assert what in done.stderr
    assert files(work) == before
    assert computed["batches"] == 0


def test_one_image_may_be_sorted_beside_itself(work, czsl):
    czsl("predict", "photos/0.png", *CANDIDATES, "--sort-into", "photos/sorted", "--link")
    (link,) = (work / "photos" / "sorted").rglob("0.png")
    assert link.is_symlink() and link.samefile(work / "photos" / "0.png")


def test_what_is_left_out_of_the_folder_is_named(work, czsl):
    (work / "photos" / "linked").symlink_to(work)
    (work / "photos" / "out.png").symlink_to("/etc/hostname")
    done = czsl("predict", "photos", *CANDIDATES, "--sort-into", "sorted", expect=6)
    assert "leads out" in done.stderr and "linked" in done.stderr and "out.png" in done.stderr


def test_the_loop_from_doubt_to_a_larger_dataset(work, czsl, dataset):
    czsl("predict", "photos", *CANDIDATES, "--review", "doubtful.csv", "--review-size", 4, expect=6)
    shown = czsl("data", "import", "doubtful.csv", "more", "--add-to", dataset)
    assert "4 images added" in shown.stdout
    assert "0 changed, 4 as predicted" in shown.stdout
    czsl("data", "verify", "more")


def test_sorted_folders_come_back_as_a_dataset(work, czsl):
    czsl("predict", "photos", *CANDIDATES, "--sort-into", "sorted", expect=6)
    assert "9" in czsl("data", "import", "sorted", "back").stdout
