"""Prediction files: the same records in three formats, whole or not at all."""

import csv
import json
from typing import Any

import pyarrow.parquet as pq
import pytest

from czsl.data.files.predictions import PARQUET_ROWS, Partial, check_format, failed, inputs_sha256, write
from czsl.errors import UsageError


def record(name, pairs=(("wet", "dog", 12.25), ("dry", "dog", -3.5))):
    return {
        "image": name,
        "predictions": [{"attr": a, "obj": o, "score": s} for a, o, s in pairs],
        "attributes": [{"name": "wet", "prob": 0.75}],
        "objects": [{"name": "dog", "prob": 1.0}],
        "error": None,
    }


RECORDS = [record("a.jpg"), failed('bad/ü,"x".png', "not an image"), record("c.jpg", [("old", "faux leather", 1 / 3)])]


def written(path, records=RECORDS):
    passed = list(write(path, iter(records)))
    assert passed == list(records)  # handed on as they are
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return path


def test_json_lines(tmp_path):
    lines = written(tmp_path / "new" / "p.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == RECORDS


def test_parquet_across_row_groups(tmp_path):
    many = [record(f"{i}.jpg") for i in range(PARQUET_ROWS + 2)] + RECORDS
    assert pq.read_table(written(tmp_path / "new" / "p.parquet", many)).to_pylist() == many


def test_csv_has_a_row_an_image_and_rank(tmp_path):
    with written(tmp_path / "new" / "P.CSV").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "rank", "attr", "obj", "score"],
        ["a.jpg", "1", "wet", "dog", "12.25"],
        ["a.jpg", "2", "dry", "dog", "-3.5"],
        ['bad/ü,"x".png', "", "", "", ""],
        ["c.jpg", "1", "old", "faux leather", "0.333333"],
    ]


CLASSES = [
    {
        "image": "a.jpg", "predictions": [{"class": "polar bear", "score": 0.5}],
        "classes": [{"name": "polar bear", "prob": 1.0}], "error": None,
    },
    failed("b.jpg", "not an image", ["classes"]),
]  # fmt: skip


def test_records_of_plain_classes(tmp_path):
    for order in (CLASSES, CLASSES[::-1]):  # the first record may be that of a bad image
        lines = written(tmp_path / "j" / "p.jsonl", order).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == order
        assert pq.read_table(written(tmp_path / "p" / "p.parquet", order)).to_pylist() == order
    with written(tmp_path / "c" / "p.csv", CLASSES).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["image", "rank", "class", "score"], ["a.jpg", "1", "polar bear", "0.5"], ["b.jpg", "", "", ""]]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_no_records_make_an_empty_file(tmp_path, suffix):
    path = written(tmp_path / "new" / f"p{suffix}", [])
    assert path.is_file()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("how", ["error", "left"])
def test_what_ends_early_leaves_the_old_file_alone(tmp_path, suffix, how):
    path = tmp_path / f"p{suffix}"
    path.write_bytes(b"old")

    def records():
        yield RECORDS[0]
        if how == "error":
            raise RuntimeError("a worker died")
        yield RECORDS[1]

    passing: Any = write(path, records())
    next(passing)
    if how == "error":
        with pytest.raises(RuntimeError, match="a worker died"):
            next(passing)
    else:
        passing.close()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["p.txt", "p", "p.json"])
def test_an_unknown_format_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="unknown format"):
        check_format(tmp_path / name)
    with pytest.raises(UsageError, match=r"use one of \.jsonl, \.csv, \.parquet"):
        list(write(tmp_path / name, RECORDS))
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_of_a_file_outlives_a_crash_and_belongs_to_one_question(tmp_path):
    out = tmp_path / "p.csv"
    named = {**RECORDS[0], "predictions": [{"calibrated": 0.0, "prob": 0.0, **p} for p in RECORDS[0]["predictions"]]}
    with pytest.raises(RuntimeError), Partial(out, "one") as partial:
        for i in range(3):
            partial.add([{**named, "image": f"{i}.jpg"}, RECORDS[1]])
        raise RuntimeError("a crash")
    sidecar = tmp_path / ".p.csv.partial.jsonl"
    sidecar.write_bytes(sidecar.read_bytes()[:-9])  # the last line is torn
    (tmp_path / ".p.csv.123.tmp").write_text("of the process that was killed")
    with Partial(out, "one") as partial:
        assert partial.done == 2
        assert [batch[0]["image"] for batch in partial.batches()] == ["0.jpg", "1.jpg"]
        assert not (tmp_path / ".p.csv.123.tmp").exists()
        with pytest.raises(UsageError, match="is being written"):
            Partial(out, "one")
        partial.add(RECORDS)
    assert list(tmp_path.iterdir()) == []  # ended well
    with pytest.raises(RuntimeError), Partial(out, "one") as partial:
        partial.add(RECORDS)
        raise RuntimeError("a crash")
    with pytest.raises(RuntimeError), Partial(out, "other") as partial:
        assert partial.done == 0
        assert list(partial.batches()) == []
        raise RuntimeError("nothing to keep")
    assert list(tmp_path.iterdir()) == []


def test_a_question_names_the_files_as_they_are(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    first = inputs_sha256(tmp_path, ["a.jpg"], top=5)
    assert first == inputs_sha256(tmp_path, ["a.jpg"], top=5)
    assert first != inputs_sha256(tmp_path, ["a.jpg"], top=6)
    (tmp_path / "a.jpg").write_bytes(b"22")
    assert first != inputs_sha256(tmp_path, ["a.jpg"], top=5)
