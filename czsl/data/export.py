"""Images of a dataset as files again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from czsl.data.table import Dataset, Split
from czsl.errors import DataError
from czsl.reading import PathLike


def export(
    data: Dataset,
    split: str,
    dest: PathLike,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write images below ``dest/<attribute object>/``, or ``dest/<class>/``; returns how many.

    Parameters
    ----------
    data : Dataset
    split : {"train", "val", "test"}
    dest : Path
        Created if it does not exist; files of the same name are replaced.
    limit : int, optional
        At most this many: first one image of each composition (or class) in an order drawn with the seed, then a second, and so on.
    seed : int, default 0
    progress : callable
        Called with the number of images written and the number of all.

    Raises
    ------
    DataError
        The split is empty.
    """
    dest = Path(dest)
    images = data.split(split)
    if not len(images):
        raise DataError(f"{data.folder} has no {split} images", "the split is empty", "choose another --split")
    rows = choose(images, limit, seed)
    for done, row in enumerate(sorted(rows), 1):
        folder = dest / _safe(data.space.pair_name(images.pairs[row]))
        folder.mkdir(parents=True, exist_ok=True)
        name = PurePosixPath(images.ids[row])
        # The row tells apart what had the same name in different folders.
        (folder / f"{_safe(name.stem)}-{row}{name.suffix}").write_bytes(images.image_bytes(row))
        progress(done, len(rows))
    return len(rows)


def choose(images: Split, limit: int | None, seed: int) -> list[int]:
    """Rows of a split, at most ``limit``: one image of each pair in an order drawn with the seed, then a second, and so on."""
    return _spread_over_pairs(images.pairs, np.random.Generator(np.random.Philox(seed)))[:limit].tolist()


def _spread_over_pairs(pairs_N2: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rows in an order that goes through the pairs round by round."""
    shuffled = generator.permutation(len(pairs_N2))
    _, group = np.unique(pairs_N2[shuffled], axis=0, return_inverse=True)
    group = generator.permutation(group.max() + 1)[group.reshape(-1)]
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order])
    rounds = np.arange(len(order)) - starts
    return shuffled[order[np.lexsort((group[order], rounds))]]


def _safe(name: str) -> str:
    """A name that stays inside its folder."""
    return "".join(c if c.isalnum() or c in " ._-" else "_" for c in name).strip(".") or "_"
