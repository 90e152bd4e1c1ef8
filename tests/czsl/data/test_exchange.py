"""Exports for other programs: importing them gives the same dataset, whatever names and labels it has."""

import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from czsl.classes import ClassSpace
from czsl.compositions import SPLITS, CompositionSpace
from czsl.data.exchange import FORMATS, export_dataset
from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.table import Dataset, Record, write_dataset
from czsl.errors import DataError, UsageError
from tests.czsl.data.conftest import encode, kinds

LABELS = ["wet", "long sleeved", 'a"b', "x,y", "=1+1", "train", "a+b", "-", "é\u202e", "line\nfeed", "0"]


def dataset(folder, ids, attributes=("wet", "dry"), objects=("dog", "cat")):
    """A dataset with these ids; pairs in an order of their own, and a pair without images."""
    pairs = [(a, o) for a in range(len(attributes)) for o in range(len(objects))][::-1]
    space = CompositionSpace(tuple(attributes), tuple(objects), np.array(pairs), np.array(pairs[:2]), np.array(pairs[1:]))
    records = []
    for number, ident in enumerate(ids):
        split = SPLITS[number % 3]
        a, o = getattr(space, f"{split}_pairs")[0]
        image = encode(number, kind=("PNG", "JPEG", "GIF")[number % 3])
        records.append(Record(ident, image, attributes[a], objects[o], split))
    write_dataset(folder, space, records, "data")
    return Dataset.open(folder)


IDS = ["a.jpg", "train/wet dog/1.png", "a.jpg#2", "b/c", "b/c/d.png", "images/x.jpg", "manifest.csv", "space.json", "annotations/1.jpg",
       "C:\\x.png", "file:x.jpg", " y .jpg", "https:/x.jpg", "x" * 300 + ".jpg", "q\x1b[31m.png", "new\nline.png", "dataset.json",
       "compositional-split-natural/t.jpg", "*.jpg", "é.JPEG", "shard/0001.jpg-0"]  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_is_the_same_dataset(tmp_path, form):
    data = dataset(tmp_path / "data", IDS, LABELS[:6], LABELS[5:])
    seen = []
    assert export_dataset(data, form, tmp_path / "export", progress=lambda *done: seen.append(done)) == len(IDS)
    assert seen[-1] == (len(IDS), len(IDS))
    report = import_dataset(tmp_path / "export", tmp_path / "again", ImportOptions())
    assert report.bad == 0
    assert report.sha256 == data.sha256
    assert report.layout == {"imagefolder": "imagefolder", "table": "manifest", "coco": "coco"}[form]


@pytest.mark.parametrize("form", FORMATS)
def test_imported_sources_survive(published, make_tree, tmp_path, form):
    published.record("train_dry_dog_0.jpg", "wet hat", "train")  # one file with two labels
    for number, source in enumerate((published.root, make_tree({f"{a} {o}": 5 for a in ("x", "y", "z") for o in ("p", "q")}))):
        first = import_dataset(source, tmp_path / f"a{number}")
        export_dataset(Dataset.open(tmp_path / f"a{number}"), form, tmp_path / f"b{number}")
        again = import_dataset(tmp_path / f"b{number}", tmp_path / f"c{number}")
        assert again.sha256 == first.sha256
        assert kinds(again) == kinds(first)


@pytest.mark.parametrize("form", FORMATS)
def test_plain_classes_survive(tmp_path, form):
    space = ClassSpace.of(["dog", "cat", "owl"], ["dog", "cat"], ["owl", "cat"], ["dog", "owl"])
    records = [Record(f"{i}.png", encode(i, kind="PNG"), "", name, split) for i, (name, split) in enumerate(
        (("dog", "train"), ("cat", "train"), ("owl", "val"), ("dog", "test")))]  # fmt: skip
    written = write_dataset(tmp_path / "data", space, records, "data")
    export_dataset(Dataset.open(tmp_path / "data"), form, tmp_path / "export")
    for names in ({}, {"names": ClassNames()}):
        report = import_dataset(tmp_path / "export", tmp_path / f"again{len(names)}", ImportOptions(**names))
        assert report.sha256 == written["sha256"]


NAME = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0/"), min_size=1, max_size=8)


PATH = st.lists(NAME.filter(lambda n: n not in (".", "..")), min_size=1, max_size=3).map("/".join)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(PATH, min_size=1, max_size=6, unique=True),
    st.lists(NAME.filter(lambda n: n == n.strip()), min_size=2, max_size=4, unique=True),
)  # fmt: skip
def test_any_names_and_labels_survive(tmp_path_factory, form, ids, names):
    folder = tmp_path_factory.mktemp("any")
    data = dataset(folder / "data", ids, names, names[::-1])
    export_dataset(data, form, folder / "export")
    assert import_dataset(folder / "export", folder / "again").sha256 == data.sha256


def test_the_files_are_those_of_the_other_programs(tmp_path):
    data = dataset(tmp_path / "data", ["w/1.png", "2.jpg", "3.gif", "4.png"])
    export_dataset(data, "imagefolder", tmp_path / "hub")
    rows = list(csv.DictReader((tmp_path / "hub" / "train" / "metadata.csv").open(newline="")))
    assert [(row["file_name"], row["attr"], row["obj"]) for row in rows] == [("w/1.png", "dry", "cat"), ("4.png", "dry", "cat")]
    assert (tmp_path / "hub" / "train" / "w" / "1.png").read_bytes() == encode(0, kind="PNG")
    export_dataset(data, "coco", tmp_path / "coco")
    content = json.loads((tmp_path / "coco" / "annotations" / "val.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "2.jpg", "width": 24, "height": 18}]
    assert content["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert content["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 24, 18], "area": 432, "iscrowd": 0, "attributes": {"attribute": "dry"}}
    ]  # fmt: skip
    export_dataset(data, "table", tmp_path / "table", ("test",))
    assert (tmp_path / "table" / "manifest.csv").read_bytes() == b"image,attr,obj,split\r\n3.gif,dry,dog,test\r\n"
    assert not (tmp_path / "table" / "space.json").exists()


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    data = dataset(tmp_path / "data", ["1.png"])
    with pytest.raises(UsageError, match="no form"):
        export_dataset(data, "voc", tmp_path / "x")
    with pytest.raises(DataError, match="no images of val"):
        export_dataset(data, "coco", tmp_path / "x", ("val",))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(UsageError, match="not an empty folder"):
        export_dataset(data, "coco", tmp_path / "full")
    with pytest.raises(DataError, match="spaces around"):
        export_dataset(dataset(tmp_path / "d2", ["1.png"], (" wet", "dry")), "table", tmp_path / "x")
    monkeypatch.setattr("czsl.data.exchange.image_size", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_dataset(data, "coco", tmp_path / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d2", "data", "full"]


def test_a_space_that_does_not_fit(tmp_path):
    data = dataset(tmp_path / "data", ["1.png", "2.png", "3.png", "4.png"])
    export_dataset(data, "table", tmp_path / "export")
    text = (tmp_path / "export" / "manifest.csv").read_text()
    (tmp_path / "export" / "manifest.csv").write_text(text.replace("dry,cat,train", "dry,whale,train", 1))
    report = import_dataset(tmp_path / "export", tmp_path / "again", ImportOptions(max_bad=1))
    assert kinds(report)["unknown pair"] == 1 and sum(report.images.values()) == 3
    (tmp_path / "export" / "space.json").write_text('{"classes": ["dog"]}')
    with pytest.raises(DataError, match="does not fit"):
        import_dataset(tmp_path / "export", tmp_path / "x")
