"""Sources that fit no layout: the error says what they look like."""

import json

import pytest

from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.importing.layouts import LAYOUTS
from czsl.errors import DataError, UsageError
from czsl_cli.data import data as command
from tests.czsl.data.conftest import TREE, encode


def put(root, names, content=b"x"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@pytest.mark.parametrize(
    ("names", "content", "seen"),
    [
        (["data-00000-of-00001.arrow", "state.json"], b"{}", "Arrow files"),
        (["train/data-00000-of-00001.arrow"], b"", "Arrow files"),
        (["images.zip"], b"PK\x03\x04", "ZIP archives"),
        (["shard-0.tar.gz"], b"\x1f\x8b", "compressed tar"),
        (["train.tfrecord-00000-of-00001"], b"", "TFRecord"),
        (["data.mdb", "lock.mdb"], b"", "LMDB"),
        (["VOC2012/Annotations/a.xml"], b"<a/>", "Pascal VOC"),
        (["data.yaml", "labels/a.txt"], b"", "YOLO"),
        (["im/a.jpg", "labels.csv"], b"a,b\n", "labels.csv"),
    ],
)
def test_what_a_folder_looks_like(tmp_path, names, content, seen):
    put(tmp_path / "source", names, content)
    with pytest.raises(DataError, match="fits no layout") as error:
        import_dataset(tmp_path / "source", tmp_path / "out")
    assert seen in error.value.why
    assert error.value.fix


def test_a_folder_with_two_kinds_of_annotations(tmp_path):
    put(tmp_path, ["a.json"], json.dumps({"images": [], "annotations": [], "categories": []}).encode())
    put(tmp_path, ["b.json"], json.dumps({"classes": [], "labels": {}}).encode())
    with pytest.raises(DataError, match="more than one layout") as error:
        import_dataset(tmp_path, tmp_path.parent / "out")
    assert "coco: a.json; fiftyone: b.json" in error.value.why and "--layout coco or fiftyone" in error.value.fix


def test_a_tree_with_files_of_other_programs_stays_a_tree(make_tree, tmp_path):
    root = make_tree({f"train/{pair}": 1 for pair in TREE})
    wanted = import_dataset(root, tmp_path / "a").sha256
    put(root, ["features.parquet", "train/x.parquet"], b"PAR1")
    put(root, ["notes.json"], b"[")
    put(root, ["list.csv"], b"image,attr,obj\n")
    put(root, ["archive.tar"], b"\0" * 1024)
    assert import_dataset(root, tmp_path / "b").sha256 == wanted


def test_usual_names_of_split_folders(make_tree, tmp_path):
    root = make_tree({f"{split}/{pair}": 1 for split in ("Training", "valid", "testing") for pair in TREE})
    assert import_dataset(root, tmp_path / "out").images == {"train": 6, "val": 6, "test": 6}


def test_layouts_by_name(make_tree, published, tmp_path):
    option = next(p for p in command.commands["import"].params if p.name == "layout")
    assert set(option.type.choices) == {"auto", *LAYOUTS}
    root = make_tree({f"train/{pair}": 1 for pair in TREE})
    for layout in LAYOUTS:
        if layout != "tree":
            with pytest.raises(DataError):
                import_dataset(root, tmp_path / layout, ImportOptions(layout=layout))
    with pytest.raises(UsageError, match="--columns with the layout tree"):
        import_dataset(root, tmp_path / "x", ImportOptions(columns={"image": "x"}))
    with pytest.raises(UsageError, match="--root with the layout published"):
        import_dataset(published.root, tmp_path / "x", ImportOptions(root=tmp_path))


@pytest.mark.parametrize("name", ["x.t7", "x.jpg", "x.txt", "x"])
def test_a_file_that_is_none(tmp_path, name):
    put(tmp_path, [name], encode(1) if name.endswith("jpg") else b"hello")
    with pytest.raises(DataError, match="is not a folder"):
        import_dataset(tmp_path / name, tmp_path / "out")
