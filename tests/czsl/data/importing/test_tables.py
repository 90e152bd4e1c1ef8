"""Tables in every usual dialect: the same dataset, whatever the form; what is unclear is an error, what is bad is listed."""

import csv
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.importers import ImportOptions, TooManyBadError, import_dataset
from czsl.data.table import Dataset
from czsl.errors import DataError, UsageError
from tests.czsl.data.conftest import LENIENT, encode, kinds, labels, problem

CASES = Path(__file__).parents[5] / "shared" / "cases"
SPLITS = ("train", "train", "val", "test")
ROWS = [
    (f"im/{colour}-{shape}-{n}.png", colour, shape, SPLITS[n])
    for colour in ("red", "blue", "deep, green")
    for shape in ("square", 'round "disc"')
    for n in range(4)
]
HEADER = ("image", "attr", "obj", "split")


@pytest.fixture
def folder(tmp_path):
    """24 images in a folder of their own."""
    root = tmp_path / "source"
    for number, row in enumerate(ROWS):
        (root / row[0]).parent.mkdir(parents=True, exist_ok=True)
        (root / row[0]).write_bytes(encode(number, kind="PNG"))
    return root


def dump(rows, header=HEADER, delimiter=",", **options):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, **options).writerows([header, *rows] if header else rows)
    return text.getvalue()


def records(header=HEADER):
    return [dict(zip(header, row, strict=True)) for row in ROWS]


def imported(path, tmp_path, **options):
    dest = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    return import_dataset(path, dest, ImportOptions(**options)), dest


@pytest.fixture
def wanted(folder, tmp_path):
    """The hash of the dataset in the documented form."""
    (folder / "plain.csv").write_text(dump(ROWS))
    report, dest = imported(folder / "plain.csv", tmp_path)
    assert report.images == {"train": 12, "val": 6, "test": 6}
    assert set(labels(dest)) == {row[0] for row in ROWS}
    (folder / "plain.csv").unlink()
    return report.sha256


FORMS = {
    "semicolons.csv": dump(ROWS, delimiter=";").encode(),
    "bars.csv": dump(ROWS, delimiter="|").encode(),
    "tabs.csv": dump(ROWS, delimiter="\t").encode(),
    "tabs.tsv": dump(ROWS, delimiter="\t").encode(),
    "no-ending": dump(ROWS, delimiter=";").encode(),
    "quoted.csv": dump(ROWS, quoting=csv.QUOTE_ALL).encode(),
    "mark.csv": b"\xef\xbb\xbf" + dump(ROWS).encode(),
    "unix.csv": dump(ROWS, lineterminator="\n").encode(),
    "utf16.csv": dump(ROWS, delimiter="\t").encode("utf-16"),
    "utf16be.txt": b"\xfe\xff" + dump(ROWS, delimiter="\t").encode("utf-16-be"),
    "utf16-no-mark.csv": dump(ROWS).encode("utf-16-le"),
    "sep.csv": ("sep=;\r\n" + dump(ROWS, delimiter=";")).encode(),
    "empty-lines.csv": dump(ROWS).replace("\r\n", "\r\n\r\n").encode() + b",,,\r\n",
    "trailing.csv": dump([(*row, "") for row in ROWS], (*HEADER, "")).encode(),
    "spaces.csv": dump([[f" {cell} " for cell in row] for row in ROWS], [f" {name}  " for name in HEADER]).encode(),
    "lines.jsonl": "\n".join(map(json.dumps, records())).encode(),
    "lines.json": "\r\n".join(map(json.dumps, records())).encode(),
    "list.json": json.dumps(records(), indent=1).encode(),
    "splits.json": json.dumps({
        s: [{k: v for k, v in r.items() if k != "split"} for r in records() if r["split"] == s] for s in ("train", "val", "test")
    }).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_dataset(folder, tmp_path, wanted, name):
    (folder / name).write_bytes(FORMS[name])
    report, _ = imported(folder / name, tmp_path)
    assert (report.sha256, report.layout, report.problems) == (wanted, "manifest", [])


@pytest.mark.parametrize(
    "header",
    [
        ("file_name", "attribute", "object", "set"),
        ("Path", "State", "Noun", "Phase"),
        ("IMAGE PATH", "ATTRIBUTE", "CATEGORY", "Subset"),
        ("img", "adjective", "class", "partition"),
        ("filepath", "attr", "label", "Split"),
        ("image-name", "attr_name", "obj_name", "split"),
    ],
)
def test_usual_names_of_columns(folder, tmp_path, wanted, header):
    (folder / "t.csv").write_text(dump(ROWS, header))
    report, dest = imported(folder / "t.csv", tmp_path)
    assert report.sha256 == wanted
    assert report.read_as["columns"] == dict(zip(HEADER, header, strict=True))
    assert json.loads((dest / "dataset.json").read_text())["read_as"] == report.read_as


def test_named_columns(folder, tmp_path, wanted):
    header = ("where", "colour", "kind of", "part")
    (folder / "t.csv").write_text(dump(ROWS, header, delimiter=";"))
    with pytest.raises(DataError, match=r"lacks the columns image, attr, obj") as error:
        imported(folder / "t.csv", tmp_path)
    assert "where, colour, kind of, part" in error.value.why and "--columns" in error.value.fix
    columns = {"image": "where", "attr": "Colour", "obj": "kind of", "split": "part"}
    assert imported(folder / "t.csv", tmp_path, columns=columns)[0].sha256 == wanted
    with pytest.raises(UsageError, match="no such column") as usage:
        imported(folder / "t.csv", tmp_path, columns={**columns, "attr": "color"})
    assert "colour" in usage.value.why
    with pytest.raises(UsageError, match="no role 'label'"):
        imported(folder / "t.csv", tmp_path, columns={"label": "colour"})


NAMES = [("training", "valid", "testing"), ("Train", "VAL", "Test"), ("TRAINING", "dev", "test"), ("train", "validation", "test")]


@pytest.mark.parametrize("names", NAMES)
def test_names_of_splits(folder, tmp_path, wanted, names):
    other = dict(zip(("train", "val", "test"), names, strict=True))
    (folder / "t.csv").write_text(dump([(*row[:3], other[row[3]]) for row in ROWS]))
    report, _ = imported(folder / "t.csv", tmp_path)
    assert report.sha256 == wanted
    assert report.read_as["splits"] == {name: split for split, name in sorted(other.items(), key=lambda i: i[1]) if name != split}


def test_without_splits_they_are_drawn_by_the_seed(folder, tmp_path):
    (folder / "t.csv").write_text(dump([row[:3] for row in ROWS], HEADER[:3]))
    first, dest = imported(folder / "t.csv", tmp_path, seed=3)
    space = Dataset.open(dest).space
    assert (~space.seen_mask(space.test_pairs)).any()
    assert "seed 3" in first.read_as["split"]
    (folder / "u.csv").write_text(dump([row[:3] for row in reversed(ROWS)], HEADER[:3], delimiter=";"))
    assert imported(folder / "u.csv", tmp_path, seed=3)[0].sha256 == first.sha256
    assert imported(folder / "u.csv", tmp_path, seed=4)[0].sha256 != first.sha256


def test_tables_named_after_splits(folder, tmp_path, wanted):
    for split, name in (("train", "train.csv"), ("val", "validation.csv"), ("test", "Test.csv")):
        (folder / name).write_text(dump([row[:3] for row in ROWS if row[3] == split], HEADER[:3]))
    assert imported(folder, tmp_path)[0].sha256 == wanted
    (folder / "Test.csv").write_text("image,attr\n")
    with pytest.raises(DataError, match="other columns"):
        imported(folder, tmp_path)


# -- what is unclear -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("header", "what", "choices"),
    [
        (("path", "file_name", "attr", "obj"), "may be the image", ("path", "file_name")),
        (("image", "attribute", "state", "obj"), "may be the attribute", ("attribute", "state")),
        (("image", "attr", "object", "category"), "may be the object", ("object", "category")),
        (("image", "attr", "obj", "phase", "set"), "may be the split", ("phase", "set")),
        (("image", "attr", "attr", "obj"), "may be the attribute", ("attr (2 times)",)),
        (("Image", "image", "attr", "obj"), "may be the image", ("Image", "image")),
        (("image", "label", "split"), "no column of attributes", ("label", "--classes", "pair=label")),
        (("image", "category", "split"), "no column of attributes", ("category", "class")),
        (("image", "pair", "class"), "more than one kind of label", ("pair", "class")),
        (("image", "attr", "label", "target"), "may be the object", ("label", "target")),
        (("attr", "obj", "split"), "lacks the columns image", ("attr, obj, split",)),
    ],
)
def test_unclear_columns_are_an_error_that_lists_the_choices(folder, tmp_path, header, what, choices):
    (folder / "t.csv").write_text(dump([("im/red-square-0.png",) * len(header)], header))
    with pytest.raises(DataError, match=what) as error:
        imported(folder / "t.csv", tmp_path)
    for choice in choices:
        assert choice in f"{error.value.why} {error.value.fix}"


def test_two_columns_with_different_images(folder, tmp_path, wanted):
    other = [(row[0], ROWS[(i + 1) % 24][0], *row[1:]) for i, row in enumerate(ROWS)]
    (folder / "t.csv").write_text(dump(other, ("image", "path", "attr", "obj", "split")))
    with pytest.raises(DataError, match="may be the image") as error:
        imported(folder / "t.csv", tmp_path)
    assert "image, path" in error.value.why
    assert imported(folder / "t.csv", tmp_path, columns={"image": "image"})[0].sha256 == wanted
    (folder / "t.csv").write_text(
        dump([(row[0], f"c/{row[0]}", *row[1:]) for row in ROWS], ("image", "path", "attr", "obj", "split"))
    )
    assert imported(folder / "t.csv", tmp_path)[0].sha256 == wanted  # the other one names no images


def test_a_table_that_can_be_cut_in_two_ways(folder, tmp_path):
    (folder / "t.csv").write_text("x;image;attr;obj;y,image,attr,obj,split\n")
    with pytest.raises(DataError, match="more than one way") as error:
        imported(folder / "t.csv", tmp_path)
    assert "commas: x;image;attr;obj;y, image, attr, obj, split; semicolons: x, image" in error.value.why
    (folder / "t.csv").write_text("sep=,\nx;image;attr;obj;y,image,attr,obj,split\n-,im/red-square-0.png,red,square,train\n")
    assert imported(folder / "t.csv", tmp_path)[0].read_as["columns"]["image"] == "image"


def test_a_column_that_holds_attribute_and_object(folder, tmp_path):
    rows = [(name, f"{'dark red' if attr == 'red' else attr}+{obj}", split) for name, attr, obj, split in ROWS if "," not in attr]
    (folder / "t.csv").write_text(dump(rows, ("image", "label", "split")))
    report, dest = imported(folder / "t.csv", tmp_path, columns={"pair": "label"})
    assert report.attributes == 2 and "dark red" in Dataset.open(dest).space.attributes
    rows = [(name, f"dark {attr}+{obj.split()[0]}", split) for name, attr, obj, split in ROWS if "," not in attr]
    (folder / "t.csv").write_text(dump(rows, ("image", "pair", "split")))
    with pytest.raises(DataError, match="cannot tell attribute and object"):
        imported(folder / "t.csv", tmp_path)
    with pytest.raises(UsageError, match="plain classes"):
        imported(folder / "t.csv", tmp_path, columns={"pair": "pair"}, names=ClassNames())


def test_plain_classes(folder, tmp_path):
    (folder / "t.csv").write_text(dump([(row[0], row[1], row[3]) for row in ROWS], ("path", "category", "set")))
    report, _ = imported(folder / "t.csv", tmp_path, names=ClassNames())
    assert report.classes == {"all": 3, "seen": 3, "train": 3, "val": 3, "test": 3}
    (folder / "t.csv").write_text(dump([(row[0], row[1]) for row in ROWS], ("path", "class")))
    report, _ = imported(folder / "t.csv", tmp_path, names=ClassNames(("blue",)))
    assert (report.classes["all"], report.classes["seen"]) == (3, 2)


# -- paths ---------------------------------------------------------------------------------------------------------
PATHS = [
    "{root}/{name}",
    "file://{root}/{name}",
    "file://localhost{root}/{name}",
    "{back}",
    ".\\{back}",
    "./{name}",
    "im//../{name}",
]


@pytest.mark.parametrize("form", PATHS)
def test_paths_of_other_programs(folder, tmp_path, wanted, form):
    cells = [form.format(root=folder, name=row[0], back=row[0].replace("/", "\\")) for row in ROWS]
    (folder / "t.csv").write_text(dump([(cell, *row[1:]) for cell, row in zip(cells, ROWS, strict=True)]))
    if ".." in form:
        with pytest.raises(TooManyBadError) as error:
            imported(folder / "t.csv", tmp_path)
        assert kinds(error.value.report) == {"path leaves the root": 24}
    else:
        assert imported(folder / "t.csv", tmp_path)[0].sha256 == wanted


def test_percent_signs_in_file_addresses(folder, tmp_path):
    (folder / "im" / "a b%.png").write_bytes(encode(77, kind="PNG"))
    (folder / "t.csv").write_text(dump([(f"file://{folder}/im/a%20b%25.png", "red", "square", "train")]))
    _, dest = imported(folder / "t.csv", tmp_path)
    assert set(labels(dest)) == {"im/a b%.png"}


def test_root_names_the_folder_of_the_images(folder, tmp_path, wanted):
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "t.csv"
    for cells in ([row[0] for row in ROWS], [str(folder / row[0]) for row in ROWS]):
        path.write_text(dump([(cell, *row[1:]) for cell, row in zip(cells, ROWS, strict=True)]))
        with pytest.raises(TooManyBadError) as error:
            imported(path, tmp_path)
        reason = error.value.report.problems[0]
        assert reason.kind in ("missing image", "path leaves the root")
        assert reason.kind == "missing image" or "--root" in reason.detail
        assert imported(path, tmp_path, root=folder)[0].sha256 == wanted
    with pytest.raises(DataError, match="no folder"):
        imported(path, tmp_path, root=tmp_path / "none")


def test_paths_that_leave_the_root(folder, tmp_path):
    (tmp_path / "outside.png").write_bytes(encode(99, kind="PNG"))
    bad = ["../outside.png", str(tmp_path / "outside.png"), "file:///etc/passwd", "..\\outside.png"]
    bad += ["C:\\im\\a.png", "https://x.org/a.png", "\\\\server\\a.png"]
    (folder / "t.csv").write_text(dump([*ROWS, *((name, "red", "square", "train") for name in bad)]))
    report = import_dataset(folder / "t.csv", tmp_path / "out", LENIENT)
    assert kinds(report) == {"path leaves the root": len(bad)}
    assert sum(report.images.values()) == 24


def test_a_table_reached_through_a_link(folder, tmp_path, wanted):
    (folder / "t.csv").write_text(dump([(str(tmp_path / "link" / row[0]), *row[1:]) for row in ROWS]))
    (tmp_path / "link").symlink_to(folder)
    assert imported(tmp_path / "link" / "t.csv", tmp_path)[0].sha256 == wanted


# -- bad input -----------------------------------------------------------------------------------------------------
def test_bad_rows_are_listed_and_the_rest_is_imported(folder, tmp_path):
    text = (
        dump(ROWS)
        + 'im/red-square-0.png,red,square,train,more\r\nim/red-square-1.png,red\r\n,red,square,train\r\nx"y"z,"a"b,c,train\r\n'
    )
    (folder / "t.csv").write_text(text)
    report = import_dataset(folder / "t.csv", tmp_path / "out", LENIENT)
    assert sum(report.images.values()) == 24
    assert report.bad == 4
    assert kinds(report) == {"too many cells": 1, "missing label": 1, "missing image": 1, "unreadable row": 1}
    assert problem(report, "too many cells").where == ("t.csv, line 26",)
    assert problem(report, "unreadable row").where == ("t.csv, line 29",)
    with pytest.raises(TooManyBadError):
        import_dataset(folder / "t.csv", tmp_path / "other")


def test_bad_json_lines_are_listed(folder, tmp_path):
    bad = ["{", "[1]", '{"image": {"a": 1}, "attr": "red", "obj": "square", "split": "train"}', '{"attr": "a", "attr": "b"}',
           '{"image": "im/red-square-0.png", "attr": ["x", {}], "obj": "square", "split": "train"}',
           '{"image": "im/red-square-0.png", "attr": NaN, "obj": "square", "split": "train"}', "[" * 100_000, "9" * 10_000]  # fmt: skip
    (folder / "t.jsonl").write_text("\n".join([*map(json.dumps, records()), *bad]))
    report = import_dataset(folder / "t.jsonl", tmp_path / "out", LENIENT)
    assert sum(report.images.values()) == 24
    assert report.bad == len(bad)
    assert kinds(report) == {"unreadable row": 5, "unusable label": 2, "missing image": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "lacks the columns"),
        ("t.csv", b"image,attr,obj,split\n", "no labelled image"),
        ("t.csv", b"image,attr,obj,split\nim/r\xe9d.png,a,b,train\n", "line 2 is not UTF-8"),
        ("t.csv", b"\xff\xfeimage", "not UTF-16"),
        ("t.csv", b'image,attr,obj,split\n"im/a.png,red,square,train\nim/b.png,red,square,train\n', "line 2 is not closed"),
        ("t.csv", b"image,attr,obj,split," + b",".join(b"c%d" % i for i in range(1_000_000)), "1,000,004 columns"),
        ("t.jsonl", json.dumps({f"c{i}": 1 for i in range(20_000)}).encode(), "columns"),
        ("t.json", b'[{"image": 1}', "cannot read"),
        ("t.json", b"[" * 200_000, "nested too deep"),
        ("t.json", b"{}", "lacks the columns"),
        ("t.json", b"[]", "lacks the columns"),
        ("t.json", b'{\n"data": [\n{"image": "a.png"}\n]}', "it has: data"),
        ("t.json", b'[{"image": "a", "attr": "b", "attr": "c", "obj": "d", "split": "train"}]', "lacks the columns"),
        ("t.parquet", b"PAR1" + b"\0" * 100, "cannot read"),
        ("t.parquet", b"PAR1" + (2**31 - 1).to_bytes(4, "little") + b"PAR1", "cannot read"),
        ("t.parquet", b"hello", "Parquet"),
        ("t.bin", b"\0\1\2\xff" * 30, "is not a folder"),
        ("t.zip", b"PK\x03\x04" + b"\0" * 30, "ZIP archive"),
        ("t.csv.gz", b"\x1f\x8b" + b"\0" * 30, "gzip"),
        ("t.t7", b"\x80", "is not a folder"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read(folder, tmp_path, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        imported(folder / name, tmp_path)
    assert message in str(error.value)
    assert len(str(error.value)) < 3000


def test_parquet_tables(folder, tmp_path, wanted):
    columns = {name: [row[i] for row in ROWS] for i, name in enumerate(("path", "state", "noun", "phase"))}
    table = pa.table({**columns, "vector": [[1.0, 2.0]] * 24, "state2": ["x"] * 24})
    table = table.set_column(1, "state", table["state"].dictionary_encode())
    pq.write_table(table, folder / "t.parquet")
    assert imported(folder / "t.parquet", tmp_path)[0].sha256 == wanted
    pq.write_table(table.set_column(1, "state", pa.array([{"a": 1}] * 24)), folder / "t.parquet")
    with pytest.raises(TooManyBadError) as error:
        imported(folder / "t.parquet", tmp_path)
    assert kinds(error.value.report) == {"unusable label": 24}


def test_one_image_with_many_labels_is_numbered(folder, tmp_path):
    cells = [("im/red-square-0.png", f"a{i % 7}", f"o{i % 11}", "train") for i in range(77)]
    (folder / "t.csv").write_text(dump([*cells, cells[0], cells[5]]))
    report = import_dataset(folder / "t.csv", tmp_path / "out", LENIENT)
    assert report.images["train"] == 77 and kinds(report)["repeated record"] == 2
    assert set(labels(tmp_path / "out")) == {"im/red-square-0.png", *(f"im/red-square-0.png#{i}" for i in range(2, 78))}


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match="no file or folder"):
        import_dataset(tmp_path / "t.csv", tmp_path / "out")


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is absent")
def test_the_collected_cases(tmp_path):
    names = ("semicolon.csv", "tab.tsv", "lines.jsonl", "names.csv", "capitals.csv", "splits.csv", "backslashes.csv")
    reports = [imported(CASES / "tables" / name, tmp_path)[0] for name in names]
    assert {report.sha256 for report in reports} == {reports[0].sha256}
    assert [sum(report.images.values()) for report in reports] == [24] * 7
    report, _ = imported(CASES / "image-folder", tmp_path)
    assert (report.layout, report.images, report.pairs) == (
        "imagefolder", {"train": 12, "val": 6, "test": 6}, {"train": 6, "val": 6, "test": 6}
    )  # fmt: skip
