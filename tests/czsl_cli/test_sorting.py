"""Sorting images into folders: every name is a file name, nothing is overwritten, nothing is lost, and it can be repeated."""

from __future__ import annotations

import errno
import os
import shutil
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from czsl.errors import SetupError, UsageError
from czsl_cli.sorting import LabelFolders, Sorter, _folded, check_apart, copy_new

PAIRS = {"attributes": ["wet", "dry"], "objects": ["dog", "cat"]}


def record(image, attr="wet", obj="dog", **more):
    return {"image": image, "predictions": [{"attr": attr, "obj": obj, "score": 1.0, "prob": 0.5}], "error": None, **more}


@pytest.fixture
def photos(tmp_path):
    """Four files, two of which have the same name and the same bytes."""
    folder = tmp_path / "photos"
    for name, content in (("a.jpg", b"A"), ("b.jpg", b"B"), ("x/same.jpg", b"twin"), ("y/same.jpg", b"twin")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


NAMES = ["a.jpg", "b.jpg", "x/same.jpg", "y/same.jpg"]


def content(folder):
    """Bytes by path of everything below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sort(photos, dest, records, **options):
    sorter = Sorter(dest, photos, NAMES, PAIRS, **options)
    for r in records:
        sorter.add(r)
    return sorter


@pytest.mark.parametrize("link", [False, True])
def test_images_go_into_folders_of_their_composition_and_the_unsure_into_one(photos, tmp_path, link):
    before = content(photos)
    dest = tmp_path / "sorted"
    records = [record("a.jpg"), record("b.jpg", "dry", "cat", sure=False), *(record(n, "dry", sure=True) for n in NAMES[2:])]
    sorter = sort(photos, dest, records, link=link)
    found = content(dest)
    assert found["wet dog/a.jpg"] == b"A"
    assert found["unsure/b.jpg"] == b"B"
    twins = [name for name in found if name.startswith("dry dog/")]
    assert len(twins) == 2 and {found[name] for name in twins} == {b"twin"}  # equal files are two files
    assert (dest / "wet dog" / "a.jpg").is_symlink() == link
    assert (sorter.placed, sorter.kept, sorter.failed) == (4, 0, {})
    assert content(photos) == before


def test_sorting_again_changes_nothing(photos, tmp_path):
    dest, records = tmp_path / "sorted", [record(name) for name in NAMES]
    sort(photos, dest, records[:2])  # interrupted
    again = sort(photos, dest, records)
    assert (again.placed, again.kept) == (2, 2)
    whole = content(dest)
    third = sort(photos, dest, records)
    assert (third.placed, third.kept) == (0, 4)
    assert content(dest) == whole


def test_a_name_that_is_taken_is_not_overwritten(photos, tmp_path):
    dest = tmp_path / "sorted"
    (dest / "wet dog").mkdir(parents=True)
    (dest / "wet dog" / "a.jpg").write_bytes(b"mine")
    for _ in range(2):
        sort(photos, dest, [record("a.jpg")])
        found = content(dest)
        assert found.pop("wet dog/a.jpg") == b"mine"
        assert list(found.values()) == [b"A"]


def test_same_size_and_time_are_not_the_same_image(photos, tmp_path):
    dest = tmp_path / "sorted"
    (dest / "wet dog").mkdir(parents=True)
    other = dest / "wet dog" / "a.jpg"
    other.write_bytes(b"Z")
    time = photos.joinpath("a.jpg").stat().st_mtime_ns
    os.utime(other, ns=(time, time))
    sort(photos, dest, [record("a.jpg")])
    assert sorted(content(dest).values()) == [b"A", b"Z"]


def test_what_is_in_the_way_costs_its_images_only(photos, tmp_path):
    dest, outside = tmp_path / "sorted", tmp_path / "outside"
    dest.mkdir()
    outside.mkdir()
    (dest / "wet dog").symlink_to(outside)
    (dest / "dry dog").write_bytes(b"a file")
    sorter = sort(photos, dest, [record("a.jpg"), record("b.jpg", "dry"), record("x/same.jpg", "wet", "cat")])
    assert sorter.placed == 1
    assert set(sorter.failed) == {"a.jpg", "b.jpg"}
    assert not list(outside.iterdir())
    assert "2 are not sorted" in sorter.summary()


def test_unreadable_and_vanished_images_are_counted(photos, tmp_path):
    sorter = sort(photos, tmp_path / "sorted", [{"image": "b.jpg", "predictions": [], "error": "empty file"}, record("gone.jpg")])
    assert (sorter.placed, sorter.unreadable, list(sorter.failed)) == (0, 1, ["gone.jpg"])
    assert "2 are not sorted" in sorter.summary()


def test_a_full_disk_ends_it_and_leaves_no_half_file(photos, tmp_path, monkeypatch):
    dest = tmp_path / "sorted"
    sort(photos, dest, [record("b.jpg")])

    def full(source, target):
        target.write_bytes(b"ha")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(SetupError, match="no space left"):
        sort(photos, dest, [record("a.jpg")])
    assert content(dest) == {"wet dog/b.jpg": b"B"}


def test_a_file_system_without_hard_links_gets_copies_as_well(photos, tmp_path, monkeypatch):
    def refused(*args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    sort(photos, tmp_path / "sorted", [record("a.jpg")])
    assert content(tmp_path / "sorted") == {"wet dog/a.jpg": b"A"}
    with pytest.raises(FileExistsError):
        copy_new(photos / "b.jpg", tmp_path / "sorted" / "wet dog" / "a.jpg")
    assert content(tmp_path / "sorted") == {"wet dog/a.jpg": b"A"}


def test_what_a_killed_process_left_goes(photos, tmp_path):
    folder = tmp_path / "sorted" / "wet dog"
    folder.mkdir(parents=True)
    (folder / ".czsl-999999999.tmp").write_bytes(b"half")
    (folder / f".czsl-{os.getppid()}.tmp").write_bytes(b"at work")
    sort(photos, tmp_path / "sorted", [record("a.jpg")])
    assert {p.name for p in folder.iterdir()} == {"a.jpg", f".czsl-{os.getppid()}.tmp"}


@pytest.mark.parametrize("dest", ["photos", "photos/sorted", "photos/x/../sorted", ".", "link"])
def test_the_source_and_what_overlaps_it_are_refused(photos, tmp_path, monkeypatch, dest):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(photos)
    before = content(photos)
    with pytest.raises(UsageError):
        check_apart(tmp_path / dest, photos)
    assert content(photos) == before
    check_apart(tmp_path / "photos2", photos)  # a name that begins alike


def test_a_file_is_no_folder_to_sort_into(photos, tmp_path):
    (tmp_path / "sort.txt").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        check_apart(tmp_path / "sort.txt", photos)


# -- names of folders ----------------------------------------------------------------------------------------------------
HOSTILE = [
    "..", ".", "a/b", "/etc", "C:\\x", "nul", "CON", "con", "", " x ", "x.", "\0", "\n", "\u202egpj", "ü", "u\u0308", "%2F", "a,b", "~",
    "a" * 300, "a" * 299 + "b", "🍎" * 80, "old stone", "old", "stone bridge", "bridge", "Wet", "wet", "wet ", "\udc80", "unsure", "UNSURE",
]  # fmt: skip


def check_folders(names):
    assert len({_folded(name) for name in names}) == len(names)  # different on disks that ignore case, too
    for name in names:
        assert len(name.encode()) <= 255
        assert name.isprintable()
        assert not set(name) & set('<>:"/\\|?*')
        assert name[0] not in " ." and name[-1] not in " ."
        assert name.split(".")[0].lower() not in {"con", "nul", "prn", "aux", "com1", "lpt1"}


def test_hostile_names_become_different_usable_folders():
    names = [name for name in HOSTILE if name]
    pairs = LabelFolders({"attributes": names, "objects": names})
    check_folders([pairs.folder({"attr": a, "obj": o}) for a, o in product(names, names)])
    classes = LabelFolders({"classes": names})
    found = [classes.folder({"class": name}) for name in names]
    check_folders(found)
    assert "unsure" not in {name.casefold() for name in found}


@settings(max_examples=150)
@given(
    *(st.lists(st.text("aAbB ._,~%/ü\u202e\n", min_size=1, max_size=5), min_size=1, max_size=5, unique=True) for _ in range(2))
)
def test_different_labels_have_different_folders(attributes, objects):
    folders = LabelFolders({"attributes": attributes, "objects": objects})
    check_folders([folders.folder({"attr": a, "obj": o}) for a, o in product(attributes, objects)])


def test_ordinary_names_stay_as_they_are():
    folders = LabelFolders({"attributes": ["wet", "old", "old stone", "navy_blue"], "objects": ["dog", "bridge", "stone bridge"]})
    folder = lambda a, o: folders.folder({"attr": a, "obj": o})  # noqa: E731
    assert folder("wet", "dog") == "wet dog"
    assert folder("navy_blue", "stone bridge") == "navy_blue stone bridge"
    assert folder("old stone", "dog") == "old stone dog"
    assert (folder("old stone", "bridge"), folder("old", "stone bridge")) == ("old stone, bridge", "old, stone bridge")


def test_folders_of_a_file_system_hold_hostile_names(photos, tmp_path):
    names = [name for name in HOSTILE if name]
    dest = tmp_path / "sorted"
    sorter = Sorter(dest, photos, NAMES, {"classes": names})
    for name in names:
        sorter.add({"image": "a.jpg", "predictions": [{"class": name, "score": 1.0, "prob": 1.0}], "error": None})
    assert sorter.placed == len(names)
    assert all(path.parent.parent == dest for path in dest.rglob("*.jpg"))
