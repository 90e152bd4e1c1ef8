"""Published metadata: plain data or nothing."""

import json
import os
import pickle

import pytest

from czsl.data.importing.t7 import Metadata, read_metadata
from czsl.errors import DataError

RECORDS = [{"image": "a b/1.jpg", "attr": "wet", "obj": "dog", "set": "train", "_image": "extra"}]


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def save(path, content, **options):
    torch = pytest.importorskip("torch")
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_t7_and_json_agree(tmp_path, zipped):
    path = save(tmp_path / "m.t7", RECORDS, _use_new_zipfile_serialization=zipped)
    (tmp_path / "m.json").write_text(json.dumps(RECORDS))
    wanted = [Metadata("a b/1.jpg", "wet", "dog", "train", "extra")]
    assert read_metadata(path) == read_metadata(tmp_path / "m.json") == wanted


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, zipped):
    path = save(tmp_path / "m.t7", [*RECORDS, Attack(str(tmp_path / "owned"))], _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="refused") as error:
        read_metadata(path)
    assert not (tmp_path / "owned").exists()
    assert "mkdir" in error.value.why
    assert error.value.exit_code == 3
    assert "\n" not in error.value.why


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / "m.t7"
    path.write_bytes(pickle.dumps(Attack(str(tmp_path / "owned"))))
    with pytest.raises(DataError):
        read_metadata(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"image": "x"}, "a dict, not a list"),
        (["x"], "record 0 is a str"),
        ([{**RECORDS[0], "attr": 3}], "'attr' is int"),
        ([{k: v for k, v in RECORDS[0].items() if k != "set"}], "'set' is missing"),
    ],
)
def test_other_plain_data_is_refused(tmp_path, content, why):
    (tmp_path / "m.json").write_text(json.dumps(content))
    for path in (save(tmp_path / "m.t7", content), tmp_path / "m.json"):
        with pytest.raises(DataError, match=why):
            read_metadata(path)


@pytest.mark.parametrize("name", ["m.t7", "m.json"])
def test_damaged_files_are_named(tmp_path, name):
    for content in (b"", b"garbage", b"[" * 100_000):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_metadata(tmp_path / name)


def test_an_archive_that_unfolds_beyond_the_memory_is_not_opened(tmp_path, monkeypatch):
    path = save(tmp_path / "m.t7", RECORDS)
    assert len(read_metadata(path)) == 1
    monkeypatch.setattr("czsl.reading.memory_bytes", lambda: 100)
    with pytest.raises(DataError, match="unfolds to"):
        read_metadata(path)
