"""The column that names images, in the tables of spreadsheets and other programs."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from czsl.data.columns import MAX_COLUMNS, read_column
from czsl.errors import DataError

NAMES = ["a b.jpg", "ö,2.png"]


@pytest.mark.parametrize(
    "data",
    [
        b'image,label\na b.jpg,x\n"\xc3\xb6,2.png",y\n',
        b"\xef\xbb\xbfImage;label\r\na b.jpg;x\r\n\xc3\xb6,2.png;y\r\n",
        "x\tFile Name\n1\ta b.jpg\n2\tö,2.png\n".encode("utf-16"),
        b'"path"\na b.jpg\n"\xc3\xb6,2.png"\n',
        b'{"file_name": "a b.jpg"}\n\n{"file_name": "\xc3\xb6,2.png"}\n',
        json.dumps([{"n": 1, "image": NAMES[0]}, {"image": NAMES[1]}]).encode(),
    ],
)
def test_the_column_is_found_in_every_dialect(tmp_path, data):
    (tmp_path / "t").write_bytes(data)
    assert read_column(tmp_path / "t").names == NAMES


def test_parquet(tmp_path):
    pq.write_table(pa.table({"x": [1, 2], "path": NAMES}), tmp_path / "t.parquet")
    assert read_column(tmp_path / "t.parquet").names == NAMES
    assert read_column(tmp_path / "t.parquet", "PATH").names == NAMES
    with pytest.raises(DataError, match="holds no file names"):
        read_column(tmp_path / "t.parquet", "x")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot read"):
        read_column(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("data", "column", "why"),
    [
        (b"", None, "is empty"),
        (b"\n\n", None, "is empty"),
        (b"a,b\n1,2\n", None, "it has: a, b"),
        (b"a,b\n1,2\n", "c", "no column 'c'"),
        (b"image,path\n1,2\n", None, "several columns may name images\nimage, path"),
        (b"image,image\n1,2\n", None, "several columns"),
        (b"image,label\n\xff\xfe.jpg,x\n", None, "not text in UTF-8\nat byte 12"),
        (b"[1,", None, "is not JSON"),
        (b'{"image": "a"}\n{"image"\n', None, "line 2 is not JSON"),
        (b"[" * 100_000, None, "is not JSON"),
        (b"[]", None, "no rows"),
        (b'image\n"a.jpg', None, "cannot read"),
        (b",".join(b"%d" % i for i in range(MAX_COLUMNS + 1)), None, "10,001 columns"),
    ],
)
def test_bad_tables_are_refused_with_their_reason(tmp_path, data, column, why):
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(DataError) as error:
        read_column(tmp_path / "t", column)
    assert why in str(error.value)


def test_rows_without_a_name_are_told(tmp_path):
    rows = [{"image": "a.jpg"}, {"image": ""}, {"x": 1}, {"image": 7}, {"image": ["b.jpg"]}, "c.jpg", {"image": "\ud800"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_column(tmp_path / "t.jsonl")
    assert found.names == ["a.jpg", "c.jpg"]
    assert found.refused == {
        "row 2": "no image is named",
        "row 3": "no image is named",
        "row 4": "not a file name: 7",
        "row 5": "not a file name: ['b.jpg']",
        "row 7": "not a file name: '\\ud800'",
    }
    (tmp_path / "t.csv").write_text("x,image\n1\n2,a.jpg\n3,b.jpg,more\n")
    found = read_column(tmp_path / "t.csv")
    assert (found.names, list(found.refused)) == (["a.jpg", "b.jpg"], ["row 1"])
