"""Every kind of bad image, label and path in a source, by name."""

import json
import os
from pathlib import Path

import pytest

from czsl.data.importing.importers import ImportOptions, TooManyBadError, import_dataset
from czsl.data.verify import verify

from ..conftest import LENIENT, TREE, encode, kinds, png_header, problem


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (encode(99)[:200], "damaged image"),
        (b"", "empty file"),
        (b"Dear reader, this is no image.", "not an image"),
        (png_header(30_000, 30_000), "too many pixels"),
    ],
)
def test_bad_image_files(published, tmp_path, content, kind):
    published.add("bad.jpg", "dry cat", "train", content)
    with pytest.raises(TooManyBadError, match="1 of 22 images") as error:
        import_dataset(published.root, tmp_path / "out")
    assert problem(error.value.report, kind).where == ("images/bad.jpg",)
    assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    report = import_dataset(published.root, tmp_path / "out", ImportOptions(max_bad=1 / 22))
    found = problem(report, kind)
    assert (found.where, found.done, found.bad) == (("images/bad.jpg",), "skipped", True)
    assert sum(report.images.values()) == 21
    written = json.loads((tmp_path / "out" / "import.json").read_text())["problems"]
    assert written == [p.to_json() for p in report.problems]


def test_the_suggested_max_bad_is_enough(published, tmp_path):
    for i in range(2):
        published.add(f"bad{i}.jpg", "dry cat", "train", b"")
    with pytest.raises(TooManyBadError) as error:
        import_dataset(published.root, tmp_path / "out")
    suggested = float(error.value.fix.rsplit(" ", 1)[1])
    assert suggested < 0.1
    assert import_dataset(published.root, tmp_path / "out", ImportOptions(max_bad=suggested)).bad == 2


def test_max_pixels_option(published, tmp_path):
    published.add("large.jpg", "dry cat", "train", encode(50, size=(100, 100)))
    assert import_dataset(published.root, tmp_path / "a").bad == 0
    report = import_dataset(published.root, tmp_path / "b", ImportOptions(max_bad=1, max_pixels=9_999))
    assert problem(report, "too many pixels").where == ("images/large.jpg",)


def test_missing_image(published, tmp_path):
    published.record("absent.jpg", "dry cat", "train")
    report = import_dataset(published.root, tmp_path / "out", LENIENT)
    assert problem(report, "missing image").where == ("images/absent.jpg",)


@pytest.mark.parametrize(
    ("pair", "split", "detail"),
    [
        ("shiny dog", "train", "attribute 'shiny' is in no pair list"),
        ("wet whale", "train", "object 'whale' is in no pair list"),
        ("wet dog", "train", "'wet dog' is not a train pair"),
    ],
)
def test_unknown_pair(published, tmp_path, pair, split, detail):
    published.add("odd.jpg", pair, split)
    report = import_dataset(published.root, tmp_path / "out", LENIENT)
    assert problem(report, "unknown pair").detail == detail
    assert report.bad == 1


@pytest.mark.parametrize("split", ["dev", "../train"])
def test_unknown_split(published, tmp_path, split):
    published.add("odd.jpg", "dry cat", split)
    assert problem(import_dataset(published.root, tmp_path / "out", LENIENT), "unknown split").bad


def test_unseen_pair_that_nothing_prepares(published, tmp_path):
    with (published.root / "compositional-split-natural" / "test_pairs.txt").open("a") as file:
        file.write("wet whale\nwild dog\n")
    published.add("whale.jpg", "wet whale", "test")
    report = import_dataset(published.root, tmp_path / "out")
    assert report.bad == 0
    assert report.images["test"] == 7
    found = {p.where: p.detail for p in report.problems if p.kind == "never trained"}
    assert set(found) == {("wet whale",), ("wild dog",)}
    assert "object 'whale'" in found["wet whale",]
    assert "attribute 'wild'" in found["wild dog",]
    assert problem(report, "pair without images").where == ("wild dog",)
    assert kinds(verify(tmp_path / "out")) == kinds(report)


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/passwd", "a/../../../outside.jpg", "link.jpg", "folder/x.jpg"])
def test_paths_that_leave_the_root(published, tmp_path, name):
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "x.jpg").write_bytes(encode(70))
    (tmp_path / "outside.jpg").write_bytes(encode(71))
    (published.root / "outside.jpg").write_bytes(encode(72))
    (published.root / "images" / "link.jpg").symlink_to(outside / "x.jpg")
    (published.root / "images" / "folder").symlink_to(outside)
    published.record(name, "dry cat", "train")
    report = import_dataset(published.root, tmp_path / "out", LENIENT)
    found = problem(report, "path leaves the root")
    assert name in found.where[0]
    assert found.bad
    assert sum(report.images.values()) == 21


@pytest.mark.parametrize("name", ["a\0b.jpg", "\ud800.jpg", "x" * 5000 + ".jpg"])
def test_names_no_file_can_have(published, tmp_path, name):
    published.record(name, "dry cat", "train")
    report = import_dataset(published.root, tmp_path / "out", LENIENT)
    assert report.bad == 1
    json.loads((tmp_path / "out" / "import.json").read_text())


def test_tree_links_and_odd_files(make_tree, tmp_path):
    root = make_tree({f"train/{pair}": 2 for pair in TREE})
    outside = make_tree({"wet sea": 2}, tmp_path / "outside")
    (root / "train" / "wet cat" / "out.png").symlink_to(outside / "wet sea" / "0.png")
    (root / "train" / "wet cat" / "in.png").symlink_to(root / "train" / "dry cat" / "0.png")
    (root / "train" / "wet sea").symlink_to(outside / "wet sea")
    (root / "train" / "loop").symlink_to(root)
    os.mkfifo(root / "train" / "wet cat" / "pipe.png")
    Path(os.fsdecode(os.fsencode(root / "train" / "wet cat") + b"/\xff.png")).write_bytes(encode(1))
    report = import_dataset(root, tmp_path / "out", LENIENT)
    bad = {p.where[0]: p.kind for p in report.problems if p.bad}
    assert bad == {
        "train/loop": "unusable file",
        "train/wet sea": "unusable file",
        "train/wet cat/out.png": "path leaves the root",
        "train/wet cat/pipe.png": "unusable file",
        "train/wet cat/\udcff.png": "unusable name",
    }
    assert report.images["train"] == 13
    assert "conflicting labels" in kinds(report)  # of the link inside the tree
    json.loads((tmp_path / "out" / "import.json").read_text())
