"""Images leave a dataset with their bytes, spread over the compositions, and stay below the folder asked for."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from czsl.compositions import CompositionSpace
from czsl.data.export import export
from czsl.data.table import Dataset, Record, write_dataset
from czsl.errors import DataError


@pytest.fixture
def data(tmp_path):
    space = CompositionSpace(
        ("wet", "../dry"), ("dog", "cat"), np.array([[0, 0], [1, 1], [0, 1]]), np.zeros((0, 2)), np.zeros((0, 2))
    )
    records = [
        Record(f"{folder}/{i}.jpg", f"{folder} {attr} {obj} {i}".encode(), attr, obj, "train")
        for folder in ("a", "b")
        for attr, obj in (("wet", "dog"), ("../dry", "cat"), ("wet", "cat"))
        for i in range(3)
    ]
    records = [Record(f"{n}/{r.id}", r.image, r.attr, r.obj, r.split) for n, r in enumerate(records)]
    write_dataset(tmp_path / "data", space, records, "data")
    return Dataset.open(tmp_path / "data")


def test_all_images_with_their_bytes(data, tmp_path):
    assert export(data, "train", tmp_path / "out") == 18
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    split = data.split("train")
    assert sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in files) == sorted(split.sha256)


def test_a_few_are_of_different_compositions_and_stay_inside(data, tmp_path):
    out = tmp_path / "out"
    assert export(data, "train", out, limit=3) == 3
    assert len(list(out.iterdir())) == 3  # one folder a composition
    assert all(out.resolve() in p.resolve().parents for p in out.rglob("*"))
    assert not (tmp_path / "dry cat").exists()


def test_the_seed_decides(data, tmp_path):
    chosen = []
    for i, seed in enumerate((1, 1, 2, 3)):
        export(data, "train", tmp_path / str(i), limit=4, seed=seed)
        chosen.append(sorted(p.name for p in (tmp_path / str(i)).rglob("*.jpg")))
    assert chosen[0] == chosen[1]
    assert len({tuple(c) for c in chosen}) > 1


def test_an_empty_split_is_an_error(data, tmp_path):
    with pytest.raises(DataError, match="no test images"):
        export(data, "test", tmp_path / "out")
