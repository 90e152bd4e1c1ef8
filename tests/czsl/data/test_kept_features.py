"""Features of photographs that are kept between commands: found again, never wrong, bounded, and worth no failure."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading

import numpy as np
import pytest

from czsl.data import kept_features
from czsl.data.inputs import gather
from czsl.data.kept_features import FeatureStore, Kept, store_file

CAPACITY = 2**30
OLD = (1, 10, 10, 10)  # size and times of a file that nobody has changed for long


def stamp(name: str, *facts: int):
    return (name.encode(), *(facts or OLD[1:]))


def kept(i: int, name: str | None = None, width: int = 8) -> Kept:
    return Kept(bytes([i]) * 32, stamp(name or str(i)), np.full((2, width), i, np.float32))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "a.sqlite"


def test_features_are_found_by_stamp_and_by_content_in_a_later_process(path):
    store = FeatureStore(path, CAPACITY)
    assert store.find([stamp("1"), None]) == [None, None]
    store.add([kept(1), kept(2)])
    store.close()
    assert store.find([stamp("1")]) == [None]
    store = FeatureStore(path, CAPACITY)
    found = store.find([stamp("2"), stamp("3"), None, stamp("1")])
    assert [None if f is None else f.tolist() for f in found] == [[[2.0] * 8] * 2, None, None, [[1.0] * 8] * 2]
    for changed in ((11, 10, 10), (10, 11, 10), (10, 10, 11)):
        assert store.find([stamp("1", *changed)]) == [None]
    assert store.find_content(bytes([9]) * 32, stamp("9")) is None
    assert store.find_content(bytes([2]) * 32, stamp("renamed"))[0, 0] == 2
    assert store.find([stamp("renamed")])[0][0, 0] == 2


def test_float64_stays_and_other_types_are_not_kept(path):
    store = FeatureStore(path, CAPACITY)
    precise = np.array([1 / 3])
    store.add([Kept(b"a", None, precise), Kept(b"b", None, np.zeros(3, np.int8))])
    assert store.find_content(b"a", None).tobytes() == precise.tobytes()
    assert store.find_content(b"b", None) is None


def test_a_file_that_has_just_changed_is_read_again(tmp_path, path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    fresh = gather([tmp_path / "a.jpg"]).source
    now = fresh.version(fresh.names[0])
    store = FeatureStore(path, CAPACITY)
    store.add([Kept(b"x", now, np.ones(3, np.float32))])
    assert store.find([now]) == [None]
    assert store.find_content(b"x", None) is not None


def test_a_version_follows_the_file(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    source = gather([file]).source
    name = source.names[0]
    before = source.version(name)
    assert source.version(name) == before
    status = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a tool that copies times does
    assert source.version(name)[:3] == before[:3]
    assert source.version(name) != before
    file.unlink()
    assert source.version(name) is None


def test_the_oldest_make_room(path):
    store = FeatureStore(path, 200_000)
    for i in range(100):
        store.add([kept(i, width=1000)])
    assert path.stat().st_size < 400_000
    assert store.find([stamp("0")]) == [None]
    assert store.find([stamp("99")])[0] is not None
    with sqlite3.connect(path) as base:
        left = base.execute("select (select count(*) from feature), (select count(*) from file)").fetchone()
    assert left[0] == left[1]
    assert 10 < left[0] < 26


def test_other_stores_go_first_the_least_recently_used_one_before_the_rest(path):
    for name, at in (("b", 1000), ("c", 2000)):
        other = FeatureStore(path.with_name(f"{name}.sqlite"), CAPACITY)
        other.add([kept(i, width=10_000) for i in range(5)])
        other.close()
        os.utime(other.path, (at, at))
    (path.parent / "mine.txt").write_text("stays")
    FeatureStore(path, 600_000).close()
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.sqlite", "c.sqlite", "mine.txt"]
    FeatureStore(path, 100_000).close()
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.sqlite", "mine.txt"]


def test_a_limit_of_nothing_keeps_nothing(path):
    store = FeatureStore(path, 0)
    store.add([kept(1)])
    assert store.find([stamp("1")]) == [None]
    assert not path.exists()


@pytest.mark.parametrize("content", [b"no database at all, but longer than a header" * 30, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_store_begins_empty(path, content, caplog):
    path.parent.mkdir()
    path.write_bytes(content)
    store = FeatureStore(path, CAPACITY)
    assert "is damaged" in caplog.text
    store.add([kept(1)])
    assert store.find([stamp("1")])[0] is not None


def test_a_store_of_another_format_begins_empty(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as base:
        base.execute("pragma user_version = 77")
    store = FeatureStore(path, CAPACITY)
    store.add([kept(1)])
    assert store.find([stamp("1")])[0] is not None


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("float32 3", b"1234"),
        ("int8 4", b"1234"),
        ("float32 99999999999 0", b""),
        ("float32 -1", b"1234"),
        ("", b"1234"),
        ("float32 1", "text"),
        ("float32 1", np.float32("nan").tobytes()),
    ],
)
def test_rows_that_make_no_sense_are_not_there(path, form, data):
    store = FeatureStore(path, CAPACITY)
    with sqlite3.connect(path) as base:
        base.execute("insert into feature values (?, ?, ?)", (b"x", form, data))
    assert store.find_content(b"x", None) is None
    store.add([Kept(b"x", None, np.ones(2, np.float32))])
    assert store.find_content(b"x", None).tolist() == [1, 1]


def test_a_folder_that_cannot_be_made_costs_a_warning_only(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        store = FeatureStore(tmp_path / "cache" / "a.sqlite", CAPACITY)
        store.add([kept(1)])
    assert caplog.text.count("are not kept") == 1
    assert store.find([stamp("1")]) == [None]


def test_threads_and_stores_share_a_file(path):
    stores, errors = [FeatureStore(path, CAPACITY) for _ in range(2)], []

    def work(k):
        try:
            for i in range(k, 60, 4):
                stores[k % 2].add([kept(i)])
                assert stores[(k + 1) % 2].find([stamp(str(i))])[0][0, 0] == i
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(f is not None for f in stores[0].find([stamp(str(i)) for i in range(60)]))


def test_every_fact_names_another_file():
    files = {store_file(*facts) for facts in (["a", "b"], ["a", "c"], ["ab", ""], ["a", "b", ""])}
    assert len(files) == 4
    assert kept_features.cache_folder() in store_file("a").parents
