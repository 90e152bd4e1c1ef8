"""Published benchmarks exactly as they are downloaded: a tiny set of the right form for each."""

import json
import shutil

import pytest

from czsl.data.importing.importers import ImportOptions, TooManyBadError, import_dataset
from czsl.data.importing.pairs import read_pair_lists
from czsl.data.table import Dataset
from czsl.errors import DataError
from tests.czsl.data.conftest import LENIENT, encode, kinds, labels

LISTS = "compositional-split-natural"


def write_benchmark(root, pairs, records, sign=" ", form="json"):
    (root / LISTS).mkdir(parents=True)
    for split, lines in pairs.items():
        (root / LISTS / f"{split}_pairs.txt").write_text("\n".join(sign.join(pair) for pair in lines) + "\n")
    path = root / f"metadata_{LISTS}.{form}"
    if form == "json":
        path.write_text(json.dumps(records))
    else:
        pytest.importorskip("torch").save(records, path)


def put(root, name, seed):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(encode(seed))


# -- UT-Zappos -----------------------------------------------------------------------------------------------------
SHOES = {
    "train": [("Canvas", "Boots.Ankle"), ("Faux.Leather", "Shoes.Flats")],
    "val": [("Canvas", "Shoes.Flats")],
    "test": [("Canvas", "Boots.Ankle"), ("Faux.Leather", "Boots.Ankle")],
}


def shoes():
    number = 0
    for split, pairs in SHOES.items():
        for attr, obj in pairs:
            for brand in ("Ariat", "Robert Wayne", "Primigi Kids."):
                kind, part = obj.split(".")
                name = f"{8000000 + number}.{number}.jpg"
                yield {
                    "image": f"{attr}_{obj}/{name}", "_image": f"{kind}/{part}/{brand}/{name}", "attr": attr, "obj": obj, "set": split,
                }  # fmt: skip
                number += 1


@pytest.mark.parametrize("base", ["ut-zap50k-images", "_images", "images", "images/ut-zap50k-images"])
@pytest.mark.parametrize("form", ["t7", "json"])
def test_ut_zappos_as_downloaded(tmp_path, base, form):
    """The metadata's `image` exists only after a third-party script; `_image` is the path in the archive."""
    root, arranged, records = tmp_path / "ut-zap50k", tmp_path / "arranged", list(shoes())
    for number, record in enumerate(records):
        put(root, f"{base}/{record['_image'].replace('Kids.', 'Kids%2E')}", number)
        put(arranged, f"images/{record['image']}", number)
    write_benchmark(root, SHOES, records, form=form)
    write_benchmark(arranged, SHOES, records, form=form)
    wanted = import_dataset(arranged, tmp_path / "a")
    report = import_dataset(root, tmp_path / "b")
    assert report.bad == 0 and report.images == {"train": 6, "val": 3, "test": 6}
    assert report.sha256 == wanted.sha256  # the same dataset, whatever the form of the download
    assert report.read_as["images"].endswith(f"below {base.split('/')[0]}/")
    assert "images" not in wanted.read_as


def test_an_image_of_ut_zappos_that_is_not_in_the_archive(tmp_path):
    root, records = tmp_path / "ut-zap50k", list(shoes())
    for number, record in enumerate(records[1:]):
        put(root, f"ut-zap50k-images/{record['_image']}", number)
    records[1]["_image"] = "../../outside.jpg"
    write_benchmark(root, SHOES, records)
    report = import_dataset(root, tmp_path / "out", LENIENT)
    assert kinds(report) == {"missing image": 2}
    assert report.problems[0].where == (f"images/{records[0]['image']}",)


# -- MIT-States, C-GQA, Clothing16K --------------------------------------------------------------------------------
STATES = {
    "train": [("ancient", "building"), ("rusty", "car")],
    "val": [("ancient", "car")],
    "test": [("rusty", "car"), ("rusty", "building")],
}


def states(sign="_"):
    names = [(a, o, s, f"{a}{sign}{o}/{n}.jpg") for s, pairs in STATES.items() for a, o in pairs for n in (f"{s}1", f"{s}2")]
    return [{"image": name.replace(" ", "_"), "attr": a, "obj": o, "set": s} for a, o, s, name in names]


@pytest.mark.parametrize("base", ["images", "release_dataset/images"])
def test_mit_states(tmp_path, base):
    """Folders have a space, names in the metadata an underscore; pairs named `adj ...` have no label."""
    root = tmp_path / "mit-states"
    for number, record in enumerate(states()):
        folder, name = record["image"].split("/")
        put(root, f"{base}/{folder.replace('_', ' ')}/{name}", number)
    write_benchmark(root, STATES, [*states(), {"image": "adj_car/1.jpg", "attr": "NA", "obj": "car", "set": "NA"}], form="t7")
    report = import_dataset(root, tmp_path / "out")
    assert (report.bad, report.images) == (0, {"train": 4, "val": 2, "test": 4})
    assert kinds(report) == {"unlabelled record": 1}


def test_clothing16k_and_cgqa(tmp_path):
    for number, name in enumerate(("clothing16k", "cgqa")):
        root = tmp_path / name
        records = states()
        for place, record in enumerate(records):
            if number:  # C-GQA's images lie in one folder, named by numbers and labels
                record["image"] = f"{place}-1-{record['attr']}-{record['obj']}.jpg"
            put(root, f"images/{record['image']}", place)
        pairs = STATES if not number else STATES | {"train": [*STATES["train"], ("angry", "person")]}
        write_benchmark(root, pairs, records, form="t7")
        report = import_dataset(root, tmp_path / f"out-{name}")
        assert report.bad == 0 and sum(report.images.values()) == 10
        assert kinds(report) == ({"pair without images": 1} if number else {})


# -- VAW-CZSL ------------------------------------------------------------------------------------------------------
VAW = {
    "train": [("red", "shirt"), ("long sleeved", "coat"), ("red", "traffic light")],
    "val": [("long sleeved", "shirt")],
    "test": [("red", "coat"), ("red", "shirt")],
}


def vaw(root):
    records = []
    for split, pairs in VAW.items():
        for attr, obj in pairs:
            name = f"{split} {attr}-{obj}.jpg"
            put(root, f"images/{name}", len(records))
            records.append({"image": name, "attr": attr, "obj": obj, "set": split})
    return records


def test_vaw_czsl_has_plus_signs_in_pairs_and_spaces_in_names(tmp_path):
    root = tmp_path / "vaw-czsl"
    write_benchmark(root, VAW, vaw(root), sign="+", form="t7")
    report = import_dataset(root, tmp_path / "out")
    assert (report.layout, report.problems) == ("published", [])
    space = Dataset.open(tmp_path / "out").space
    assert space.attributes == ("long sleeved", "red")
    assert space.objects == ("coat", "shirt", "traffic light")
    assert labels(tmp_path / "out")["images/val long sleeved-shirt.jpg"] == "val long sleeved shirt"
    assert report.read_as["pairs"] == "attribute+object"


def test_pair_lists_that_can_be_read_in_two_ways(tmp_path):
    root = tmp_path / "vaw-czsl"
    records = [r for r in vaw(root) if r["attr"] == "long sleeved"]
    pairs = {s: [p for p in pairs if p[0] == "long sleeved"] or [("long sleeved", "hat")] for s, pairs in VAW.items()}
    write_benchmark(root, pairs, records, sign="+")
    with pytest.raises(DataError, match="more than one way") as error:
        import_dataset(root, tmp_path / "out")
    assert "attribute 'long', object 'sleeved+coat'" in error.value.why
    assert "attribute 'long sleeved', object 'coat'" in error.value.why
    assert "--pairs" in error.value.fix
    report = import_dataset(root, tmp_path / "out", ImportOptions(separator="plus"))
    assert report.attributes == 1 and report.bad == 0
    with pytest.raises(TooManyBadError) as error:  # as words, the lists hold other labels than the metadata
        import_dataset(root, tmp_path / "other", ImportOptions(separator="space"))
    assert kinds(error.value.report)["unknown pair"] == 2


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["wet dog", "dry cat"], "space"),
        (["red+shirt", "long sleeved+shirt"], "plus"),
        (["a b c+d e", "f+g"], "plus"),
        (["wet dog", "red+shirt"], None),
        (["wet dog", "long sleeved+shirt"], None),
        (["long sleeved+shirt"], None),
        (["c++ book", "old car"], None),
        (["red+shirt+x"], None),
        (["+shirt", "red+"], None),
        (["wet dog", "wet"], "line 2"),
        (["dark red car"], "line 1"),
    ],
)
def test_separators(tmp_path, lines, wanted):
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join(["", *lines[:1], "", *lines[1:]]))
    if wanted in ("space", "plus"):
        found, separator = read_pair_lists([path])
        assert separator == wanted and len(found[0]) == len(lines)
        assert ["+".join(pair) if wanted == "plus" else " ".join(pair) for pair in found[0]] == lines
        return
    with pytest.raises(DataError) as error:
        read_pair_lists([path])
    assert wanted is None or "expected: attribute object" in error.value.why
    assert wanted is not None or "more than one way" in error.value.what


def test_a_folder_around_a_benchmark_is_named(tmp_path, published):
    (tmp_path / "zip").mkdir()
    shutil.move(published.root, tmp_path / "zip" / "cgqa")
    with pytest.raises(DataError, match="fits no layout") as error:
        import_dataset(tmp_path / "zip", tmp_path / "out")
    assert "published benchmark (cgqa)" in error.value.why
