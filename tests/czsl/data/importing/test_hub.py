"""Hugging Face: image folders, and Parquet files that hold the images."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.importers import ImportOptions, TooManyBadError, import_dataset
from czsl.data.table import Dataset
from czsl.errors import DataError
from tests.czsl.data.conftest import LENIENT, encode, kinds, labels, problem

FOLDERS = {"train": "train", "val": "validation", "test": "test"}
ROWS = [
    (f"{colour}-{shape}-{n}.png", colour, shape, ("train", "train", "val", "test")[n])
    for colour in ("red", "blue")
    for shape in ("disc", "cone")
    for n in range(4)
]


def put(root, names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(number, kind="PNG"))


def write(path, rows, form):
    if form == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        path.with_suffix(".csv").write_text(text.getvalue())
    elif form == "jsonl":
        path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.table({k: [row[k] for row in rows] for k in rows[0]}), path.with_suffix(".parquet"))


# -- image folders -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("base", ["", "data/"])
def test_metadata_for_each_split(tmp_path, form, base):
    root = tmp_path / "source"
    put(root, [f"{base}{FOLDERS[split]}/{name}" for name, _, _, split in ROWS])
    for split, folder in FOLDERS.items():
        write(
            root / base / folder / "metadata",
            [{"file_name": n, "state": a, "noun": o} for n, a, o, s in ROWS if s == split],
            form,
        )
    report = import_dataset(root, tmp_path / "out")
    assert (report.layout, report.problems) == ("imagefolder", [])
    assert labels(tmp_path / "out") == {f"{base}{FOLDERS[s]}/{n}": f"{s} {a} {o}" for n, a, o, s in ROWS}
    assert report.read_as["splits"] == "named by folders and files"


@pytest.mark.parametrize("how", ["column", "folders", "none"])
def test_one_metadata_file(tmp_path, how):
    root = tmp_path / "source"
    names = [f"{FOLDERS[s]}/{n}" if how == "folders" else n for n, _, _, s in ROWS]
    put(root, [*names, "stray.png"])
    rows = [{"file_name": name, "attr": a, "obj": o} for name, (_, a, o, _) in zip(names, ROWS, strict=True)]
    if how == "column":
        rows = [{**row, "split": FOLDERS[s]} for row, (*_, s) in zip(rows, ROWS, strict=True)]
    write(root / "metadata", rows, "csv")
    report = import_dataset(root, tmp_path / "out", ImportOptions(seed=1))
    assert problem(report, "file without a record").where == ("stray.png",)
    assert sum(report.images.values()) == 16
    if how == "none":
        assert "seed 1" in report.read_as["split"]
    else:
        assert report.images == {"train": 8, "val": 4, "test": 4}


def test_metadata_files_must_agree(tmp_path):
    put(tmp_path, ["train/a.png", "test/b.png"])
    write(tmp_path / "train" / "metadata", [{"file_name": "a.png", "attr": "wet", "obj": "dog"}], "csv")
    write(tmp_path / "test" / "metadata", [{"file_name": "b.png", "class": "dog"}], "csv")
    with pytest.raises(DataError, match="other columns"):
        import_dataset(tmp_path, tmp_path.parent / "out")


def test_names_that_leave_the_folder(tmp_path):
    root = tmp_path / "source"
    put(root, ["train/a.png", "x.png"])
    put(tmp_path, ["secret.png"])
    names = ["a.png", "../../secret.png", "/etc/passwd", "../x.png"]
    write(root / "train" / "metadata", [{"file_name": n, "attr": "wet", "obj": "dog"} for n in names], "csv")
    report = import_dataset(root, tmp_path / "out", LENIENT)
    assert kinds(report) == {"path leaves the root": 3, "file without a record": 1}


# -- Parquet -------------------------------------------------------------------------------------------------------
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(rows, path=True, start=0):
    return [{"bytes": encode(start + i, kind="PNG"), "path": row[0] if path else None} for i, row in enumerate(rows)]


def hub_table(rows, columns=("attr", "obj"), names=None, path=True, start=0):
    table = {"image": pa.array(images(rows, path, start), STRUCT)}
    for i, column in enumerate(columns, 1):
        values = [row[i] for row in rows]
        table[column] = pa.array([names[column].index(v) for v in values] if names else values)
    found = pa.table(table)
    if names:
        features = {k: {"names": v, "_type": "ClassLabel"} for k, v in names.items()}
        found = found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return found


def write_hub(root, **options):
    (root / "data").mkdir(parents=True)
    for number, (split, word) in enumerate(FOLDERS.items()):
        rows = [row for row in ROWS if row[3] == split]
        table = hub_table(rows, start=100 * number, **options)
        pq.write_table(table, root / "data" / f"{word}-00000-of-00001.parquet", row_group_size=3)
    (root / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")


def test_splits_in_the_names_of_folders(tmp_path):
    for split, folder in (("train", "default/train"), ("val", "default/validation"), ("test", "x=1/split=test")):
        path = tmp_path / "source" / folder / "0000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(hub_table([row for row in ROWS if row[3] == split]), path)
    assert import_dataset(tmp_path / "source", tmp_path / "out").images == {"train": 8, "val": 4, "test": 4}


@pytest.mark.parametrize("path", [True, False])
@pytest.mark.parametrize("names", [None, {"attr": ["blue", "red"], "obj": ["cone", "disc"]}])
def test_hub_parquet_with_splits_in_the_file_names(tmp_path, path, names):
    root = tmp_path / "source"
    write_hub(root, path=path, names=names)
    report = import_dataset(root, tmp_path / "out")
    assert (report.layout, report.problems, report.images) == ("parquet", [], {"train": 8, "val": 4, "test": 4})
    dataset = Dataset.open(tmp_path / "out")
    train = dataset.split("train")
    assert train.ids[0] == f"data/train-00000-of-00001/0000001{'-red-disc-0.png' if path else '.jpg'}"
    rows = [row for row in ROWS if row[3] == "train"]
    for row, data in train.iter_images():
        assert data == encode(row, kind="PNG")
        assert dataset.space.pair_name(train.pairs[row]) == f"{rows[row][1]} {rows[row][2]}"
    assert import_dataset(root, tmp_path / "again", ImportOptions(workers=7)).sha256 == report.sha256


def test_one_parquet_file(tmp_path):
    table = hub_table(ROWS).append_column("set", [[FOLDERS[row[3]] for row in ROWS]])
    pq.write_table(table.rename_columns(["image", "state", "noun", "set"]), tmp_path / "all.parquet")
    report = import_dataset(tmp_path / "all.parquet", tmp_path / "out")
    assert report.images == {"train": 8, "val": 4, "test": 4}
    pq.write_table(table.drop_columns(["set"]), tmp_path / "all.parquet")
    assert "seed" in import_dataset(tmp_path / "all.parquet", tmp_path / "drawn").read_as["split"]


def test_plain_bytes_and_named_columns(tmp_path):
    data = [encode(i, kind="PNG") for i in range(16)]
    table = pa.table(
        {
            "jpg": data,
            "embedding": data,
            "colour": [r[1] for r in ROWS],
            "kind": [r[2] for r in ROWS],
            "split": [r[3] for r in ROWS],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="which column holds the images") as error:
        import_dataset(tmp_path / "t.parquet", tmp_path / "out")
    assert "jpg, embedding" in error.value.why
    columns = {"image": "jpg", "attr": "colour", "obj": "kind"}
    report = import_dataset(tmp_path / "t.parquet", tmp_path / "out", ImportOptions(columns=columns))
    assert report.bad == 0 and report.images["train"] == 8


def test_a_class_label(tmp_path):
    rows = [(n, f"{a} {o}", s) for n, a, o, s in ROWS]
    table = hub_table(rows, ("label",), {"label": sorted({r[1] for r in rows})})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="no column of attributes"):
        import_dataset(tmp_path / "t.parquet", tmp_path / "out")
    report = import_dataset(tmp_path / "t.parquet", tmp_path / "a", ImportOptions(columns={"pair": "label"}))
    assert (report.attributes, report.objects) == (2, 2)
    report = import_dataset(tmp_path / "t.parquet", tmp_path / "b", ImportOptions(names=ClassNames()))
    assert report.classes["all"] == 4


def test_images_by_path_beside_the_table(tmp_path):
    put(tmp_path, [f"im/{row[0]}" for row in ROWS])
    values = [{"bytes": None, "path": f"im/{row[0]}"} for row in ROWS] + [
        {"bytes": None, "path": "../x.png"},
        {"bytes": None, "path": None},
    ]
    columns = {k: [r[i] for r in ROWS] + [ROWS[0][i]] * 2 for i, k in ((1, "attr"), (2, "obj"))}
    table = pa.table({"image": pa.array(values, STRUCT), **columns, "split": [r[3] for r in ROWS] + ["test"] * 2})
    pq.write_table(table, tmp_path / "t.parquet")
    report = import_dataset(tmp_path / "t.parquet", tmp_path / "out", LENIENT)
    assert kinds(report) == {"missing image": 2}
    assert report.images == {"train": 8, "val": 4, "test": 4}


def test_bad_rows_of_parquet(tmp_path):
    table = hub_table(ROWS, names={"attr": ["blue", "red"], "obj": ["cone", "disc"]}).append_column(
        "split", [[r[3] for r in ROWS]]
    )
    attr = table["attr"].to_pylist()
    attr[0], attr[1], attr[2] = 7, None, -1
    pq.write_table(table.set_column(1, "attr", pa.array(attr)), tmp_path / "t.parquet")
    report = import_dataset(tmp_path / "t.parquet", tmp_path / "out", LENIENT)
    assert kinds(report) == {"unusable label": 2, "missing label": 1}
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot read"):
        import_dataset(tmp_path / "t.parquet", tmp_path / "x")
    (tmp_path / "t.parquet").write_bytes(content[:40] + b"\xff" * 400 + content[440:])
    with pytest.raises((DataError, TooManyBadError)):
        import_dataset(tmp_path / "t.parquet", tmp_path / "x")


def test_files_that_do_not_fit_each_other(tmp_path):
    root = tmp_path / "source"
    write_hub(root)
    pq.write_table(hub_table(ROWS, ("state", "obj")), root / "data" / "test-extra.parquet")
    with pytest.raises(DataError, match="other columns"):
        import_dataset(root, tmp_path / "out")
    (root / "data" / "test-extra.parquet").unlink()
    pq.write_table(hub_table(ROWS), root / "data" / "extra.parquet")
    with pytest.raises(DataError, match="records have no split"):
        import_dataset(root, tmp_path / "out")
    (root / "data" / "extra.parquet").rename(root / "data" / "train-test.parquet")
    with pytest.raises(DataError, match="more than one split"):
        import_dataset(root, tmp_path / "out")


def test_a_snapshot_of_the_hub_is_links(tmp_path):
    """A cache of the Hub holds links to files with hashed names, one folder beside."""
    cache = tmp_path / "datasets--org--name"
    write_hub(cache / "snapshots" / "abc")
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted((cache / "snapshots" / "abc" / "data").iterdir())):
        path.rename(cache / "blobs" / str(number))
        path.symlink_to(cache / "blobs" / str(number))
    with pytest.raises(DataError, match="fits no layout") as error:
        import_dataset(cache, tmp_path / "out")
    assert "cache of the Hugging Face Hub" in error.value.why and "abc" in error.value.fix
    assert import_dataset(cache / "snapshots" / "abc", tmp_path / "out").images == {"train": 8, "val": 4, "test": 4}
