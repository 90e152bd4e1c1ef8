"""Plain classes as a label space: one attribute without a name, and a JSON form of their own."""

import json

import pytest

from czsl.classes import ClassSpace
from czsl.compositions import label_of, label_words
from czsl.errors import DataError
from czsl.spaces import load_space, space_from_json

NAMES = ("dog", "coffee_table", "Cat")


def test_a_class_is_a_pair_without_an_attribute():
    space = ClassSpace.of(NAMES, seen=["Cat", "dog"], val=["Cat"], test=["coffee_table", "dog"])
    assert space.attributes == ("",)
    assert space.classes == space.objects == NAMES
    assert space.train_pairs.tolist() == [[0, 2], [0, 0]]
    assert space.open_pairs.tolist() == space.closed_pairs.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert space.seen_mask(space.closed_pairs).tolist() == [True, False, True]
    assert space.split_mask(space.closed_pairs, "val").tolist() == [True, False, True]
    assert space.pair_name((0, 1)) == "coffee_table"
    assert space.label((0, 1)) == {"class": "coffee_table"}
    assert space.vocabulary == {"classes": NAMES}


def test_all_classes_are_seen_and_shown_unless_said_otherwise():
    space = ClassSpace.of(NAMES)
    assert space.seen_mask(space.closed_pairs).all()
    assert len(space.val_pairs) == len(space.test_pairs) == 3


def test_one_loader_reads_both_kinds(tmp_path):
    space = ClassSpace.of(NAMES, ["dog"], ["dog"], ["Cat", "dog"])
    space.save(tmp_path / "space.json")
    read = load_space(tmp_path / "space.json")
    assert isinstance(read, ClassSpace)
    assert read.to_json() == space.to_json()
    assert json.loads((tmp_path / "space.json").read_text()) == {
        "classes": list(NAMES), "seen": ["dog"], "val": ["dog"], "test": ["Cat", "dog"]
    }  # fmt: skip
    short = space_from_json({"classes": list(NAMES), "seen": ["dog"]})
    assert len(short.train_pairs) == 1
    assert len(short.test_pairs) == 3
    pairs = space_from_json({"attributes": ["wet"], "objects": ["dog"]})
    assert not isinstance(pairs, ClassSpace)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"classes": []}, "no classes"),
        ({"classes": ["dog", "dog"]}, "classes named twice: dog"),
        ({"classes": ["dog", ""]}, "without a name"),
        ({"classes": ["dog"], "seen": ["cat"]}, "'cat' is not a class"),
        ({"classes": ["dog"], "seen": ["dog", "dog"]}, "train class 1 occurs twice: dog"),
        ({"classes": "dog"}, "not a space of classes"),
        ({"classes": [3]}, "not a space of classes"),
        ({"classes": ["dog"], "seen": {}}, "not a space of classes"),
    ],
)
def test_impossible_spaces_are_refused(content, words):
    with pytest.raises(DataError, match=words):
        space_from_json(content)


def test_labels_of_records():
    assert label_words(label_of("wet", "dog")) == "wet dog"
    assert label_words(label_of("", "dog")) == "dog"
    assert label_of("", "dog") == {"class": "dog"}
