"""Importing: the three layouts, and every kind of bad input by name."""

import csv
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from czsl.data.importing.foldernames import FolderNames
from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.table import Dataset
from czsl.data.verify import verify
from czsl.errors import DataError, UsageError

from ..conftest import LENIENT, PAIRS, TREE, encode, kinds, labels, problem

SHARED = Path(__file__).parents[5] / "shared"


# -- layouts -------------------------------------------------------------------------------------------------------
def test_published(published, tmp_path):
    report = import_dataset(published.root, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert (report.layout, report.name, report.bad, report.problems) == ("published", "source", 0, [])
    assert report.images == {"train": 12, "val": 3, "test": 6}
    for split, pairs in PAIRS.items():
        assert [dataset.space.pair_name(p) for p in getattr(dataset.space, f"{split}_pairs")] == pairs
        part = dataset.split(split)
        assert part.ids == sorted(part.ids)
        for row, data in part.iter_images():
            assert data == (published.root / part.ids[row]).read_bytes()
            assert dataset.space.pair_name(part.pairs[row]).replace(" ", "_") in part.ids[row]
    assert report.sha256 == dataset.sha256
    assert verify(tmp_path / "out").problems == []


def test_order_of_records_and_worker_number_change_nothing(published, tmp_path):
    import_dataset(published.root, tmp_path / "a", ImportOptions(workers=1))
    published.records.reverse()
    published.write_metadata()
    import_dataset(published.root, tmp_path / "b", ImportOptions(workers=5))
    for name in ("dataset.json", "space.json", "train-00000.parquet", "test-00000.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_published_folders_with_spaces(published, tmp_path):
    published.add("dry cat/9.jpg", "dry cat", "train")
    published.records[-1]["image"] = "dry_cat/9.jpg"
    published.write_metadata()
    report = import_dataset(published.root, tmp_path / "out")
    assert report.problems == []
    assert "images/dry cat/9.jpg" in labels(tmp_path / "out")


def test_published_na_records_and_files_without_a_record_are_no_bad_images(published, tmp_path):
    published.add("na.jpg", "NA dog", "NA")
    (published.root / "images" / "stray.jpg").write_bytes(b"")
    report = import_dataset(published.root, tmp_path / "out")
    assert report.bad == 0
    assert kinds(report) == {"unlabelled record": 1, "file without a record": 1}
    assert problem(report, "file without a record").where == ("images/stray.jpg",)


@pytest.mark.parametrize("sign", [" ", "_", "/"])
def test_tree_with_splits(make_tree, tmp_path, sign):
    root = make_tree({f"{s}/{pair.replace(' ', sign)}": 2 for s, pairs in PAIRS.items() for pair in pairs})
    (root / "train" / "README.txt").write_text("about")
    for hidden in (root / "train" / ".ipynb_checkpoints" / "0-checkpoint.png", root / "__MACOSX" / "wet dog" / "._0.png"):
        hidden.parent.mkdir(parents=True)
        hidden.write_bytes(encode(9, kind="PNG"))
    report = import_dataset(root, tmp_path / "out")
    assert report.layout == "tree"
    assert kinds(report) == {"not an image file": 1, "hidden file": 2}
    wanted = {f"{s}/{p.replace(' ', sign)}/{i}.png": f"{s} {p}" for s, pairs in PAIRS.items() for p in pairs for i in range(2)}
    assert labels(tmp_path / "out") == wanted


@pytest.mark.parametrize("sign", [" ", "_", "/"])
def test_tree_split_by_pair(make_tree, tmp_path, sign):
    root = make_tree({pair.replace(" ", sign): number for pair, number in TREE.items()})
    report = import_dataset(root, tmp_path / "out", ImportOptions(seed=5))
    space = Dataset.open(tmp_path / "out").space
    assert kinds(report) == {}
    assert sum(report.images.values()) == 24
    assert (~space.seen_mask(space.test_pairs)).any()
    again = import_dataset(root, tmp_path / "again", ImportOptions(seed=5))
    assert again.sha256 == report.sha256


def test_tree_names_with_lists(make_tree, tmp_path):
    root = make_tree({f"train/{n}": 1 for n in ("dark_red_hat", "red_dark_hat", "blue_tie", "dark_red_tie")})
    with pytest.raises(DataError, match=r"unclear .*dark_red_hat"):
        import_dataset(root, tmp_path / "out")
    names = FolderNames(("dark_red", "red"), ("hat", "dark_hat", "tie"))
    report = import_dataset(root, tmp_path / "out", ImportOptions(names=names, max_bad=0.5))
    assert set(labels(tmp_path / "out").values()) == {"train dark_red hat", "train red dark_hat", "train dark_red tie"}
    assert problem(report, "unknown pair").where == ("train/blue_tie/0.png",)


def test_tree_images_outside_the_pattern_are_listed(make_tree, tmp_path):
    root = make_tree({**{f"train/{pair}": 4 for pair in TREE}, "train/wet cat/more": 1, "train": 1, "extra/wet cat": 1})
    report = import_dataset(root, tmp_path / "out", LENIENT)
    assert kinds(report) == {"no pair": 2, "unknown split": 1}
    assert report.bad == 3
    assert report.images["train"] == 24


def write_manifest(path, rows, columns=("image", "attr", "obj", "split")):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([columns, *rows])
    else:
        pq.write_table(pa.table({c: [row[i] for row in rows] for i, c in enumerate(columns)}), path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("by_folder", [True, False])
def test_manifest(make_tree, tmp_path, suffix, by_folder):
    root = make_tree({"x": 3, "y, z": 1})
    rows = [("./x/0.png", "wet", "dog", "train"), ("x//1.png", "dry", "cat", "train"), ("y, z/0.png", "wet", "cat", "test")]
    path = root / f"manifest{suffix}"
    write_manifest(path, [(*row, 7) for row in rows], ("image", "attr", "obj", "split", "weight"))
    report = import_dataset(root if by_folder else path, root / "out")  # the destination may lie beside the manifest
    assert report.layout == "manifest"
    assert report.name == "tree"
    assert report.problems == []
    wanted = {"x/0.png": "train wet dog", "x/1.png": "train dry cat", "y, z/0.png": "test wet cat"}
    assert labels(root / "out") == wanted


def test_manifest_errors(make_tree, tmp_path):
    root = make_tree({"x": 2})
    write_manifest(root / "list.csv", [("x/0.png", "wet")], ("image", "attribute"))
    with pytest.raises(DataError, match="lacks the columns obj") as error:
        import_dataset(root / "list.csv", tmp_path / "out")
    assert "image, attribute" in error.value.why
    (root / "list.csv").write_bytes(b"image,attr,obj,split\n\xff\xfe,a,b,train\n")
    with pytest.raises(DataError, match="cannot read"):
        import_dataset(root / "list.csv", tmp_path / "out")
    (root / "list.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot read"):
        import_dataset(root / "list.parquet", tmp_path / "out")
    rows = [("x/0.png", "wet", "dog", "train"), ("x/1.png", "", "dog", "train"), ("x/1.png", "wet", "dog", "night")]
    write_manifest(root / "list.csv", rows)
    report = import_dataset(root / "list.csv", tmp_path / "out", LENIENT)
    assert kinds(report) == {"missing label": 1, "unknown split": 1}


# -- duplicates ----------------------------------------------------------------------------------------------------
def add_twins(published):
    """Four groups: within train; train and test; val and test with other labels; a record twice."""
    published.add("same_1.jpg", "dry cat", "train", encode(60))
    published.add("same_2.jpg", "dry cat", "train", encode(60))
    published.add("leak_1.jpg", "wet cat", "train", encode(61))
    published.add("leak_2.jpg", "wet cat", "test", encode(61))
    published.add("clash_1.jpg", "wet dog", "val", encode(62))
    published.add("clash_2.jpg", "dry hat", "test", encode(62))
    published.record("same_1.jpg", "dry cat", "train")
    published.record("train_dry_dog_0.jpg", "wet hat", "train")


def test_identical_images_are_listed_and_kept(published, tmp_path):
    add_twins(published)
    report = import_dataset(published.root, tmp_path / "out")
    assert report.duplicates == {"groups": 4, "across_splits": 2, "train_and_test": 1, "conflicting_labels": 2}
    wanted = {"identical images": 4, "identical images across splits": 2, "conflicting labels": 2, "repeated record": 1}
    assert kinds(report) == wanted
    clash = next(p for p in report.problems if p.kind == "conflicting labels" and "images/clash_1.jpg" in p.where)
    assert clash.where == ("images/clash_1.jpg", "images/clash_2.jpg")
    assert (clash.done, clash.detail) == ("kept", "wet dog; dry hat")
    assert report.bad == 0
    assert sum(report.images.values()) == 21 + 6 + 1
    assert labels(tmp_path / "out")["images/train_dry_dog_0.jpg#2"] == "train wet hat"
    checked = verify(tmp_path / "out")
    assert checked.bad == 0
    assert checked.duplicates == report.duplicates


def test_drop_duplicates_drops_only_what_training_has(published, tmp_path):
    add_twins(published)
    before = import_dataset(published.root, tmp_path / "all")
    report = import_dataset(published.root, tmp_path / "out", ImportOptions(drop_duplicates=True))
    assert set(labels(tmp_path / "all")) - set(labels(tmp_path / "out")) == {"images/leak_2.jpg"}
    leak = next(p for p in report.problems if "images/leak_1.jpg" in p.where and "across" in p.kind)
    assert leak.done == "dropped images/leak_2.jpg"
    assert report.duplicates == before.duplicates
    assert verify(tmp_path / "out").duplicates["train_and_test"] == 0


# -- whole imports that stop ---------------------------------------------------------------------------------------
def test_hostile_t7_stops_the_import(published, tmp_path):
    torch = pytest.importorskip("torch")

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save([Attack()], published.root / "metadata_compositional-split-natural.t7")
    with pytest.raises(DataError, match="refused") as error:
        import_dataset(published.root, tmp_path / "out", LENIENT)
    assert error.value.exit_code == 3
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out").exists()


def test_sources_that_are_none(published, make_tree, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    for source, message in (
        (tmp_path / "none", "no file or folder"),
        (tmp_path / "empty", "no labelled image"),
        (tmp_path / "file.txt", "is not a folder"),
    ):
        with pytest.raises(DataError, match=message):
            import_dataset(source, tmp_path / "out")
    import_dataset(published.root, tmp_path / "done")
    with pytest.raises(DataError, match="dataset folder already"):
        import_dataset(tmp_path / "done", tmp_path / "out")
    (published.root / "compositional-split-natural" / "val_pairs.txt").write_text("wet dog\nvery wet dog\n")
    with pytest.raises(DataError, match="line 2"):
        import_dataset(published.root, tmp_path / "out")
    (published.root / "compositional-split-natural" / "val_pairs.txt").write_text("wet dog\n")
    (published.root / "metadata_compositional-split-natural.json").unlink()
    with pytest.raises(DataError, match=r"\.t7"):
        import_dataset(published.root, tmp_path / "out")
    with pytest.raises(UsageError, match="overlap"):
        import_dataset(make_tree({"train/wet dog": 1}), tmp_path / "tree" / "out")


def test_nothing_usable_at_all(make_tree, tmp_path):
    root = make_tree({"train/wet dog": 1})
    (root / "train" / "wet dog" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="no usable image"):
        import_dataset(root, tmp_path / "out", LENIENT)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "fashion").is_dir(), reason="../shared/data/fashion is absent")
def test_fashion(tmp_path):
    report = import_dataset(SHARED / "data" / "fashion", tmp_path / "fashion")
    assert report.images == {"train": 9690, "val": 3123, "test": 4040}
    assert report.pairs == {"train": 207, "val": 96, "test": 128}
    assert (report.attributes, report.objects, report.bad) == (21, 36, 0)
    assert report.duplicates == {"groups": 171, "across_splits": 26, "train_and_test": 18, "conflicting_labels": 8}
    wanted = {"identical images": 171, "identical images across splits": 26, "conflicting labels": 8}
    assert kinds(report) == wanted
    dropped = import_dataset(SHARED / "data" / "fashion", tmp_path / "dropped", ImportOptions(drop_duplicates=True))
    assert sum(report.images.values()) - sum(dropped.images.values()) > 18
    assert kinds(verify(tmp_path / "fashion")) == wanted
