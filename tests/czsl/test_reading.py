"""Files of each kind, whole and damaged: what is read, and that nothing but the documented error comes out of it."""

import io
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from czsl.data.columns import read_column
from czsl.data.importing.importers import import_dataset
from czsl.data.table import open_shard
from czsl.errors import DataError, SetupError, UsageError
from czsl.reading import (
    json_records,
    parse_json,
    parse_yaml,
    read_array,
    read_arrays,
    read_json,
    read_lines,
    read_safetensors,
    read_text,
    read_torch,
    read_yaml,
)

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def test_the_error_is_the_callers_and_names_file_reason_and_way_out(tmp_path):
    with pytest.raises(SetupError) as error:
        read_json(tmp_path / "none.json", error=SetupError, head="no state in {path}", fix="do this")
    assert str(error.value).splitlines() == [f"no state in {tmp_path / 'none.json'}", "No such file or directory", "do this"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"good\nb\xffd", "byte 6, in line 2"),
        ("é".encode("utf-16"), "looks like UTF-16"),
        (b"x" * 101, "limit is 100 bytes"),
    ],
)
def test_text_that_is_none(tmp_path, content, why):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(DataError, match=why):
        read_text(tmp_path / "t", max_bytes=100)


def test_text(tmp_path):
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbf a \r\nb\n")
    assert read_lines(tmp_path / "t") == ["a", "b"]
    for place in (tmp_path, tmp_path / "none", "with\0zero"):
        with pytest.raises(DataError):
            read_text(place)


@given(PLAIN)
def test_json_and_yaml_come_back(content):
    assert parse_json(json.dumps(content)) == content
    assert parse_yaml(yaml.safe_dump(content)) == content


@pytest.mark.parametrize("text", ["", "{", "[1,]", "[" * 5000, '{"a":' * 400 + "1" + "}" * 400, "9" * 5000, "\x00", "nul"])
def test_json_that_is_none(text):
    with pytest.raises(DataError, match="is not JSON"):
        parse_json(text)


def test_depth_is_counted_not_brackets_in_texts():
    assert parse_json('["' + "[" * 1000 + '"]') == ["[" * 1000]
    assert parse_json("[" * 60 + "]" * 60)
    with pytest.raises(DataError, match="more than 64 deep"):
        parse_json("[" * 65 + "]" * 65)


def test_records_leave_out_what_is_no_mapping(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'{"a": 1}\n[1]\n\xff\n{"b"\n{"c": 2}\n{"d": ')
    assert list(json_records(tmp_path / "m.jsonl")) == [{"a": 1}, {"c": 2}]
    assert list(json_records(tmp_path / "none")) == []


@pytest.mark.parametrize(
    "text",
    [
        "a: [", "a: &b [*b]", "!!float abc", "!!int 1x", "!!timestamp x", "!!binary ü", "!!python/object/apply:os.system [ls]", 
        "!!set {a, b}",
        "? [a]\n: b", "1: a", "[" * 3000, "\x00", "a: !!timestamp 2024-01-01", "!!omap [a: b]", "'", "*a", "<<: 5", "9" * 5000,
    ],
)  # fmt: skip
def test_yaml_that_is_no_plain_value(text):
    with pytest.raises(DataError, match="is not YAML"):
        parse_yaml(text)


def test_yaml_leaves_dates_as_texts_and_stops_aliases_that_unfold():
    assert parse_yaml("a: 2024-13-45\nb: 2024-01-01") == {"a": "2024-13-45", "b": "2024-01-01"}
    assert parse_yaml("a: &x {b: 1}\nc: *x") == {"a": {"b": 1}, "c": {"b": 1}}
    assert parse_yaml("1: a", any_keys=True) == {1: "a"}
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    with pytest.raises(DataError, match="aliases unfold"):
        parse_yaml(bomb)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.zeros((0, 3)), np.float32(3), np.zeros((2, 0, 2), np.int8)])
def test_an_array_comes_back(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    for mapped in (True, False):
        np.testing.assert_array_equal(read_array(tmp_path / "a.npy", mapped=mapped), array)


HEADER = npy(np.zeros(4))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"junk", HEADER[:20], HEADER[:-1], HEADER + b"x", HEADER.replace(b"(4,)", b"(9,)"), HEADER.replace(b"'<f8'", b"'<x8'"),
        HEADER.replace(b"False", b"\xff\xff\xff\xff\xff"), HEADER.replace(b"(4,)", b"(-4,"), HEADER.replace(b"'<f8'", b"'|O8'"),
        HEADER.replace(b"(4,)", b"(4, "), HEADER[:10] + b"[" * 200,
    ],
)  # fmt: skip
def test_an_array_that_is_none(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        read_array(tmp_path / "a.npy")


def test_arrays(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.zeros(2))
    assert {k: v.tolist() for k, v in read_arrays(tmp_path / "a.npz", ["x", "z"], stored=True).items()} == {"x": [0, 1, 2]}
    np.savez_compressed(tmp_path / "c.npz", x=np.zeros(10_000))
    assert read_arrays(tmp_path / "c.npz", ["x"])["x"].shape == (10_000,)
    with pytest.raises(DataError, match="it is compressed"):
        read_arrays(tmp_path / "c.npz", ["x"], stored=True)
    monkeypatch.setattr("czsl.reading.memory_bytes", lambda: 100_000)
    with pytest.raises(DataError, match="more than half of the memory"):
        read_arrays(tmp_path / "c.npz", ["x"])
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="one array, not an archive"):
        read_arrays(tmp_path / "one.npy", ["x"])
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x", "no array")
    with pytest.raises(DataError, match="x is not an array"):
        read_arrays(tmp_path / "text.npz", ["x"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A real file of each kind, with its reader."""
    folder = tmp_path_factory.mktemp("whole")
    np.save(folder / "a.npy", np.arange(20.0))
    np.savez(folder / "a.npz", x=np.arange(20.0), y=np.arange(3))
    save_file({"w": torch.arange(20.0)}, folder / "w.safetensors")
    torch.save({"w": torch.arange(20.0), "n": {"a": 1}}, folder / "w.pt")
    (folder / "a.json").write_text(json.dumps({"a": [1, {"b": None}], "c": "text"}))
    (folder / "a.yaml").write_text("a: [1, {b: null}]\nc: text\n")
    return [
        ((folder / "a.npy").read_bytes(), read_array),
        ((folder / "a.npz").read_bytes(), lambda p: read_arrays(p, ["x", "y"])),
        ((folder / "w.safetensors").read_bytes(), read_safetensors),
        ((folder / "w.pt").read_bytes(), read_torch),
        ((folder / "a.json").read_bytes(), read_json),
        ((folder / "a.yaml").read_bytes(), lambda p: read_yaml(p, error=UsageError)),
    ]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_mutated_file_gives_its_content_or_the_documented_error(whole, tmp_path_factory, data):
    content, read = data.draw(st.sampled_from(whole))
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=12))
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(changed)
    try:
        read(path)
    except (DataError, UsageError) as error:
        assert str(path) in error.what
        assert error.fix


@pytest.mark.parametrize("read", [import_dataset, open_shard, read_column])
def test_a_parquet_column_whose_name_is_not_text(tmp_path, read):
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": ["a.png"], "attr": ["red"], "obj": ["ball"]}), file, store_schema=False)
    file.write_bytes(file.read_bytes().replace(b"image", b"\x86mage"))
    with pytest.raises(DataError, match=r"cannot read|damaged"):
        read(file, *([tmp_path / "out"] if read is import_dataset else []))
