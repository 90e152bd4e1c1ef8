"""Region files: boxes on images that a detector or a person drew, with what they show where that is known.

JSON ``{image: [[left, top, right, bottom], ..]}``, or records ``{"image": name, "regions": [{"box": [..], "phrase": text, "score":
number}, ..]}`` as a JSON list or a line each (`.jsonl`). Pixels of the original image; right and bottom are the first ones outside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from czsl.data.images import BadImage, image_size
from czsl.data.table import Dataset
from czsl.errors import DataError

MAX_BYTES = 256 * 2**20
MAX_REGIONS = 1000  # of one image
SHAPE = 'write {"image.jpg": [[left, top, right, bottom], ..]}, or records {"image": .., "regions": [{"box": [..]}, ..]}'

Boxes = dict[str, list[list[float]]]


@dataclass(frozen=True)
class Fit:
    """How a region file fits a dataset.

    images : of the dataset
    without : images for which it has no box
    unknown : images that it names and the dataset does not have
    outside : boxes that lie outside of their image
    """

    images: int
    without: int
    unknown: list[str]
    outside: int


def read_regions(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Regions by image: dicts with a ``box`` of four numbers and what else the file says of each (``phrase``, ``score``).

    Raises
    ------
    DataError
        No such file, not JSON, an image twice, or a box that is none.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is too large for regions", f"limit {MAX_BYTES:,} bytes", "is it the right file?")
        text = path.read_text(encoding="utf-8")
        by_line = path.suffix.lower() == ".jsonl"
        content = [_parsed(line) for line in text.splitlines() if line.strip()] if by_line else _parsed(text)
    except OSError as error:
        raise DataError(f"cannot read the regions {path}", error.strerror or str(error), "is the path right?") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested without end, an image twice
        raise DataError(f"{path} is not a file of regions", str(error), SHAPE) from None
    found: dict[str, list[dict[str, Any]]] = {}
    for image, regions in _images(content, str(path)):
        if image in found:
            raise DataError(f"{path} names {image!r} twice", "", "give an image's regions in one place")
        found[image] = _regions(regions, f"{path}: {image}")
    return found


def read_boxes(path: str | Path) -> Boxes:
    """The boxes alone of :func:`read_regions`."""
    return {image: [region["box"] for region in regions] for image, regions in read_regions(path).items()}


def check_boxes(boxes: Any, where: str = "boxes") -> np.ndarray:
    """Boxes of unknown origin as float64 [R, 4].

    Raises
    ------
    DataError
        Not rows of four finite numbers, or a right edge left of the left one; names ``where``.
    """
    shape = "a box is [left, top, right, bottom] in pixels of the image"
    try:
        boxes_R4 = np.asarray(boxes, dtype=np.float64)
    except (ValueError, TypeError):
        raise DataError(f"{where}: not rows of four numbers", str(boxes)[:80], shape) from None
    boxes_R4 = boxes_R4.reshape(0, 4) if boxes_R4.size == 0 else boxes_R4
    if boxes_R4.ndim != 2 or boxes_R4.shape[1] != 4 or not np.isfinite(boxes_R4).all():
        raise DataError(f"{where}: not rows of four finite numbers", f"their shape is {boxes_R4.shape}", shape)
    turned = (boxes_R4[:, 2:] <= boxes_R4[:, :2]).any(axis=1)
    if turned.any():
        row = int(np.flatnonzero(turned)[0])
        raise DataError(f"{where}: box {row} has no area: {boxes_R4[row].tolist()}", "right must exceed left, bottom top", shape)
    return boxes_R4


def cut_boxes(boxes_R4: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Boxes cut to an image of (width, height), int64 [R, 4], and how many lay outside and were dropped."""
    limits = np.array([*size, *size], dtype=np.float64)
    cut = np.concatenate([np.floor(boxes_R4[:, :2]), np.ceil(boxes_R4[:, 2:])], axis=1).clip(0, limits).astype(np.int64)
    inside = (cut[:, 2:] > cut[:, :2]).all(axis=1)
    return cut[inside], int((~inside).sum())


def fit(boxes: Mapping[str, Sequence[Sequence[float]]], data: Dataset) -> Fit:
    """Compare boxes with the images of all splits of a dataset; sizes come from the headers of the images that have boxes."""
    ids, outside = set(), 0
    for name in data.counts:
        split = data.split(name)
        ids |= set(split.ids)
        if boxes.keys().isdisjoint(split.ids):
            continue
        for row, content in split.iter_images():
            own = boxes.get(split.ids[row])
            if own:
                try:
                    outside += cut_boxes(check_boxes(own), image_size(content))[1]
                except BadImage:
                    continue  # `czsl data verify` tells of it
    without = sum(not boxes.get(name) for name in ids)
    return Fit(len(ids), without, sorted(boxes.keys() - ids), outside)


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _images(content: Any, source: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict) and "image" not in content:
        yield from content.items()
        return
    for place, record in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(record, dict) or not isinstance(record.get("image"), str) or "regions" not in record:
            raise DataError(f"{source}: record {place} does not name an image and its regions", str(record)[:80], SHAPE)
        yield record["image"], record["regions"]


def _regions(given: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise DataError(f"{where} has no list of regions", str(given)[:80], SHAPE)
    if len(given) > MAX_REGIONS:
        raise DataError(f"{where} has {len(given):,} regions", f"limit {MAX_REGIONS:,}", "keep the best ones")
    regions = [dict(region) if isinstance(region, dict) else {"box": region} for region in given]
    if missing := [place for place, region in enumerate(regions) if "box" not in region]:
        raise DataError(f"{where}: region {missing[0]} has no box", str(given[missing[0]])[:80], SHAPE)
    if any(isinstance(x, bool | str) for region in regions for x in (region["box"] if isinstance(region["box"], list) else ())):
        raise DataError(f"{where}: not rows of four numbers", "", SHAPE)
    boxes_R4 = check_boxes([region["box"] for region in regions], where)
    return [{**region, "box": box} for region, box in zip(regions, boxes_R4.tolist(), strict=True)]
