"""Splits for data that comes without: some pairs (or the classes that the user names) stay out of training.

The rule for pairs, as in the published benchmarks: 15 % of the pairs are held out as unseen for val, 20 % for test (MIT-States: 15 and
20 %, UT-Zappos: 13 and 16 %, C-GQA: 16 and 12 %), in an order drawn by the seed, each only if another training pair keeps its
attribute and another its object; so every attribute and object of an unseen pair occurs in training. All images of an unseen pair go
to its split. As many seen pairs as there are unseen ones give a fifth of their images to val, and as many to test (other pairs,
where they suffice); a pair that gives has two images or more and keeps at least one for training.

The rule for classes: the unseen ones are given; three sevenths of them (as of the pairs above) go to val with all their images, the
others to test, so that what is chosen on val is chosen on other classes than those of test; a single unseen class goes to test.
Each seen class gives a fifth of its images to test and a fifth to val, and keeps at least one for training.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from czsl.errors import DataError

UNSEEN = {"val": 0.15, "test": 0.20}
SEEN_IMAGES = 0.2

Pair = tuple[str, str]


def split_by_pair(images: Sequence[tuple[str, str, str]], seed: int = 0) -> list[str]:
    """Draw a split for each image, a pure function of the names and the seed (whatever the order of the images).

    Parameters
    ----------
    images : sequence of (id, attribute, object)
    seed : int

    Returns
    -------
    list of str
        ``train``, ``val`` or ``test`` for each image.

    Raises
    ------
    DataError
        No pair can be held out.
    """
    by_pair: dict[Pair, list[str]] = defaultdict(list)
    for name, attr, obj in images:
        by_pair[attr, obj].append(name)
    unseen = _hold_out(by_pair, seed)
    if not unseen:
        raise DataError(
            f"cannot split {len(by_pair)} pairs into seen and unseen ones",
            "a held-out pair needs other pairs with its attribute and with its object",
            "add pairs, or sort the images below train/, val/ and test/ (in a table: add a column split)",
        )
    split_of = {name: unseen.get(pair, "train") for pair, names in by_pair.items() for name in names}
    givers = _shuffled((p for p in by_pair if p not in unseen and len(by_pair[p]) > 1), f"{seed}/seen")
    start = 0
    for split in UNSEEN:
        number = Counter(unseen.values())[split]
        chosen = givers[start : start + number] or givers[:number]
        start += number
        for pair in chosen:
            mine = [name for name in by_pair[pair] if split_of[name] == "train"]
            give = min(math.ceil(SEEN_IMAGES * len(by_pair[pair])), len(mine) - 1)
            for name in _shuffled(mine, f"{seed}/{split}")[:give]:
                split_of[name] = split
    return [split_of[name] for name, _, _ in images]


def split_by_class(images: Sequence[tuple[str, str, str]], unseen: Iterable[str], seed: int = 0) -> list[str]:
    """Draw a split for each image, a pure function of the names and the seed (whatever the order of the images).

    Parameters
    ----------
    images : sequence of (id, "", class)
    unseen : iterable of str
        Classes without training images.
    seed : int
    """
    held = _shuffled(unseen, f"{seed}/unseen")
    for_val = math.floor(len(held) * UNSEEN["val"] / sum(UNSEEN.values()))
    split_of_class = {name: "val" if place < for_val else "test" for place, name in enumerate(held)}
    by_class: dict[str, list[str]] = defaultdict(list)
    for name, _, label in images:
        by_class[label].append(name)
    split_of: dict[str, str] = {}
    for label, names in by_class.items():
        if label in split_of_class:
            split_of |= dict.fromkeys(names, split_of_class[label])
            continue
        give, order = math.ceil(SEEN_IMAGES * len(names)), _shuffled(names, f"{seed}/seen")
        for_test, for_val_here = min(give, len(names) - 1), min(give, max(len(names) - 1 - give, 0))
        parts = ["test"] * for_test + ["val"] * for_val_here
        split_of |= dict(zip(order, parts + ["train"] * (len(names) - len(parts)), strict=True))
    return [split_of[name] for name, _, _ in images]


def _hold_out(by_pair: Iterable[Pair], seed: int) -> dict[Pair, str]:
    pairs = list(by_pair)
    attributes, objects = Counter(a for a, _ in pairs), Counter(o for _, o in pairs)
    wanted = math.ceil(sum(UNSEEN.values()) * len(pairs))
    held: list[Pair] = []
    for pair in _shuffled(pairs, f"{seed}/unseen"):
        if len(held) < wanted and attributes[pair[0]] > 1 and objects[pair[1]] > 1:
            held.append(pair)
            attributes[pair[0]] -= 1
            objects[pair[1]] -= 1
    for_val = math.floor(len(held) * UNSEEN["val"] / sum(UNSEEN.values()))
    return {pair: "val" if place < for_val else "test" for place, pair in enumerate(held)}


def _shuffled(items: Iterable, key: str) -> list:
    """Sorted by a keyed hash: the same on every platform, whatever the order of the items."""
    return sorted(items, key=lambda item: (hashlib.sha256(f"{key}/{item}".encode()).digest(), item))
