"""The review file, and the way back: labels that a person corrected, added to a dataset."""

from __future__ import annotations

import csv
import io
import json

import pytest

from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.table import open_data
from czsl.data.toy import dataset as toy
from czsl.errors import DataError, UsageError
from czsl_cli.review import Review, review_table


def record(image, prob, *more, **facts):
    found = [("red", "apple", prob), *more]
    return {
        "image": image,
        "predictions": [{"attr": a, "obj": o, "score": 1.0, "prob": p} for a, o, p in found],
        "error": None,
        **facts,
    }


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        toy.draw("red", "apple", seed=100 + i).save(folder / f"{i}.png")
    return folder


def written(photos, records, path, size=None):
    review = Review(path, photos, size)
    for r in records:
        review.add(r)
    return review, review.write()


def test_the_least_sure_come_first_and_ties_by_name(photos, tmp_path):
    records = [record(f"{name}.png", prob) for name, prob in (("c", 0.5), ("a", 0.9), ("e", 0.2), ("b", 0.5), ("d", 0.5))]
    records.append({"image": "broken.png", "predictions": [], "error": "empty file"})
    review, count = written(photos, records, tmp_path / "review.csv", 3)
    assert count == 3
    assert [row["image"] for row in rows_of(review.path)] == ["photos/e.png", "photos/b.png", "photos/c.png"]


def test_with_a_threshold_all_that_are_not_sure_are_written(photos, tmp_path):
    records = [record(f"{i}.png", i / 50, sure=i >= 30) for i in range(50)]
    review, count = written(photos, records, tmp_path / "review.csv")
    assert count == 30
    assert rows_of(review.path)[0] == {
        "image": "photos/0.png", "attr": "red", "obj": "apple", "split": "train", "predicted": "red apple", "prob": "0.0000"
    }  # fmt: skip
    assert written(photos, [record("0.png", 0.9, sure=True)], tmp_path / "none.csv")[1] == 0
    assert len(rows_of(written(photos, [record(f"{i}.png", 0.1) for i in range(50)], tmp_path / "20.csv")[0].path)) == 20


def test_candidates_are_in_the_file_and_no_cell_is_a_formula():
    text = review_table([record("=1+1.png", 0.41, ("dry", "dog", 0.3), ("wet", "cat", 0.001))], None)
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["image"], row["prob"]) == ("./=1+1.png", "0.4100")
    assert (row["candidate_2"], row["candidate_3"]) == ("dry dog 30 %", "wet cat <1 %")


def test_corrections_are_never_overwritten(photos, tmp_path):
    path = tmp_path / "review.csv"
    path.write_text("my corrections")
    with pytest.raises(UsageError, match="not overwritten"):
        Review(path, photos)
    with pytest.raises(UsageError, match=r"is a \.csv"):
        Review(tmp_path / "review.xlsx", photos)
    review = Review(tmp_path / "other.csv", photos)
    review.add(record("0.png", 0.5))
    review.path.write_text("a faster process")
    with pytest.raises(DataError, match="exists now"):
        review.write()
    assert review.path.read_text() == "a faster process"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.csv", "photos", "review.csv"]


def corrected(path, labels):
    """Change labels as a person does in a spreadsheet: by image, (attr, obj)."""
    rows = rows_of(path)
    for row in rows:
        row["attr"], row["obj"] = labels.get(row["image"].removeprefix("photos/"), (row["attr"], row["obj"]))
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


def test_a_corrected_file_comes_back_as_labels_beside_those_of_a_dataset(photos, tmp_path, dataset):
    review, _ = written(photos, [record(f"{i}.png", 0.1 * i) for i in range(5)], tmp_path / "review.csv")
    corrected(review.path, {"0.png": ("Blue", "ball"), "1.png": ("", ""), "2.png": ("shiny", "appel")})
    report = import_dataset(review.path, tmp_path / "more", ImportOptions(add_to=dataset))
    old, new = open_data(dataset), open_data(tmp_path / "more")
    assert report.review == {"changed": 2, "left": 2, "empty": 1}
    assert (report.named, report.bad, new.name) == (4, 0, old.name)
    assert len(new.split("train")) == len(old.split("train")) + 4
    for split in ("val", "test"):
        assert list(new.split(split).rows()) == list(old.split(split).rows())
        assert [new.split(split).image_bytes(i) for i in range(3)] == [old.split(split).image_bytes(i) for i in range(3)]
    labels = {row.id: (row.attr, row.obj) for row in new.split("train").rows()}
    assert labels["photos/0.png"] == ("blue", "ball")  # the dataset's spelling
    assert labels["photos/2.png"] == ("shiny", "appel")
    assert "photos/1.png" not in labels
    assert new.space.attributes == (*old.space.attributes, "shiny")
    assert new.space.objects == (*old.space.objects, "appel")
    assert {r.id for r in old.split("train").rows()} <= set(labels)
    listed = {p.kind: p.detail for p in report.problems}
    assert listed["new object"] == "a misspelt 'apple'?"
    assert "no label given" in listed


def test_pairs_that_training_sees_only_now_are_named(photos, tmp_path, dataset):
    old = open_data(dataset)
    unseen = next(pair for pair in old.space.test_pairs if not old.space.seen_mask(pair[None])[0])
    review, _ = written(photos, [record("0.png", 0.1)], tmp_path / "review.csv")
    corrected(review.path, {"0.png": old.space.pair_names(unseen)})
    report = import_dataset(review.path, tmp_path / "more", ImportOptions(add_to=dataset))
    (found,) = [p for p in report.problems if p.kind == "no longer unseen"]
    assert found.where == (old.space.pair_name(unseen),)


def test_the_same_images_can_be_added_twice_and_are_listed(photos, tmp_path, dataset):
    review, _ = written(photos, [record("0.png", 0.1)], tmp_path / "review.csv")
    import_dataset(review.path, tmp_path / "one", ImportOptions(add_to=dataset))
    report = import_dataset(review.path, tmp_path / "two", ImportOptions(add_to=tmp_path / "one"))
    ids = open_data(tmp_path / "two").split("train").ids
    assert {"photos/0.png", "photos/0.png#2"} <= set(ids)
    assert [p.where for p in report.problems if p.kind == "identical images"] == [("photos/0.png", "photos/0.png#2")]


def test_adding_refuses_what_cannot_be(photos, tmp_path, dataset):
    review, _ = written(photos, [record("0.png", 0.1)], tmp_path / "review.csv")
    with pytest.raises(UsageError):
        import_dataset(review.path, dataset, ImportOptions(add_to=dataset, force=True))
    assert open_data(dataset).split("train").image_bytes(0)
    (tmp_path / "classes.csv").write_text("image,class,split\nphotos/0.png,apple,train\n")
    with pytest.raises(DataError, match="cannot be mixed"):
        import_dataset(tmp_path / "classes.csv", tmp_path / "more", ImportOptions(add_to=dataset))
    with pytest.raises(DataError, match="not a dataset folder"):
        import_dataset(review.path, tmp_path / "more", ImportOptions(add_to=photos))
    assert not (tmp_path / "more").exists()


def test_images_may_lie_elsewhere_than_the_file(photos, tmp_path):
    (tmp_path / "tables").mkdir()
    review, _ = written(photos, [record("0.png", 0.1), record("1.png", 0.2)], tmp_path / "tables" / "review.csv")
    assert f"--root {photos}" in review.next_step
    assert rows_of(review.path)[0]["image"] == "0.png"
    report = import_dataset(review.path, tmp_path / "data", ImportOptions(root=photos))
    assert report.images == {"train": 2, "val": 0, "test": 0}
    with pytest.raises(UsageError, match="--root with the layout tree"):
        import_dataset(photos, tmp_path / "other", ImportOptions(root=photos))
    with pytest.raises(DataError, match="no folder"):
        import_dataset(review.path, tmp_path / "other", ImportOptions(root=tmp_path / "none"))


def test_names_with_spaces_at_their_ends_are_found(tmp_path, photos):
    (photos / "0.png").rename(photos / " 0 .png")
    review, _ = written(photos, [record(" 0 .png", 0.1)], photos / "review.csv")
    assert import_dataset(review.path, tmp_path / "data").images["train"] == 1


def test_the_command_tells_what_was_added(photos, tmp_path, dataset, czsl):
    review, _ = written(photos, [record(f"{i}.png", 0.1) for i in range(3)], tmp_path / "review.csv")
    corrected(review.path, {"0.png": ("blue", "ball")})
    shown = czsl("data", "import", "review.csv", "more", "--add-to", dataset)
    assert "3 images added" in shown.stdout
    assert "1 changed, 2 as predicted, 0 empty" in shown.stdout
    told = json.loads(czsl("data", "import", "review.csv", "again", "--add-to", dataset, "--json").stdout)
    assert told["review"] == {"changed": 1, "left": 2, "empty": 0}
    assert (
        "is the dataset to add to" in czsl("data", "import", "review.csv", "more", "--add-to", "more", "--force", expect=2).stderr
    )
