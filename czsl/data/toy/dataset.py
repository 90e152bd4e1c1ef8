"""Built-in data `toy`: drawn attribute-object compositions for demonstrations and tests.

14 attributes x 12 objects. As in the field's benchmarks, half of the pairs train, and validation and test mix images of seen
pairs with images of pairs that no training image shows. An attribute looks different on different objects (a red house has a
red roof, moss grows where the object is damp), backgrounds are cluttered, and pose and size vary. Everything is drawn by
`toy_objects`, `toy_looks` (attributes) and `toy_scene` (pose, background); nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from czsl.compositions import CompositionSpace
from czsl.data.toy.looks import LOOKS
from czsl.data.toy.objects import SHAPES
from czsl.data.toy.scene import Pose, background, finish, place
from czsl.errors import UsageError

ATTRIBUTES = tuple(LOOKS)
OBJECTS = tuple(SHAPES)

TRAIN_PAIRS = 84
SEEN_UNSEEN = {"val": 16, "test": 20}  # number of seen pairs, and of unseen ones
IMAGES_PER_PAIR = {"train": 30, "val": 13, "test": 20}
MIN_PARTNERS = 4


def draw(attribute: str, obj: str, seed: int, size: int = 64) -> Image.Image:
    """One picture of an object with an attribute, a pure function of its arguments.

    The same seed gives different pairs similar backgrounds and poses.

    Parameters
    ----------
    attribute, obj : str
        One of `ATTRIBUTES`, one of `OBJECTS`.
    seed : int
        Not negative.
    size : int
        Pixels a side, 16 to 1024.

    Raises
    ------
    UsageError
        Unknown names, or a size outside the range.
    """
    for name, known, kind in ((attribute, ATTRIBUTES, "attribute"), (obj, OBJECTS, "object")):
        if name not in known:
            raise UsageError(
                f"the toy data has no {kind} {name!r}", "it is not among the drawn names", f"one of: {', '.join(known)}"
            )
    if not 16 <= size <= 1024:
        raise UsageError(
            f"cannot draw a picture of {size} pixels", "the size is outside of the limits", "give a size from 16 to 1024"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    picture = background(rng, size)
    place(picture, SHAPES[obj], attribute, Pose.random(rng, SHAPES[obj]), rng)
    return finish(picture, rng)


def space(seed: int = 0) -> CompositionSpace:
    """The toy's labels and pairs: 84 train pairs; val 16 seen + 16 unseen, test 20 seen + 20 unseen.

    Training pairs are drawn at random until every attribute and every object has at least `MIN_PARTNERS` of them; the unseen
    pairs of val and test are disjoint. The built-in CLIP `tiny` has never met the unseen pairs of seed 0.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    total = len(ATTRIBUTES) * len(OBJECTS)
    while True:
        keys = rng.permutation(total)
        train, rest = np.sort(keys[:TRAIN_PAIRS]), keys[TRAIN_PAIRS:]
        partners = np.zeros((len(ATTRIBUTES), len(OBJECTS)), dtype=bool)
        partners.flat[train] = True
        if min(partners.sum(0).min(), partners.sum(1).min()) >= MIN_PARTNERS:
            break
    chosen = {"train": train}
    for split, number in SEEN_UNSEEN.items():
        unseen, rest = rest[:number], rest[number:]
        chosen[split] = np.sort(np.concatenate([rng.choice(train, number, replace=False), unseen]))
    pairs = {f"{split}_pairs": np.stack([k // len(OBJECTS), k % len(OBJECTS)], axis=1) for split, k in chosen.items()}
    return CompositionSpace(ATTRIBUTES, OBJECTS, **pairs)


def samples(seed: int = 0, scale: float = 1.0) -> Iterator[tuple[str, str, str, str, bytes]]:
    """All pictures of the toy data, as (id, attribute, object, split, PNG bytes), in a fixed order.

    Parameters
    ----------
    seed : int
        Seed of the pairs (:func:`space`) and of the pictures. A picture depends on the seed and its own id only.
    scale : float
        Multiplies the pictures a pair (train 30, val 13, test 20); at least one is drawn.
    """
    if not scale > 0:
        raise UsageError(
            f"cannot draw {scale} times the toy data", "the scale multiplies the number of images", "give a scale above 0"
        )
    compositions = space(seed)
    for split, number in IMAGES_PER_PAIR.items():
        for a, o in getattr(compositions, f"{split}_pairs"):
            attribute, obj = ATTRIBUTES[a], OBJECTS[o]
            for place_in_pair in range(max(1, round(number * scale))):
                name = f"{split}/{attribute}_{obj}/{place_in_pair:04d}.png"
                digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
                content = io.BytesIO()
                picture = draw(attribute, obj, int.from_bytes(digest[:8], "big"))
                picture.save(content, "PNG", compress_level=1)
                yield name, attribute, obj, split, content.getvalue()
