"""Region files: our own, GRiT's and GroundingDINO's; what is refused, and how."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from czsl.data.files.masks import decode_mask
from czsl.data.files.regions import MAX_REGIONS, ImageRegions, Region, RegionTable, from_grit, read_regions
from czsl.errors import DataError

OWN = {
    "image": "photos/dog.jpg",
    "regions": [{"phrase": "a  brown dog", "box": [1, 2, 30, 40], "score": 0.5}, {"phrase": "grass", "box": [0, 20, 64, 48.5]}],
    "matches": {"dog": ["a brown dog"]},
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("form", ["one", "list", "lines"])
def test_our_own_records_come_back_as_they_were(tmp_path, form):
    second = {"image": "cat.png", "regions": []}
    text = {"one": json.dumps(OWN), "list": json.dumps([OWN, second]), "lines": f"{json.dumps(OWN)}\n\n{json.dumps(second)}\n"}[
        form
    ]
    table = read_regions(write(tmp_path / "regions.json", text))
    found = table.of("photos/dog.jpg")
    assert found.regions[0] == Region("a brown dog", (1, 2, 30, 40), 0.5)
    assert found.matches == {"dog": ("a brown dog",)}
    again = read_regions(write(tmp_path / "again.json", table.to_json()))
    assert again.images == table.images


def test_an_image_is_found_by_name_file_or_stem_unless_two_share_it():
    table = RegionTable({"a/dog.jpg": ImageRegions(), "b/cat.jpg": ImageRegions(), "c/cat.jpg": ImageRegions()})
    for name in ("a/dog.jpg", "dog.jpg", "dog", "/somewhere/dog.png"):
        assert table.of(name) is table.images["a/dog.jpg"]
    assert table.of("cat.jpg") is None
    assert table.of("b/cat.jpg") is table.images["b/cat.jpg"]
    assert table.of("bird.jpg") is None


@pytest.mark.parametrize("box", [[2, 3, 10, 12], [2.7, 3.2, 10.9, 12.1], [0, 0, 0, 0], [5, 1, 63, 47]])
def test_a_box_of_grit_covers_what_pillow_draws(box):
    drawn = Image.new("1", (64, 48))
    ImageDraw.Draw(drawn).rectangle(box, fill=1)
    (region,) = from_grit({"a dog": [box]}).regions
    assert np.array_equal(region.pixels((64, 48)), np.asarray(drawn))


def test_grit_comes_as_one_image_as_many_or_as_a_folder(tmp_path):
    captions = {"a dog": [[1, 2, 3, 4], [5, 6, 7, 8]], "grass": [0, 0, 9, 9]}
    one = read_regions(write(tmp_path / "dog.json", captions))
    many = read_regions(write(tmp_path / "many.json", {"dog.jpg": captions, "cat.jpg": {}}))
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "dog.json", captions)
    write(folder / "cat.json", {"a cat": [[1, 1, 2, 2]]})
    for table in (one, many, read_regions(folder)):
        found = table.of("dog.jpg")
        assert [r.phrase for r in found.regions] == ["a dog", "a dog", "grass"]
        assert [r.box for r in found.regions] == [(1, 2, 4, 5), (5, 6, 8, 9), (0, 0, 10, 10)]
        assert read_regions(write(tmp_path / "own.json", table.to_json())).of("dog.jpg") == found


def test_boxes_of_grounding_dino_are_centres_in_shares_of_the_image(tmp_path):
    record = {
        "image": "dog.jpg",
        "boxes": [[0.5, 0.5, 0.25, 0.5], [0.25, 0.25, 0.5, 0.5]],
        "phrases": ["dog", "cat"],
        "logits": [0.9, 0.4],
    }
    table = read_regions(write(tmp_path / "dino.json", [record]))
    found = table.of("dog.jpg")
    covered = found.regions[0].pixels((64, 40))
    assert covered.sum() == 16 * 20
    assert covered[10:30, 24:40].all()
    assert [r.score for r in found.regions] == [0.9, 0.4]
    assert read_regions(write(tmp_path / "own.json", table.to_json())).of("dog.jpg") == found


def test_a_mask_runs_down_the_columns():
    mask = np.zeros((3, 4), bool)
    mask[1:, 1] = mask[0, 2] = True
    code = {"size": [3, 4], "counts": [4, 3, 5]}
    assert np.array_equal(decode_mask(code, (4, 3)), mask)
    assert Region("x", (0, 0, 1, 1), mask={"size": [3, 4], "counts": [12]}).pixels((4, 3)) is None
    with pytest.raises(DataError, match="does not fit"):
        decode_mask(code, (3, 4))
    with pytest.raises(DataError, match="add up"):
        decode_mask({"size": [3, 4], "counts": [4, 3]}, (4, 3))


def test_a_region_outside_of_the_image_covers_nothing():
    assert Region("x", (100, 0, 120, 10)).pixels((64, 48)) is None
    assert Region("x", (-20, -20, 5, 5)).pixels((64, 48)).sum() == 25


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[1, 2", "neither JSON nor JSON lines"),
        ([1, 2], "not a file of regions"),
        ({"image": "a", "regions": {}}, "no list of regions"),
        ({"regions": []}, "without an image"),
        ({"image": "a", "regions": [{"phrase": "x"}]}, "without a box"),
        ({"image": "a", "regions": [{"phrase": "x", "box": [1, 2, 3]}]}, "four finite numbers"),
        ({"image": "a", "regions": [{"phrase": "x", "box": [1, 2, 3, True]}]}, "four finite numbers"),
        ('{"image": "a", "regions": [{"phrase": "x", "box": [1, 2, 3, NaN]}]}', "four finite numbers"),
        ({"image": "a", "regions": [{"phrase": "x", "box": [5, 2, 3, 9]}]}, "no area"),
        ({"image": "a", "regions": [{"phrase": 3, "box": [1, 2, 3, 4]}]}, "missing or too long"),
        ({"image": "a", "regions": [{"phrase": "x" * 2000, "box": [1, 2, 3, 4]}]}, "missing or too long"),
        ({"image": "a", "regions": [{"phrase": "x", "box": [1, 2, 3, 4], "score": "high"}]}, "not a number"),
        ({"image": "a", "regions": [{"phrase": "x", "mask": {"size": [1, 2], "counts": 3}}]}, "run-length code"),
        ({"image": "a", "regions": [{"phrase": "x", "mask": {"size": [10**6, 10**6], "counts": [1]}}]}, "limit"),
        ({"image": "a", "regions": [{"phrase": "x", "mask": {"size": [1, 2], "counts": [-1, 3]}}]}, "whole numbers"),
        ({"image": "a", "regions": [{"phrase": "x", "box": [1, 2, 3, 4]}] * (MAX_REGIONS + 1)}, "limit"),
        ({"image": "a", "regions": [], "matches": {"dog": "a dog"}}, "lists of phrases"),
        ([OWN, OWN], "twice|two records"),
        ({"a dog": "everywhere"}, "no boxes"),
        ({"image": "a", "boxes": [[0, 0, 1, 1]], "phrases": []}, "one length"),
        ({"image": "a", "boxes": [[0, 0, 1, 1]], "phrases": ["x"], "logits": [1, 2]}, "as many logits"),
        ([{"image": "a", "boxes": [], "phrases": []}] * 2, "twice|two records"),
    ],
)
def test_what_is_no_region_file_is_refused_in_words(tmp_path, content, why):
    with pytest.raises(DataError, match=why):
        read_regions(write(tmp_path / "bad.json", content))


def test_missing_and_empty_places_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_regions(tmp_path / "none.json")
    with pytest.raises(DataError, match="holds no regions"):
        read_regions(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="it looks like UTF-16"):
        read_regions(tmp_path / "binary.json")
