"""Symbolic links: large images on another disk, and links that lead where they should not."""

import pytest

from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.paths import BadPathError, contained, walk
from czsl.errors import DataError
from tests.czsl.data.conftest import LENIENT, TREE, encode, kinds, labels


def moved(path, disk):
    """Move a folder to another place and leave a link."""
    disk.mkdir(exist_ok=True)
    path.rename(disk / path.name)
    path.symlink_to(disk / path.name)


def test_images_of_a_benchmark_may_be_a_link(published, tmp_path):
    wanted = import_dataset(published.root, tmp_path / "a")
    moved(published.root / "images", tmp_path / "disk")
    report = import_dataset(published.root, tmp_path / "b")
    assert (report.sha256, report.problems) == (wanted.sha256, [])


def test_folders_and_files_at_the_top_may_be_links(make_tree, tmp_path):
    root = make_tree({f"train/{pair}": 2 for pair in TREE})
    wanted = import_dataset(root, tmp_path / "a")
    moved(root / "train", tmp_path / "disk")
    assert import_dataset(root, tmp_path / "b").sha256 == wanted.sha256
    (tmp_path / "disk" / "one.png").write_bytes(encode(5, kind="PNG"))
    (root / "one.png").symlink_to(tmp_path / "disk" / "one.png")
    (root / "t.csv").write_text("image,attr,obj,split\none.png,wet,dog,train\ntrain/wet cat/0.png,wet,cat,train\n")
    import_dataset(root / "t.csv", tmp_path / "c")
    assert set(labels(tmp_path / "c")) == {"one.png", "train/wet cat/0.png"}


def test_deeper_links_need_an_option_that_the_error_names(make_tree, tmp_path):
    root = make_tree({f"train/{pair}": 2 for pair in TREE})
    wanted = import_dataset(root, tmp_path / "a")
    moved(root / "train" / "wet cat", tmp_path / "disk")
    report = import_dataset(root, tmp_path / "b", LENIENT)
    assert kinds(report) == {"unusable file": 1}
    assert "--follow-links" in report.problems[0].detail
    followed = import_dataset(root, tmp_path / "c", ImportOptions(follow_links=True))
    assert (followed.sha256, followed.problems) == (wanted.sha256, [])
    (root / "t.csv").write_text("image,attr,obj,split\ntrain/wet cat/0.png,wet,cat,train\ntrain/dry cat/0.png,dry,cat,train\n")
    report = import_dataset(root / "t.csv", tmp_path / "d", LENIENT)
    assert kinds(report) == {"path leaves the root": 1} and "--follow-links" in report.problems[0].detail
    assert import_dataset(root / "t.csv", tmp_path / "e", ImportOptions(follow_links=True)).problems == []


def test_loops_end(make_tree, tmp_path):
    root = make_tree({f"train/{pair}": 2 for pair in TREE})
    (root / "train" / "wet cat" / "loop").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (root / "again").symlink_to(root / "train")
    for number, follow in enumerate((False, True)):
        report = import_dataset(root, tmp_path / str(number), ImportOptions(max_bad=1, follow_links=follow))
        assert kinds(report)["unusable file"] == 3
        assert report.images["train"] == 12


def test_two_links_that_lead_to_each_other(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"x")
        (tmp_path / name / "to").symlink_to(tmp_path / other)
    assert sorted(walk(tmp_path / "a", "all").files) == ["to/x.png", "x.png"]


def test_contained(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (root / "folder").mkdir(parents=True)
    (root / "top").symlink_to(outside)
    (root / "folder" / "low").symlink_to(outside)
    (outside / "further").symlink_to(tmp_path)
    for links, allowed in (("inside", set()), ("top", {"top/x"}), ("all", {"top/x", "folder/low/x", "top/further/x"})):
        for name in ("top/x", "folder/low/x", "top/further/x"):
            if name in allowed:
                assert contained(root, name, links) == root / name
            else:
                with pytest.raises(BadPathError, match="leads out"):
                    contained(root, name, links)
        with pytest.raises(DataError):
            contained(root, "../outside", links)
