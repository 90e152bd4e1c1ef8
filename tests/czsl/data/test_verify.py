"""Verification finds what is damaged; statistics say what is there."""

import json

import pyarrow.parquet as pq
import pytest

from czsl.data.importing.importers import import_dataset
from czsl.data.stats import stats
from czsl.data.table import open_data
from czsl.data.verify import verify
from czsl.errors import DataError

from .conftest import encode


@pytest.fixture
def folder(published, tmp_path):
    import_dataset(published.root, tmp_path / "data")
    return tmp_path / "data"


def rewrite(path, change):
    """Pass the rows of a shard through a function."""
    table = pq.read_table(path)
    rows = [change(place, dict(row)) for place, row in enumerate(table.to_pylist())]
    pq.write_table(table.from_pylist([row for row in rows if row], schema=table.schema), path)


def set_first(**values):
    return lambda place, row: {**row, **values} if place == 0 else row


def bad_kinds(folder):
    return {problem.kind for problem in verify(folder).problems if problem.bad}


def test_an_imported_folder_passes(folder):
    report = verify(folder)
    assert report.bad == 0
    assert report.images == {"train": 12, "val": 3, "test": 6}
    assert report.sha256 == open_data(folder).sha256


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (set_first(image=encode(500)), {"changed image"}),
        (set_first(image=b""), {"changed image", "empty file"}),
        (set_first(image=encode(500)[:99]), {"changed image", "damaged image"}),
        (set_first(sha256="0" * 64), {"changed image", "changed data"}),
        (set_first(attr="shiny"), {"wrong label", "changed data"}),
        (set_first(split="test"), {"wrong label", "changed data"}),
        (set_first(id="images/train_dry_cat_1.jpg"), {"repeated id", "changed data"}),
        (set_first(id=None), {"empty cell", "wrong number of images", "changed data"}),
        (lambda place, row: row if place else None, {"wrong number of images", "changed data"}),
    ],
)
def test_every_change_of_a_shard_is_found(folder, change, kinds):
    rewrite(folder / "train-00000.parquet", change)
    assert bad_kinds(folder) == kinds


def test_an_unreadable_shard_does_not_hide_the_others(folder):
    (folder / "train-00000.parquet").write_bytes(b"no table")
    report = verify(folder)
    assert report.images == {"train": 0, "val": 3, "test": 6}
    assert {"unreadable shard", "wrong number of images", "changed data"} == {p.kind for p in report.problems if p.bad}


def test_flipped_bytes_in_a_shard_are_found(folder):
    path = folder / "val-00000.parquet"
    data = bytearray(path.read_bytes())
    place = data.index(b"\xff\xd8\xff") + 300
    data[place : place + 8] = bytes(8)
    path.write_bytes(data)
    assert bad_kinds(folder) & {"changed image", "unreadable shard"}


def test_a_changed_space_is_found(folder):
    content = json.loads((folder / "space.json").read_text())
    content["test_pairs"] = content["test_pairs"][1:]
    (folder / "space.json").write_text(json.dumps(content))
    assert bad_kinds(folder) == {"wrong label", "changed data"}


def test_a_missing_shard_and_an_extra_one(folder):
    extra = folder / "train-00009.parquet"
    extra.write_bytes((folder / "train-00000.parquet").read_bytes())
    report = verify(folder)
    assert report.bad == 0
    assert [(p.kind, p.where) for p in report.problems] == [("unlisted file", ("train-00009.parquet",))]
    (folder / "test-00000.parquet").unlink()
    with pytest.raises(DataError, match="lacks test-00000"):
        verify(folder)


def test_stats(folder):
    found = stats(open_data(folder))
    assert (found["attributes"], found["objects"], found["open_world"], found["closed_world"]) == (2, 3, 6, 6)
    assert found["splits"]["train"]["pairs"] == {"all": 4, "seen": 4, "unseen": 0}
    assert found["splits"]["test"]["pairs"] == {"all": 2, "seen": 1, "unseen": 1}
    assert found["splits"]["test"]["images"] == {"all": 6, "seen": 3, "unseen": 3}
    assert found["splits"]["val"]["images_a_pair"] == {"min": 3, "median": 3.0, "max": 3}
    assert found["image"]["width"] == {"min": 24, "median": 24.0, "max": 24}
    assert found["image"]["height"]["max"] == 18
    assert found["duplicates"]["groups"] == 0
    json.dumps(found)


def test_stats_of_a_split_without_images(published, tmp_path):
    published.records = [r for r in published.records if r["set"] != "val"]
    published.write_metadata()
    import_dataset(published.root, tmp_path / "data")
    found = stats(open_data(tmp_path / "data"))
    assert found["splits"]["val"]["images_a_pair"] is None
    assert found["splits"]["val"]["pairs_without_images"] == 1
