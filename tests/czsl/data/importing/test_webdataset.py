"""WebDataset: tar shards that are read in place, whatever lies in them."""

import io
import json
import tarfile

import pytest

from czsl.data.importing import webdataset
from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.table import Dataset
from czsl.errors import DataError
from tests.czsl.data.conftest import LENIENT, encode, kinds, labels, problem

PAIRS = [("red", "disc"), ("red", "cone"), ("blue", "disc"), ("blue", "cone")]


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = content.encode() if isinstance(content, str) else content
            if info.type == tarfile.REGTYPE:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(number, form, pair):
    attr, obj = pair
    yield f"{number:04d}.jpg", encode(number)
    if form == "json":
        yield f"{number:04d}.json", json.dumps({"attr": attr, "obj": obj, "caption": "a thing", "size": [1, 2]})
    elif form == "files":
        yield from ((f"{number:04d}.attr.txt", f"{attr}\n"), (f"{number:04d}.obj", obj))
    else:
        yield from ((f"{number:04d}.cls", str(PAIRS.index(pair))), (f"{number:04d}.txt", "a caption"))


def write_shards(root, form="json"):
    for place, split in enumerate(("train", "val", "test")):
        members = [m for i, pair in enumerate(PAIRS) for m in sample(10 * place + i, form, pair)]
        write_tar(root / f"shapes-{split}-000000.tar", members)
    return root


@pytest.mark.parametrize("form", ["json", "files"])
def test_shards(tmp_path, form):
    root = write_shards(tmp_path / "source", form)
    report = import_dataset(root, tmp_path / "out")
    assert (report.layout, report.problems, report.images) == ("webdataset", [], {"train": 4, "val": 4, "test": 4})
    dataset = Dataset.open(tmp_path / "out")
    assert labels(tmp_path / "out")["shapes-val-000000/0012.jpg"] == "val blue disc"
    for row, data in dataset.split("test").iter_images():
        assert data == encode(20 + row)
    assert sorted(p.name for p in root.iterdir()) == [f"shapes-{s}-000000.tar" for s in ("test", "train", "val")]
    one = import_dataset(root / "shapes-train-000000.tar", tmp_path / "one")
    assert one.images == {"train": 4, "val": 0, "test": 0}


def test_numbers_of_classes_have_names(tmp_path):
    root = write_shards(tmp_path / "source", "cls")
    (root / "classnames.txt").write_text("\n".join(" ".join(pair) for pair in PAIRS))
    report = import_dataset(root, tmp_path / "out")
    assert report.classes["all"] == 4
    pairs = import_dataset(root, tmp_path / "pairs", ImportOptions(columns={"pair": "cls"}))
    assert (pairs.attributes, pairs.objects) == (2, 2)
    (root / "classnames.txt").write_text("one\n")
    report = import_dataset(root, tmp_path / "short", ImportOptions(max_bad=1, names=ClassNames()))
    assert kinds(report)["unusable label"] == 9


def test_a_shard_among_image_files_is_not_read(make_tree, tmp_path):
    root = make_tree({f"train/{a} {o}": 1 for a, o in PAIRS})
    write_tar(root / "photos.tar", sample(1, "json", PAIRS[0]))
    assert import_dataset(root, tmp_path / "out").layout == "tree"


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_members_that_are_refused(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(encode(99))
    members = [m for i, pair in enumerate(PAIRS) for m in sample(i, "json", pair)]
    members += [
        ("../0009.jpg", encode(9)),
        ("/0008.jpg", encode(8)),
        ("a/../../x.json", "{}"),
        (member("0010.jpg", tarfile.SYMTYPE, str(tmp_path / "secret.jpg")), b""),
        (member("0011.jpg", tarfile.LNKTYPE, "0001.jpg"), b""),
        (member("0012.jpg", tarfile.FIFOTYPE), b""),
        (member("0013.jpg", tarfile.CHRTYPE), b""),
        ("0001.png", encode(1, kind="PNG")),
        ("0020.jpg", encode(20)),
        ("0021.json", json.dumps({"attr": "red", "obj": "disc"})),
        ("0022.jpg", encode(22)), ("0022.json", "{"),
        ("0023.jpg", encode(23)), ("0023.json", "[1]"),
        ("0024.jpg", b""), ("0024.json", json.dumps({"attr": "red", "obj": "disc"})),
        ("folder/", b""), (".hidden", b"x"), ("._0001.jpg", b"x"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "train.tar", members)
    report = import_dataset(path, tmp_path / "out", LENIENT)
    assert set(labels(tmp_path / "out")) == {f"train/{i:04d}.jpg" for i in range(4)}
    assert kinds(report) == {
        "path leaves the root": 3, "link in an archive": 2, "unusable file": 2, "repeated member": 1, "missing label": 3,
        "missing image": 1, "unreadable row": 2, "empty file": 1,
    }  # fmt: skip
    assert problem(report, "repeated member").where == ("train.tar: 0001.png",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "secret.jpg", "train.tar"]


def test_too_many_members(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "train.tar", [m for i in range(50) for m in sample(i, "json", PAIRS[i % 4])])
    assert import_dataset(path, tmp_path / "out").images["train"] == 50
    monkeypatch.setattr(webdataset, "MAX_MEMBERS", 99)
    with pytest.raises(DataError, match="more than 99 members"):
        import_dataset(path, tmp_path / "again")


def test_large_labels_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_LABEL_BYTES", 100)
    members = [*sample(1, "json", PAIRS[0]), *sample(2, "json", PAIRS[1])]
    members += [("0003.jpg", encode(3)), ("0003.json", json.dumps({"attr": "x" * 200}))]
    report = import_dataset(write_tar(tmp_path / "train.tar", members), tmp_path / "out", LENIENT)
    assert kinds(report) == {"unreadable row": 1, "missing label": 1}


def test_damaged_archives_lose_nothing_in_silence(tmp_path):
    """A damaged header in the middle ends tarfile's reading without an error."""
    path = write_shards(tmp_path / "source") / "shapes-train-000000.tar"
    content = path.read_bytes()
    starts = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
    spoiled = {
        "empty": b"",
        "cut in a header": content[: starts[2] + 100],
        "cut in an image": content[: starts[-2] + 700],
        "damaged header": content[: starts[4]] + b"x" * 512 + content[starts[4] + 512 :],
        "joined": content + content,
        "compressed": b"\x1f\x8b" + content,
        "no tar": b"hello " * 200,
    }
    for name, data in spoiled.items():
        path.write_bytes(data)
        with pytest.raises(DataError) as error:
            import_dataset(path, tmp_path / name)
        assert "shapes-train-000000.tar" in error.value.what, name
    path.write_bytes(content[: starts[-1] + 512])  # the end marks are missing, but no sample is
    with pytest.raises(DataError):
        import_dataset(path, tmp_path / "cut")
