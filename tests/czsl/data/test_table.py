"""Writing and reading dataset folders."""

import json
import threading
from itertools import islice

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from czsl.compositions import SPLITS, CompositionSpace
from czsl.data.importing import writer
from czsl.data.table import Dataset, Record, open_data, write_dataset
from czsl.errors import DataError, UsageError

SPACE = CompositionSpace.from_json(
    {
        "attributes": ["dry", "wet"],
        "objects": ["cat", "dog"],
        "train_pairs": [["dry", "cat"], ["dry", "dog"], ["wet", "cat"]],
        "val_pairs": [["wet", "dog"], ["dry", "cat"]],
        "test_pairs": [["wet", "dog"]],
    }
)
ALLOWED = [(split, *pair) for split in SPLITS for pair in SPACE.to_json()[f"{split}_pairs"]]


def records(number=20):
    for i in range(number):
        split, attr, obj = ALLOWED[i % len(ALLOWED)]
        yield Record(f"{i:03d}.jpg", bytes([i]) * (i + 1), attr, obj, split)


def read(dataset):
    """Everything in a dataset as records."""
    for name in SPLITS:
        split = dataset.split(name)
        for row, image in split.iter_images():
            attr, obj = SPACE.attributes[split.attr[row]], SPACE.objects[split.obj[row]]
            yield Record(split.ids[row], image, attr, obj, name)


rows = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), st.binary(max_size=50), st.sampled_from(ALLOWED)),
    min_size=1,
    max_size=30,
    unique_by=lambda row: row[0],
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows, st.integers(1, 5), st.integers(1, 100))
def test_round_trip_whatever_the_shards(tmp_path_factory, rows, group_images, shard_bytes):
    wanted = [Record(name, image, attr, obj, split) for name, image, (split, attr, obj) in rows]
    folder = tmp_path_factory.mktemp("round")
    with pytest.MonkeyPatch.context() as patch:
        plain = write_dataset(folder / "plain", SPACE, wanted, "plain")
        patch.setattr(writer, "GROUP_IMAGES", group_images)
        patch.setattr(writer, "SHARD_BYTES", shard_bytes)
        sharded = write_dataset(folder / "sharded", SPACE, reversed(wanted), "sharded")
    assert sharded["sha256"] == plain["sha256"]
    assert sorted(read(Dataset.open(folder / "plain"))) == sorted(read(Dataset.open(folder / "sharded"))) == sorted(wanted)


def test_rows_and_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "GROUP_IMAGES", 3)
    monkeypatch.setattr(writer, "SHARD_BYTES", 40)
    write_dataset(tmp_path / "data", SPACE, records(40), "small")
    dataset = Dataset.open(tmp_path / "data")
    split = dataset.split("train")
    assert len(split.paths) > 2
    assert split.attr.dtype == split.obj.dtype == np.int64
    everything = list(split.iter_images())
    assert [row for row, _ in everything] == list(range(len(split)))
    for start, stop in ((0, 0), (2, 9), (5, None), (len(split) - 1, 999), (7, 3)):
        assert list(split.iter_images(start, stop)) == everything[start:stop]
    for row in (0, len(split) - 1, 4, 3, 4):
        assert split.image_bytes(row) == everything[row][1]
    with pytest.raises(IndexError):
        split.image_bytes(len(split))
    with pytest.raises(UsageError, match="no split 'dev'"):
        dataset.split("dev")


def test_large_images_make_small_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "GROUP_BYTES", 1000)
    images = (Record(f"{i}.jpg", bytes(400), "dry", "cat", "train") for i in range(9))
    write_dataset(tmp_path / "data", SPACE, images, "large")
    metadata = pq.ParquetFile(tmp_path / "data" / "train-00000.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 3, 3]


def test_data_hash_sees_every_change(tmp_path):
    def sha(rows, space=SPACE):
        return write_dataset(tmp_path / f"{len(list(tmp_path.iterdir()))}", space, rows, "x")["sha256"]

    base = list(records())
    other_space = CompositionSpace.from_json({**SPACE.to_json(), "test_pairs": [["wet", "dog"], ["dry", "dog"]]})
    changed = [
        [base[0]._replace(id="other.jpg"), *base[1:]],
        [base[0]._replace(image=b"other"), *base[1:]],
        [base[0]._replace(obj="dog"), *base[1:]],
        [base[0]._replace(split="val"), *base[1:]],
        base[:-1],
    ]
    hashes = [sha(base), *(sha(rows) for rows in changed), sha(base, other_space)]
    assert len(set(hashes)) == len(hashes)
    assert sha(base[::-1]) == hashes[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: [*r, r[0]], "occurs twice"),
        (lambda r: [*r, Record("x", b"", "wet", "dog", "train")], "is not a train pair"),
        (lambda r: [*r, Record("x", b"", "wet", "dog", "dev")], "is not a dev pair"),
        (lambda r: [], "no usable image"),
    ],
)
def test_a_failed_write_leaves_nothing(tmp_path, spoil, message):
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "data", SPACE, spoil(list(records())), "x")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_keeps_the_old_data(tmp_path):
    def interrupted():
        yield from records(5)
        raise KeyboardInterrupt

    old = write_dataset(tmp_path / "data", SPACE, records(), "old")
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "data", SPACE, interrupted(), "new", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert Dataset.open(tmp_path / "data").sha256 == old["sha256"]


def test_destination_rules(tmp_path):
    (tmp_path / "empty").mkdir()
    write_dataset(tmp_path / "empty", SPACE, records(), "x")
    with pytest.raises(UsageError, match="already holds a dataset"):
        write_dataset(tmp_path / "empty", SPACE, records(), "x")
    new = write_dataset(tmp_path / "empty", SPACE, records(7), "x", force=True)
    assert Dataset.open(tmp_path / "empty").sha256 == new["sha256"]
    precious = tmp_path / "home" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years")
    with pytest.raises(UsageError, match="not a dataset folder"):
        write_dataset(precious.parent, SPACE, records(), "x", force=True)
    assert precious.read_text() == "years"
    with pytest.raises(UsageError, match="not a folder"):
        write_dataset(precious, SPACE, records(), "x", force=True)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "dataset.json").unlink(), "not a dataset folder"),
        (lambda d: (d / "dataset.json").write_text("{"), "damaged"),
        (lambda d: (d / "dataset.json").write_text("[" * 100_000), "damaged"),
        (lambda d: edit_json(d / "dataset.json", format=99), "format 99"),
        (lambda d: edit_json(d / "dataset.json", shards={"../x.parquet": 1}), "damaged"),
        (lambda d: edit_json(d / "dataset.json", images=[]), "damaged"),
        (lambda d: (d / "val-00000.parquet").unlink(), "lacks val-00000.parquet"),
        (lambda d: (d / "train-00000.parquet").write_bytes(b"PAR1 nonsense PAR1"), "damaged"),
        (lambda d: (d / "val-00000.parquet").write_bytes((d / "train-00000.parquet").read_bytes()), "val has"),
        (lambda d: edit_json(d / "space.json", attributes=["dry", "moist"]), "space.json"),
    ],
)
def test_damaged_folders_are_named(tmp_path, spoil, message):
    write_dataset(tmp_path / "data", SPACE, records(), "x")
    spoil(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        dataset = open_data(tmp_path / "data")
        for name in SPLITS:
            dataset.split(name)


def test_open_data_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError) as error:
        open_data(tmp_path)
    assert error.value.fix == f"make one with: czsl data import {tmp_path} DEST"
    with pytest.raises(DataError, match="no such folder") as error:
        open_data(tmp_path / "none")
    assert error.value.fix == f"make one with: czsl data import SOURCE {tmp_path / 'none'}"


def test_toy_is_drawn_once_even_by_several_at_a_time(tmp_path, monkeypatch):
    from czsl.data.toy import dataset as toy

    monkeypatch.setenv("CZSL_CACHE", str(tmp_path / "cache"))
    drawn = []

    def few(seed=0, scale=1.0):
        drawn.append(threading.get_ident())
        yield from islice(original(seed, 0.01), 30)

    original = toy.samples
    monkeypatch.setattr(toy, "samples", few)
    found = []
    threads = [threading.Thread(target=lambda: found.append(open_data("toy"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({d.sha256 for d in found}) == 1
    assert len(found) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 1
    before = len(drawn)
    dataset = open_data("toy")
    assert len(drawn) == before
    assert dataset.name == "toy"
    assert dataset.space.to_json() == toy.space().to_json()
    (dataset.folder / "train-00000.parquet").unlink()
    assert open_data("toy").sha256 == dataset.sha256
    assert len(drawn) == before + 1
