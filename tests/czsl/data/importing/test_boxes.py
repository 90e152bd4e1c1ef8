"""Boxes: COCO-style JSON and VAW's; each box becomes a crop, equal to a plain cut of the decoded image."""

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from czsl.data.images import BadImage, decode
from czsl.data.importing.boxes import BadBoxError, Box, place
from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.table import Dataset
from czsl.errors import DataError
from tests.czsl.data.conftest import LENIENT, encode, kinds, labels, problem


def image_of(folder, ident):
    dataset = Dataset.open(folder)
    split = next(dataset.split(s) for s in ("train", "val", "test") if ident in dataset.split(s).ids)
    return split.image_bytes(split.ids.index(ident))


# -- boxes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "values", [None, [], [1, 2, 3], "1234", [1, 2, 3, "4"], [0, 0, math.nan, 1], [0, 0, math.inf, 1], [0, 0, 0, 5], [0, 0, 5, -1],
               [True, 0, 1, 1], [0, 0, 10**400, 1], [0, 0, 1e300, 1], {"x": 1}],
)  # fmt: skip
def test_what_is_no_box(values):
    with pytest.raises(BadBoxError):
        Box.of(values)


@given(*(st.floats(-50, 150) for _ in range(2)), *(st.floats(0.01, 150) for _ in range(2)), st.floats(0, 1))
def test_a_crop_lies_in_the_image_and_holds_the_box(x, y, width, height, margin):
    try:
        (left, top, right, bottom), over = place(Box.of([x, y, width, height]), margin, 100, 80)
    except BadImage as error:
        assert error.kind in ("box outside the image", "empty crop")
        assert x + width <= 0 or y + height <= 0 or x >= 100 or y >= 80
        return
    assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80
    assert left <= max(0, x) and right >= min(100, x + width) and top <= max(0, y) and bottom >= min(80, y + height)
    assert over == (x < -1 or y < -1 or x + width > 101 or y + height > 81)
    if margin == 0:
        assert left > x - 1 or left == 0
        assert right < x + width + 1 or right == 100


def test_fractions_and_margins():
    assert place(Box.of([0.25, 0.5, 0.5, 0.25], fraction=True), 0, 100, 80) == ((25, 40, 75, 60), False)
    assert place(Box.of([20, 20, 40, 20]), 0.5, 100, 80) == ((0, 10, 80, 50), False)


# -- COCO ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def coco(tmp_path):
    """Three images of 40 x 30 pixels, with six boxes, for training; the content can be spoiled before it is written."""
    root = tmp_path / "source"
    (root / "images").mkdir(parents=True)
    for number in range(3):
        (root / "images" / f"{number}.jpg").write_bytes(encode(number, (40, 30)))
    content = {
        "info": {},
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(3)],
        "categories": [{"id": 7, "name": "hat"}, {"id": 9, "name": "shoe"}],
        "annotations": [
            {"id": 10 + i, "image_id": i // 2, "category_id": (7, 9)[i % 2], "bbox": [i, 2, 20, 10], "iscrowd": 0,
             "attributes": {"attribute": ("red", "blue")[i // 3], "occluded": False}}
            for i in range(6)
        ],
    }  # fmt: skip
    return root, content


def write(root, content, name="annotations/train.json"):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(json.dumps(content))


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_boxes_become_crops_with_a_margin(coco, tmp_path, margin):
    root, content = coco
    write(root, content)
    report = import_dataset(root, tmp_path / "out", ImportOptions(margin=margin))
    assert (report.layout, report.images, report.problems) == ("coco", {"train": 6, "val": 0, "test": 0}, [])
    assert report.read_as["crops"] == f"boxes with a margin of {margin:g} of their sides"
    assert labels(tmp_path / "out") == {
        f"images/{i // 2}.jpg#{10 + i}.png": f"train {('red', 'blue')[i // 3]} {('hat', 'shoe')[i % 2]}" for i in range(6)
    }
    for i in range(6):
        whole = np.asarray(decode((root / "images" / f"{i // 2}.jpg").read_bytes()))
        left, right = max(0, math.floor(i - margin * 20)), math.ceil(i + 20 + margin * 20)
        top, bottom = max(0, math.floor(2 - margin * 10)), math.ceil(12 + margin * 10)
        crop = Image.open(io.BytesIO(image_of(tmp_path / "out", f"images/{i // 2}.jpg#{10 + i}.png")))
        assert (np.asarray(crop) == whole[top:bottom, left:right]).all()


def test_a_box_around_the_whole_image_is_the_image_itself(coco, tmp_path):
    root, content = coco
    content["annotations"] = content["annotations"][:3]
    content["annotations"][2]["bbox"] = [0, 0, 40, 30]
    content["annotations"][0]["bbox"] = [-0.4, 0, 41, 30]
    write(root, content)
    import_dataset(root, tmp_path / "out")
    assert set(labels(tmp_path / "out")) == {"images/0.jpg#10.png", "images/0.jpg#11.png", "images/1.jpg"}
    assert image_of(tmp_path / "out", "images/1.jpg") == encode(1, (40, 30))
    assert image_of(tmp_path / "out", "images/0.jpg#10.png") == encode(0, (40, 30))


@pytest.mark.parametrize(
    ("change", "problem_kind"),
    [
        ({"bbox": [0, 0, float("nan"), 5]}, "bad box"),
        ({"bbox": [0, 0, 0, 5]}, "bad box"),
        ({"bbox": [0, 0, 5]}, "bad box"),
        ({"bbox": [100, 100, 5, 5]}, "box outside the image"),
        ({"bbox": [-9, -9, 5, 5]}, "box outside the image"),
        ({"bbox": [0, 0, 1e-12, 5]}, None),
        ({"bbox": [35, 25, 50, 50]}, "box over the edge"),
        ({"image_id": 99}, "missing image"),
        ({"image_id": [1]}, "missing image"),
        ({"category_id": 99}, "missing label"),
        ({"category_id": {}}, "missing label"),
        ({"attributes": {}}, "missing label"),
        ({"attributes": {"attribute": {"a": 1}}}, "unusable label"),
        ({"attributes": {"attribute": ["red", "blue"]}}, "several attributes"),
        ({"iscrowd": 1}, "crowd of objects"),
    ],
)
def test_bad_annotations_are_listed(coco, tmp_path, change, problem_kind):
    root, content = coco
    content["annotations"][5] |= change
    write(root, content)
    report = import_dataset(root, tmp_path / "out", LENIENT)
    found = kinds(report)
    found.pop("pair without images", None)
    assert found == ({problem_kind: 1} if problem_kind else {})
    lost = problem_kind not in (None, "box over the edge")
    assert report.images["train"] == 6 - lost
    assert report.bad == (lost and problem_kind != "crowd of objects")


@pytest.mark.parametrize(
    "change",
    [
        {"images": {}}, {"annotations": 5}, {"categories": [1]}, {"images": [{"id": 1}, {"id": 1}]}, {"images": [{"id": [1]}]},
        {"annotations": []}, {"annotations": [1, None, []]},
    ],
)  # fmt: skip
def test_other_json_is_an_error(coco, tmp_path, change):
    root, content = coco
    write(root, content | change)
    with pytest.raises(DataError):
        import_dataset(root / "annotations" / "train.json", tmp_path / "out", ImportOptions(layout="coco"))
    with pytest.raises(DataError):
        import_dataset(root, tmp_path / "out")


def test_forms_of_attributes(coco, tmp_path):
    """A text, a list of one, numbers with a list of names, a named field, several with a choice."""
    root, content = coco
    forms = [
        ({}, [{"attributes": "red"}, {"attributes": ["red"]}]),
        ({"attributes": [{"id": 0, "name": "red"}]}, [{"attributes": None, "attribute_ids": [0]}, {"attributes": [0]}]),
        ({}, [{"attributes": None, "state": "red"}] * 2),
    ]
    for number, (more, changes) in enumerate(forms):
        annotations = [{**content["annotations"][i], **change} for i, change in enumerate(changes)]
        write(root, {**content, **more, "annotations": annotations})
        report = import_dataset(root, tmp_path / str(number))
        assert report.bad == 0 and report.pairs["train"] == 2, more
    annotations = [{**a, "attributes": {"colour": "red", "size": "big"}} for a in content["annotations"]]
    write(root, {**content, "annotations": annotations})
    with pytest.raises(DataError, match="no column of attributes") as error:
        import_dataset(root, tmp_path / "x")
    assert "colour, size" in error.value.why
    assert import_dataset(root, tmp_path / "x", ImportOptions(columns={"attr": "colour"})).pairs["train"] == 2


def test_several_attributes(coco, tmp_path):
    root, content = coco
    for i, annotation in enumerate(content["annotations"]):
        annotation["attributes"] = ["red", "wet"] if i < 2 else ["red"]
    write(root, content)
    rarest = import_dataset(root, tmp_path / "a", ImportOptions(several="rarest"))
    assert labels(tmp_path / "a")["images/0.jpg#10.png"] == "train wet hat"
    assert rarest.read_as["several attributes"] == "rarest"
    each = import_dataset(root, tmp_path / "b", ImportOptions(several="each"))
    assert each.images["train"] == 8
    assert kinds(each)["conflicting labels"] == 2
    report = import_dataset(root, tmp_path / "c", LENIENT)
    assert kinds(report)["several attributes"] == 2 and "--several" in report.problems[0].detail


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), "{split}2017/"),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), "{folder}/"),
        (("train.json", "val.json"), ""),
        (("annotations/train.json", "annotations/validation.json"), "images/{split}/"),
    ],
)
def test_where_coco_files_and_images_lie(coco, tmp_path, names, place):
    _, content = coco
    root = tmp_path / "other"
    for number, (name, split) in enumerate(zip(names, ("train", "val"), strict=True)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
        stem = name.rpartition("/")[2].removesuffix(".json")
        folder = place.format(split=stem if "images" in place else split, folder=name.partition("/")[0])
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            (root / folder / f"{i}.jpg").write_bytes(encode(10 * (number if folder else 0) + i, (40, 30)))
    report = import_dataset(root, tmp_path / "out")
    assert (report.images, report.bad) == ({"train": 6, "val": 6, "test": 0}, 0)
    one = import_dataset(root / names[0], tmp_path / "one", ImportOptions(root=root))
    assert sum(one.images.values()) == 6


def test_paths_and_ids_of_coco_stay_inside(coco, tmp_path):
    root, content = coco
    (tmp_path / "outside.jpg").write_bytes(encode(1))
    content["images"][0]["file_name"] = "../outside.jpg"
    content["images"][1]["file_name"] = None
    content["annotations"][4]["id"] = "../../x\n"
    write(root, content)
    report = import_dataset(root, tmp_path / "out", LENIENT)
    assert set(labels(tmp_path / "out")) == {"images/2.jpg#.._.._x_.png", "images/2.jpg#15.png"}
    assert kinds(report)["path leaves the root"] == 2 and kinds(report)["missing image"] == 2


# -- VAW -----------------------------------------------------------------------------------------------------------
def vaw(number, attributes, name="shirt", split_image=None):
    box = [7.0 if number == 6 else 2.0, 3.5, 20.2, 10.0]
    return {
        "image_id": str(split_image or number), "instance_id": f"{number}00", "instance_bbox": box, "instance_polygon": None,
        "object_name": name, "positive_attributes": attributes, "negative_attributes": ["wooden"],
    }  # fmt: skip


@pytest.fixture
def instances(tmp_path):
    root = tmp_path / "source"
    (root / "VG_100K").mkdir(parents=True)
    (root / "VG_100K_2").mkdir()
    for number in range(1, 9):
        (root / ("VG_100K", "VG_100K_2")[number % 2] / f"{number}.jpg").write_bytes(encode(number, (40, 30)))
    parts = {
        "train_part1.json": [vaw(1, ["red"]), vaw(2, ["long sleeved"])],
        "train_part2.json": [vaw(3, ["red"], "traffic light"), vaw(4, ["red"])],
        "val.json": [vaw(5, ["long sleeved"]), vaw(6, ["long sleeved"], split_image=5)],
        "test.json": [vaw(7, ["red"]), vaw(8, [])],
    }
    for name, records in parts.items():
        (root / name).write_text(json.dumps(records))
    return root


def test_vaw_instances(instances, tmp_path):
    report = import_dataset(instances, tmp_path / "out")
    assert (report.layout, report.bad) == ("vaw", 0)
    assert kinds(report) == {"record without an attribute": 1}
    assert labels(tmp_path / "out") == {
        "VG_100K_2/1.jpg#100.png": "train red shirt",
        "VG_100K/2.jpg#200.png": "train long sleeved shirt",
        "VG_100K_2/3.jpg#300.png": "train red traffic light",
        "VG_100K/4.jpg#400.png": "train red shirt",
        "VG_100K_2/5.jpg#500.png": "val long sleeved shirt",
        "VG_100K_2/5.jpg#600.png": "val long sleeved shirt",
        "VG_100K_2/7.jpg#700.png": "test red shirt",
    }
    assert Image.open(io.BytesIO(image_of(tmp_path / "out", "VG_100K/2.jpg#200.png"))).size == (21, 11)


def test_vaw_with_the_pair_lists_of_vaw_czsl(instances, tmp_path):
    lists = instances / "compositional-split-natural"
    lists.mkdir()
    pairs = {"train": ["red+shirt", "red+traffic light"], "val": ["long sleeved+shirt"], "test": ["red+shirt", "wet+shirt"]}
    for split, lines in pairs.items():
        (lists / f"{split}_pairs.txt").write_text("\n".join(lines))
    (instances / "test.json").write_text(json.dumps([vaw(7, ["red", "striped"]), vaw(8, ["red", "wet"])]))
    report = import_dataset(instances, tmp_path / "out", LENIENT)
    assert report.pairs == {"train": 2, "val": 1, "test": 2}
    assert labels(tmp_path / "out")["VG_100K_2/7.jpg#700.png"] == "test red shirt"
    assert problem(report, "several attributes").where == ("test.json, record 2",)
    assert kinds(report)["record of no listed pair"] == 1
    report = import_dataset(instances, tmp_path / "rare", ImportOptions(several="rarest"))
    assert labels(tmp_path / "rare")["VG_100K/8.jpg#800.png"] == "test wet shirt"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"instance_bbox": [0, 0, -5, 2]}, "bad box"),
        ({"instance_bbox": None}, "bad box"),
        ({"image_id": "../1"}, "path leaves the root"),
        ({"image_id": 77}, "missing image"),
        ({"image_id": None}, "missing image"),
        ({"object_name": None}, "missing label"),
        ({"positive_attributes": [{}]}, "unusable label"),
        ({"positive_attributes": None}, "missing label"),
    ],
)
def test_bad_instances(instances, tmp_path, change, kind):
    records = json.loads((instances / "train_part1.json").read_text())
    records.append(vaw(4, ["red"]) | change)
    (instances / "train_part1.json").write_text(json.dumps(records))
    report = import_dataset(instances, tmp_path / "out", LENIENT)
    assert kinds(report) == {"record without an attribute": 1, kind: 1}
