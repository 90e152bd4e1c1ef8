"""The split by pair."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from czsl.data.importing.splitting import split_by_pair
from czsl.errors import DataError


def grid(attributes, objects, images):
    return [(f"{a}/{o}/{i}", f"a{a}", f"o{o}") for a in range(attributes) for o in range(objects) for i in range(images)]


def pairs_of(images, splits):
    found = defaultdict(set)
    for (_, attr, obj), split in zip(images, splits, strict=True):
        found[split].add((attr, obj))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=49), st.integers(0, 99))
def test_rules_hold_for_any_pairs(cells, seed):
    images = sorted({(f"{a}/{o}/{i}", f"a{a}", f"o{o}") for a, o, n in cells for i in range(n)})
    try:
        splits = split_by_pair(images, seed)
    except DataError:
        attributes = Counter(a for _, a, _ in {(0, a, o) for _, a, o in images})
        objects = Counter(o for _, _, o in {(0, a, o) for _, a, o in images})
        assert not any(attributes[a] > 1 and objects[o] > 1 for _, a, o in images)
        return
    pairs = pairs_of(images, splits)
    attributes, objects = {a for a, _ in pairs["train"]}, {o for _, o in pairs["train"]}
    assert {(a, o) for _, a, o in images} == pairs["train"] | pairs["val"] | pairs["test"]
    assert attributes == {a for _, a, _ in images}
    assert objects == {o for _, _, o in images}
    unseen = {split: pairs[split] - pairs["train"] for split in ("val", "test")}
    assert unseen["test"]
    assert not unseen["val"] & unseen["test"]


def test_proportions():
    images = grid(10, 10, 10)
    splits = split_by_pair(images, 1)
    pairs = pairs_of(images, splits)
    assert len(pairs["train"]) == 65
    assert len(pairs["val"] - pairs["train"]) == len(pairs["val"] & pairs["train"]) == 15
    assert len(pairs["test"] - pairs["train"]) == len(pairs["test"] & pairs["train"]) == 20
    assert Counter(splits) == {"train": 650 - 30 - 40, "val": 150 + 30, "test": 200 + 40}
    assert not (pairs["val"] & pairs["train"]) & (pairs["test"] & pairs["train"])


def test_a_pure_function_of_names_and_seed():
    images = grid(6, 6, 4)
    split_of = dict(zip(images, split_by_pair(images, 3), strict=True))
    assert split_by_pair(images[::-1], 3) == [split_of[image] for image in images[::-1]]
    assert split_by_pair(images, 4) != split_by_pair(images, 3)


def test_nothing_to_hold_out_is_said():
    with pytest.raises(DataError, match="cannot split 3 pairs"):
        split_by_pair([("1", "wet", "dog"), ("2", "wet", "cat"), ("3", "wet", "hat")])
