"""Plain classes from folders and manifests: which are unseen, how images are split, and what verification says."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from czsl.classes import ClassSpace
from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.importing.splitting import split_by_class
from czsl.data.stats import stats
from czsl.data.table import Dataset
from czsl.data.verify import verify
from czsl.errors import DataError, UsageError
from tests.czsl.data.conftest import encode


def imported(source, tmp_path, unseen=None, **options):
    report = import_dataset(source, tmp_path / "data", ImportOptions(names=ClassNames(unseen), **options))
    return report, Dataset.open(tmp_path / "data")


def test_a_folder_for_each_class_is_split_by_the_seed(make_tree, tmp_path):
    source = make_tree({"dog": 10, "coffee_table": 5, "Cat": 2, "lonely": 1, "hat": 4, "owl": 3, "wasp": 3})
    report, data = imported(source, tmp_path, ("coffee table", "hat", "owl", "wasp"), seed=3)
    space = data.space
    assert isinstance(space, ClassSpace)
    assert space.classes == ("Cat", "coffee_table", "dog", "hat", "lonely", "owl", "wasp")
    names = {split: Counter(row.obj for row in data.split(split).rows()) for split in ("train", "val", "test")}
    unseen = {"coffee_table", "hat", "owl", "wasp"}
    assert names["train"] == {"dog": 6, "Cat": 1, "lonely": 1}
    assert {split: count["dog"] for split, count in names.items()} == {"train": 6, "val": 2, "test": 2}
    assert names["test"]["Cat"] == 1
    assert len(unseen & names["val"].keys()) == 1  # three sevenths of four, whole classes
    assert unseen == (names["val"].keys() | names["test"].keys()) & unseen
    assert not unseen & names["val"].keys() & names["test"].keys()
    assert report.classes == {"all": 7, "seen": 3, "train": 3, "val": len(names["val"]), "test": len(names["test"])}
    content = report.to_json()
    assert content["classes"] == report.classes
    assert "pairs" not in content and "attributes" not in content
    again, _ = imported(source, tmp_path / "again", ("coffee table", "hat", "owl", "wasp"), seed=3)
    assert again.sha256 == report.sha256


def test_a_split_does_not_depend_on_the_order_of_the_images():
    images = [(f"{c}/{i}", "", c) for c in "abcdef" for i in range(7)]
    whole = dict(zip([i[0] for i in images], split_by_class(images, "ab", 1), strict=True))
    turned = images[::-1]
    assert dict(zip([i[0] for i in turned], split_by_class(turned, "ba", 1), strict=True)) == whole
    assert split_by_class(images, "a", 0)[:7] == ["test"] * 7  # one unseen class alone
    assert whole != dict(zip([i[0] for i in images], split_by_class(images, "ab", 2), strict=True))


def test_folders_of_splits_show_what_is_unseen(make_tree, tmp_path):
    source = make_tree({"train/dog": 3, "train/train": 2, "val/owl": 2, "test/dog": 2, "test/wasp": 1})
    report, data = imported(source, tmp_path)
    assert data.space.to_json() == {
        "classes": ["dog", "owl", "train", "wasp"], "seen": ["dog", "train"], "val": ["owl"], "test": ["dog", "wasp"]
    }  # fmt: skip
    found = stats(data)
    assert found["classes"] == 4
    assert found["splits"]["test"]["images"] == {"all": 3, "seen": 2, "unseen": 1}
    assert found["splits"]["test"]["classes"]["unseen"] == 1
    assert "attributes" not in found and "open_world" not in found
    checked = verify(tmp_path / "data")
    assert not checked.bad and not report.bad
    assert {p.kind for p in checked.problems} == set()


def test_a_class_may_be_called_train(make_tree, tmp_path):
    _, data = imported(make_tree({"train": 6, "bus": 6}), tmp_path)
    assert data.space.classes == ("bus", "train")
    assert data.space.seen_mask(data.space.closed_pairs).all()


def test_training_images_of_unseen_classes_are_left_out_and_listed(make_tree, tmp_path):
    source = make_tree({"train/dog": 3, "train/owl": 3, "test/dog": 2, "test/owl": 2})
    report, data = imported(source, tmp_path, ("owl",))
    assert data.counts == {"train": 3, "val": 0, "test": 4}
    assert [p.kind for p in report.problems] == ["training image of an unseen class"] * 3
    assert not data.space.seen_mask(data.space.test_pairs).all()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_manifest_with_a_class_column_is_recognised(tmp_path, form):
    rows = [("a.jpg", "dog", "train"), ("b.jpg", "dog", "test"), ("c.jpg", "polar bear", "test"), ("d.jpg", "", "test")]
    for number, (name, *_) in enumerate(rows):
        (tmp_path / name).write_bytes(encode(number))
    columns = dict(zip(("image", "class", "split"), map(list, zip(*rows, strict=True)), strict=True))
    path = tmp_path / f"manifest.{form}"
    if form == "csv":
        path.write_text("image,class,split\n" + "\n".join(",".join(row) for row in rows) + "\n")
    else:
        pq.write_table(pa.table(columns), path)
    report = import_dataset(path, tmp_path / "data", ImportOptions(max_bad=0.5))
    data = Dataset.open(tmp_path / "data")
    assert data.space.classes == ("dog", "polar bear")
    assert data.space.train_pairs.tolist() == [[0, 0]]
    assert [p.kind for p in report.problems if p.bad] == ["missing label"]


def test_what_cannot_be_read_as_classes_is_said(make_tree, published, tmp_path):
    source = make_tree({"dog": 2, "cat": 2})
    with pytest.raises(DataError, match="unknown classes: 'dgo'") as error:
        imported(source, tmp_path, ("dgo",))
    assert "'dog'" in error.value.why
    with pytest.raises(UsageError, match="not classes"):
        imported(published.root, tmp_path)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("image,attr,obj,split\n")
    with pytest.raises(DataError, match="lacks the columns class"):
        imported(manifest, tmp_path)
    (source / "loose.png").write_bytes(encode(1, kind="PNG"))
    report, _ = imported(source, tmp_path, max_bad=1)
    assert [p.kind for p in report.problems if p.bad] == ["no class"]


def test_a_class_without_images_and_a_wrong_class_are_found(make_tree, tmp_path):
    imported(make_tree({"dog": 3, "cat": 3}), tmp_path)
    path = tmp_path / "data" / "space.json"
    path.write_text(path.read_text().replace('"classes": [', '"classes": [ "owl",').replace('"test": [', '"test": [ "owl",'))
    found = verify(tmp_path / "data")
    assert ("class without images", ("owl",)) in [(p.kind, p.where) for p in found.problems]
    assert found.bad  # the space is not the one that was imported
