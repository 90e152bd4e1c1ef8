"""Numbers about a dataset folder: images and pairs of each split, the open world, duplicates, sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from czsl.classes import ClassSpace
from czsl.compositions import SPLITS
from czsl.data.images import BadImage, image_size
from czsl.data.importing.problems import count_duplicates
from czsl.data.table import Dataset, Split


def stats(dataset: Dataset, progress: Callable[[int, int], None] | None = None) -> dict:
    """Describe a dataset; image sizes come from the headers, nothing is decoded.

    Returns
    -------
    dict
        ``name``, ``sha256``, ``decode`` (how images are decoded), ``attributes``, ``objects``, ``open_world`` (A * O),
        ``closed_world`` (pairs of any split),
        ``splits`` (for each: ``images``, ``pairs``, ``images_a_pair``, each with ``seen`` and ``unseen``), ``duplicates``
        (groups of identical images) and ``image`` (``width``, ``height``, ``bytes``, each min, median, max). Of plain classes there are
        ``classes`` instead of attributes, objects and worlds, and each split has ``classes``, ``classes_without_images``,
        ``images_a_class``.
    """
    space = dataset.space
    worlds = {"open_world": space.num_attributes * space.num_objects, "closed_world": len(space.closed_pairs)}
    splits = [dataset.split(name) for name in SPLITS]
    return {
        "name": dataset.name,
        "folder": str(dataset.folder),
        "sha256": dataset.sha256,
        "decode": dataset.decode.to_json(),
        **{kind: len(names) for kind, names in space.vocabulary.items()},
        **({} if isinstance(space, ClassSpace) else worlds),
        "images": sum(map(len, splits)),
        "splits": {split.name: _split_stats(split) for split in splits},
        "duplicates": count_duplicates(row for split in splits for row in split.rows()),
        "image": _sizes(splits, progress),
    }


def _split_stats(split: Split) -> dict:
    space = split.space
    listed = getattr(space, f"{split.name}_pairs")
    seen_pairs, seen_images = space.seen_mask(listed), space.seen_mask(split.pairs)
    _, images_a_pair = np.unique(space.key(split.pairs), return_counts=True)
    return {
        "images": _seen_unseen(seen_images),
        space.nouns: _seen_unseen(seen_pairs),
        f"{space.nouns}_without_images": len(listed) - len(images_a_pair),
        f"images_a_{space.noun}": _spread(images_a_pair),
    }


def _seen_unseen(seen: np.ndarray) -> dict[str, int]:
    return {"all": len(seen), "seen": int(seen.sum()), "unseen": int((~seen).sum())}


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Minimum, median, maximum; None of nothing."""
    if not len(values):
        return None
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _sizes(splits: list[Split], progress: Callable[[int, int], None] | None) -> dict:
    total, done, found, unreadable = sum(map(len, splits)), 0, [], 0
    for split in splits:
        for _, data in split.iter_images():
            done += 1
            try:
                found.append((*image_size(data, options=split.decode), len(data)))
            except BadImage:
                unreadable += 1
            if progress:
                progress(done, total)
    sizes = np.array(found, dtype=np.int64).reshape(-1, 3)
    spreads = {name: _spread(sizes[:, i]) for i, name in enumerate(("width", "height", "bytes"))}
    return {**spreads, "unreadable": unreadable}
