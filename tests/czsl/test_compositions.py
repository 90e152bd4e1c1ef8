"""The label space against plain Python: sets, lists and products of names."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from czsl.compositions import SPLITS, CompositionSpace, index_pairs, prompt_name
from czsl.errors import DataError, UsageError
from czsl.spaces import load_space, space_from_json

NONE = np.zeros((0, 2), dtype=np.int64)


def space(attributes=("wet", "dry"), objects=("dog", "cat"), train=((0, 0),), val=(), test=()):
    return CompositionSpace(attributes, objects, *(np.array(p, dtype=np.int64).reshape(-1, 2) for p in (train, val, test)))


@st.composite
def spaces(draw):
    names = st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4), min_size=1, max_size=5, unique=True
    )
    attributes, objects = draw(names), draw(names)
    every = list(itertools.product(range(len(attributes)), range(len(objects))))
    splits = [draw(st.lists(st.sampled_from(every), unique=True)) for _ in SPLITS]
    return space(tuple(attributes), tuple(objects), *splits)


def tuples(pairs):
    return [tuple(p) for p in pairs.tolist()]


@given(spaces())
def test_worlds_and_masks_are_those_of_sets(s):
    train, val, test = (tuples(getattr(s, f"{split}_pairs")) for split in SPLITS)
    assert tuples(s.closed_pairs) == sorted({*train, *val, *test})
    assert tuples(s.open_pairs) == list(itertools.product(range(s.num_attributes), range(s.num_objects)))
    assert s.pairs(open_world=True) is s.open_pairs
    for pairs in (s.closed_pairs, s.open_pairs, s.open_pairs[::-1]):
        assert s.seen_mask(pairs).tolist() == [p in train for p in tuples(pairs)]
        assert s.split_mask(pairs, "val").tolist() == [p in {*train, *val} for p in tuples(pairs)]
        assert s.split_mask(pairs, "test").tolist() == [p in {*train, *test} for p in tuples(pairs)]


@given(spaces(), st.randoms())
def test_locate_is_the_index_in_a_list(s, random):
    within = tuples(s.closed_pairs)
    random.shuffle(within)
    places = s.locate(s.open_pairs, np.array(within).reshape(-1, 2))
    assert places.tolist() == [within.index(p) if p in within else -1 for p in tuples(s.open_pairs)]


@given(spaces())
def test_json_brings_the_space_back(s):
    back = space_from_json(json.loads(json.dumps(s.to_json())))
    assert (back.attributes, back.objects) == (s.attributes, s.objects)
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(back, f"{split}_pairs"), getattr(s, f"{split}_pairs"))


def test_file_brings_the_space_back(tmp_path, small_space):
    small_space.save(tmp_path / "space.json")
    assert load_space(tmp_path / "space.json").to_json() == small_space.to_json()


def test_open_world_of_a_large_space_is_arithmetic():
    """C-GQA: 413 attributes, 674 objects."""
    large = space(tuple(map(str, range(413))), tuple(map(str, range(674))))
    assert large.open_pairs.shape == (278362, 2)
    assert large.open_pairs[-1].tolist() == [412, 673]
    assert large.locate(np.array([[412, 673]]), large.open_pairs).tolist() == [278361]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attributes": ()}, "no attributes"),
        ({"objects": ()}, "no objects"),
        ({"attributes": ("wet", "dry", "wet")}, "attributes named twice: wet"),
        ({"objects": ("dog", "dog")}, "objects named twice: dog"),
        ({"train": [(0, 0), (1, 1), (0, 0)]}, "train pair 2 occurs twice: wet dog"),
        ({"val": [(2, 0)]}, "val pairs name an index outside"),
        ({"val": [(0, 2)]}, "val pairs name an index outside"),
        ({"test": [(-1, 0)]}, "test pairs name an index outside"),
    ],
)
def test_impossible_spaces_are_refused(changes, named):
    with pytest.raises(DataError, match=named):
        space(**changes)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "attributes, objects"),
        (5, "attributes, objects"),
        ({"attributes": ["wet"]}, "no list: objects"),
        ({"attributes": "wet", "objects": ["dog"]}, "no list: attributes"),
        ({"attributes": ["wet"], "objects": ["dog"], "train_pairs": None}, "no list: train_pairs"),
        ({"attributes": ["wet"], "objects": ["dog"], "train_pairs": [["wet", "dog"], ["wet", "cat"]]}, "pair 1 .*'cat'"),
        ({"attributes": ["wet"], "objects": ["dog"], "val_pairs": [["wet"]]}, "pair 0"),
        ({"attributes": ["wet"], "objects": ["dog"], "test_pairs": [7]}, r"pair 0 \(7\)"),
        ({"attributes": ["wet"], "objects": ["dog"], "test_pairs": [[["wet"], "dog"]]}, "pair 0"),
    ],
)
def test_json_of_another_shape_is_refused(content, named):
    with pytest.raises(DataError, match=named):
        space_from_json(content)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000])
def test_a_file_that_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "space.json").write_bytes(content)
    with pytest.raises(DataError, match="is not JSON"):
        load_space(tmp_path / "space.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file .*absent\.json"):
        load_space(tmp_path / "absent.json")


def test_pairs_cannot_be_changed_behind_the_masks():
    s = space()
    with pytest.raises(ValueError, match="read-only"):
        s.train_pairs[0, 0] = 1


def test_index_pairs_of_nothing_is_an_empty_table():
    assert index_pairs([], ["wet"], ["dog"]).shape == (0, 2)


@pytest.mark.parametrize(
    ("name", "clean", "reference"),
    [
        ("Faux.Leather", "faux leather", "faux leather"),
        ("coffee_table", "coffee table", "coffee_table"),
        ("Boots.Mid-Calf", "boots mid-calf", "boots mid-calf"),
        (" a__b ", "a b", " a__b "),
    ],
)
def test_prompt_names(name, clean, reference):
    assert prompt_name(name) == clean
    assert prompt_name(name, "reference") == reference


def test_an_unknown_style_of_names_is_refused():
    with pytest.raises(UsageError, match="'refrence'"):
        prompt_name("wet", "refrence")
