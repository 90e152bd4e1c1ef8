"""Exports of Label Studio and FiftyOne."""

import csv
import io
import json

import pytest
from PIL import Image

from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.table import Dataset
from czsl.errors import DataError
from tests.czsl.data.conftest import LENIENT, encode, kinds, labels, problem

PAIRS = [("red", "shirt"), ("blue", "hat"), ("blue", "shirt"), ("red", "hat")]
SPLITS = ("train", "train", "val", "test")


def put(root, names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(number, (40, 20)))


# -- Label Studio --------------------------------------------------------------------------------------------------
def choice(name, *values, **more):
    return {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": list(values)}, **more}


def task(number, image, *results, **more):
    return {
        "id": number, "annotations": [{"id": 1, "was_cancelled": False, "result": list(results)}], "predictions": [],
        "data": {"image": image, "split": SPLITS[number % 4]}, **more,
    }  # fmt: skip


def tasks(address="/data/upload/3/1a2b3c4d-{number}.jpg"):
    return [
        task(i, address.format(number=i), choice("attribute", a), choice("category", o), file_upload=f"1a2b3c4d-{i}.jpg")
        for i, (a, o) in enumerate(PAIRS)
    ]


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("/data/upload/3/1a2b3c4d-{number}.jpg", "{number}.jpg"),
        ("/data/upload/3/1a2b3c4d-{number}.jpg", "images/1a2b3c4d-{number}.jpg"),
        ("/data/upload/1a2b3c4d-{number}.jpg", "upload/1a2b3c4d-{number}.jpg"),
        ("/data/local-files/?d=photos/a%20b/{number}.jpg", "photos/a b/{number}.jpg"),
        ("s3://bucket/set/{number}.jpg", "set/{number}.jpg"),
        ("https://example.org/files/{number}.jpg?x=1", "{number}.jpg"),
        ("{number}.jpg", "{number}.jpg"),
    ],
)
def test_label_studio_json(tmp_path, address, names):
    root = tmp_path / "source"
    put(root, [names.format(number=i) for i in range(4)])
    (root / "project-1.json").write_text(json.dumps(tasks(address)))
    report = import_dataset(root / "project-1.json", tmp_path / "out")
    assert (report.layout, report.problems) == ("label-studio", [])
    assert labels(tmp_path / "out") == {names.format(number=i): f"{SPLITS[i]} {a} {o}" for i, (a, o) in enumerate(PAIRS)}
    if "images" in names:
        assert import_dataset(root, tmp_path / "folder").sha256 == report.sha256


@pytest.mark.parametrize("form", ["json", "csv"])
def test_label_studio_flat(tmp_path, form):
    root = tmp_path / "source"
    put(root, [f"images/{i}.jpg" for i in range(4)])
    rows = [
        {"image": f"/data/upload/1/1a2b3c4d-{i}.jpg", "id": i, "attribute": a, "category": o, "split": SPLITS[i], "annotator": 1,
         "annotation_id": i, "created_at": "2026", "updated_at": "2026", "lead_time": 3.5}
        for i, (a, o) in enumerate(PAIRS)
    ]  # fmt: skip
    if form == "json":
        rows[0]["attribute"] = {"choices": ["red"]}
        (root / "min.json").write_text(json.dumps(rows))
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        (root / "min.csv").write_text(text.getvalue())
    report = import_dataset(root / f"min.{form}", tmp_path / "out")
    assert (report.layout, report.problems) == ("label-studio", [])
    assert labels(tmp_path / "out") == {f"images/{i}.jpg": f"{SPLITS[i]} {a} {o}" for i, (a, o) in enumerate(PAIRS)}


def test_label_studio_boxes_with_choices(tmp_path):
    root = tmp_path / "source"
    put(root, ["0.jpg"])
    value = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["hat"]}
    box = {"id": "b1", "from_name": "category", "to_name": "image", "type": "rectanglelabels", "value": value}
    turned = {**box, "id": "b2", "value": {**value, "rotation": 30}}
    results = [box, choice("attribute", "red", id="b1"), turned, choice("attribute", "blue", id="b2")]
    (root / "p.json").write_text(json.dumps([task(0, "0.jpg", *results)]))
    report = import_dataset(root / "p.json", tmp_path / "out", LENIENT)
    assert labels(tmp_path / "out") == {"0.jpg#b1.png": "train red hat"}
    assert problem(report, "bad box").where == ("p.json, task 1, region b2",)
    dataset = Dataset.open(tmp_path / "out")
    assert Image.open(io.BytesIO(dataset.split("train").image_bytes(0))).size == (20, 5)


def test_what_is_wrong_with_tasks(tmp_path):
    root = tmp_path / "source"
    put(root, [f"{i}.jpg" for i in range(10)])
    a, b = choice("attribute", "red"), choice("category", "hat")
    other = {"result": [choice("attribute", "blue"), b]}
    found = [
        task(0, "0.jpg", a, b),
        task(1, "1.jpg", a),
        task(2, "2.jpg"),
        task(3, "3.jpg", choice("attribute", "red", "blue"), b),
        {**task(4, "4.jpg"), "annotations": [{"result": [a, b]}, other]},
        {**task(5, "5.jpg"), "annotations": [{"result": [a, b]}, {"result": [a, b]}, {**other, "was_cancelled": True}]},
        {**task(6, "6.jpg"), "annotations": None},
        {**task(7, "../../7.jpg", a, b)},
        {"data": 5}, 7,
        task(8, "8.jpg", a, b, 5, {"value": 3}, {"value": {"choices": 7}}),
        task(9, 9, a, b),
    ]  # fmt: skip
    (root / "p.json").write_text(json.dumps(found))
    report = import_dataset(root / "p.json", tmp_path / "out", LENIENT)
    assert set(labels(tmp_path / "out")) == {"0.jpg", "5.jpg", "8.jpg"}
    wanted = {"missing label": 3, "several attributes": 1, "conflicting annotations": 1, "path leaves the root": 1}
    wanted |= {"unreadable row": 2, "missing image": 1}
    assert {kind: number for kind, number in kinds(report).items() if kind in wanted} == wanted


def test_one_choice_is_a_class_or_a_pair(tmp_path):
    root = tmp_path / "source"
    put(root, [f"{i}.jpg" for i in range(4)])
    (root / "p.json").write_text(json.dumps([task(i, f"{i}.jpg", choice("choice", " ".join(p))) for i, p in enumerate(PAIRS)]))
    with pytest.raises(DataError, match="no column of attributes") as error:
        import_dataset(root / "p.json", tmp_path / "out")
    assert "--columns pair=choice" in error.value.fix and "--classes" in error.value.fix
    assert import_dataset(root / "p.json", tmp_path / "a", ImportOptions(columns={"pair": "choice"})).attributes == 2
    assert import_dataset(root / "p.json", tmp_path / "b", ImportOptions(names=ClassNames())).classes["all"] == 4


# -- FiftyOne ------------------------------------------------------------------------------------------------------
def test_fiftyone_classifications(tmp_path):
    root = tmp_path / "source"
    names = {"train": "train", "val": "validation", "test": "test"}
    classes = sorted({" ".join(pair) for pair in PAIRS})
    for number, (split, folder) in enumerate(names.items()):
        found = {}
        for i, pair in enumerate(PAIRS):
            put(root / folder / "data", [f"deep/{number}{i}.jpg"])
            found[f"deep/{number}{i}"] = classes.index(" ".join(pair))
        if split == "test":
            found |= {"deep/none": 1, "deep/20": 99, "x": {"label": 1, "bounding_box": [0, 0, 1, 1]}}
        (root / folder / "labels.json").write_text(json.dumps({"classes": classes, "labels": found}))
    report = import_dataset(root, tmp_path / "out", ImportOptions(max_bad=1, columns={"pair": "label"}))
    assert (report.layout, report.images) == ("fiftyone", {"train": 4, "val": 4, "test": 3})
    assert labels(tmp_path / "out")["validation/data/deep/12.jpg"] == "val blue shirt"
    bad = {kind: number for kind, number in kinds(report).items() if kind in ("missing image", "missing label", "unusable label")}
    assert bad == {"missing image": 1, "missing label": 1, "unusable label": 1}
    found = {f"deep/2{i}": {"label": "hat", "attributes": {"state": a}} for i, (a, _) in enumerate(PAIRS)}
    (root / "test" / "labels.json").write_text(json.dumps({"classes": None, "labels": found}))
    report = import_dataset(
        root / "test" / "labels.json", tmp_path / "one", ImportOptions(seed=2, max_bad=1, columns={"class": "label"})
    )
    assert report.classes["all"] == 1


def test_fiftyone_samples(tmp_path):
    root = tmp_path / "source"
    put(root, [f"data/{i}.jpg" for i in range(6)])

    def label(text):
        return {"_id": {"$oid": "6"}, "_cls": "Classification", "tags": [], "label": text, "confidence": 0.5}

    samples = [
        {"filepath": f"data/{i}.jpg", "tags": [SPLITS[i], "good"], "metadata": None, "state": label(a), "object": label(o)}
        for i, (a, o) in enumerate(PAIRS)
    ]
    (root / "metadata.json").write_text("{}")
    (root / "samples.json").write_text(json.dumps({"samples": samples}))
    report = import_dataset(root, tmp_path / "out")
    assert (report.layout, report.problems) == ("fiftyone", [])
    assert labels(tmp_path / "out") == {f"data/{i}.jpg": f"{SPLITS[i]} {a} {o}" for i, (a, o) in enumerate(PAIRS)}
    spoiled = [
        *samples,
        5,
        {"filepath": "../x.jpg", "tags": ["train"], "state": label("red"), "object": label("hat")},
        {"filepath": "data/4.jpg", "tags": ["train", "test"]},
        {"filepath": 7, "tags": ["train"], "state": {"_cls": "Classification"}},
    ]
    (root / "samples.json").write_text(json.dumps({"samples": spoiled}))
    report = import_dataset(root, tmp_path / "again", LENIENT)
    assert report.bad == 4 and sum(report.images.values()) == 4


def test_fiftyone_detections(tmp_path):
    root = tmp_path / "source"
    put(root, ["data/0.jpg"])
    boxes = [{"_cls": "Detection", "label": "hat", "state": "red", "bounding_box": [0.25, 0.5, 0.5, 0.25]},
             {"_cls": "Detection", "label": "hat", "state": "red", "bounding_box": [0.25, 0.5, float("nan"), 0.25]}]  # fmt: skip
    sample = {"filepath": "data/0.jpg", "tags": ["train"], "ground_truth": {"_cls": "Detections", "detections": boxes}}
    (root / "samples.json").write_text(json.dumps({"samples": [sample]}))
    report = import_dataset(root, tmp_path / "out", LENIENT)
    assert labels(tmp_path / "out") == {"data/0.jpg#ground_truth-1.png": "train red hat"}
    assert kinds(report) == {"bad box": 1}


@pytest.mark.parametrize("content", [{"classes": 5, "labels": {}}, {"classes": [], "labels": 5}, {"samples": 3}, {"samples": []}])
def test_fiftyone_of_another_form(tmp_path, content):
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(DataError):
        import_dataset(tmp_path / "labels.json", tmp_path / "out")
