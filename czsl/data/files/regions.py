"""Regions of images from outside: boxes and masks with a phrase, as files of detectors and dense captioners hold them.

A box is (left, top, right, bottom), half-open, in pixels of the original image, or in shares of it where a region is ``relative``.
Formats, told apart by what is inside: our own, GRiT's captions with boxes, and GroundingDINO's normalised centres (`read_regions`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from czsl.data.files.masks import decode_mask, read_mask
from czsl.data.images import BadImage, image_size, is_image_name
from czsl.data.table import Dataset
from czsl.errors import DataError
from czsl.reading import PathLike, parse_json, read_text

MAX_BYTES = 512 * 2**20
MAX_REGIONS = 1000  # an image
MAX_PHRASE = 1000  # characters
SHAPE = 'a record is {"image": "dog.jpg", "regions": [{"phrase": "a dog", "box": [left, top, right, bottom]}]}'
BOX_SHAPE = "a box is [left, top, right, bottom] in pixels of the image"


@dataclass(frozen=True)
class Region:
    """A region of an image and its phrase; ``mask`` is a run-length code of :func:`~czsl.data.files.masks.read_mask`."""

    phrase: str
    box: tuple[float, float, float, float]
    score: float | None = None
    mask: Mapping[str, Any] | None = None
    relative: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it in the form of a region file."""
        out: dict[str, Any] = {"phrase": self.phrase, "box": list(self.box)}
        extras = {"score": self.score, "mask": self.mask, "relative": self.relative or None}
        return out | {key: value for key, value in extras.items() if value is not None}

    def pixels(self, size: tuple[int, int]) -> np.ndarray | None:
        """Return the pixels it covers of an image (width, height), bool [height, width]; None if it lies outside.

        Raises
        ------
        DataError
            A mask of another size, or one that no code of that size is.
        """
        if self.mask is not None:
            covered = decode_mask(self.mask, size)
            return covered if covered.any() else None
        scale = (size[0], size[1], size[0], size[1]) if self.relative else (1, 1, 1, 1)
        boxes, outside = checked_boxes([[x * s for x, s in zip(self.box, scale, strict=True)]], size)
        if outside:
            return None
        left, top, right, bottom = boxes[0].tolist()
        covered = np.zeros((size[1], size[0]), bool)
        covered[top:bottom, left:right] = True
        return covered


@dataclass(frozen=True)
class ImageRegions:
    """Regions of one image, and the region phrases that words refer to, if the file holds these."""

    regions: tuple[Region, ...] = ()
    matches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def boxes(self, size: tuple[int, int], limit: int) -> tuple[np.ndarray, int]:
        """Boxes in an image (width, height), int64 [R, 4], and how many regions lie outside; at most ``limit``, the best scores first.

        A mask counts as the box around it.
        """
        boxes, outside = [], 0
        for region in sorted(self.regions, key=lambda r: -math.inf if r.score is None else -r.score):
            covered = region.pixels(size)
            if covered is None:
                outside += 1
                continue
            (top, bottom), (left, right) = (
                (found[0], found[-1] + 1) for found in map(np.flatnonzero, (covered.any(1), covered.any(0)))
            )
            boxes.append([left, top, right, bottom])
        return np.array(boxes[:limit], dtype=np.int64).reshape(-1, 4), outside

    def to_json(self, image: str) -> dict[str, Any]:
        """Return it as a record of a region file."""
        out: dict[str, Any] = {"image": image, "regions": [region.to_json() for region in self.regions]}
        return out | ({"matches": {word: list(said) for word, said in self.matches.items()}} if self.matches else {})


class RegionTable:
    """Regions by image. Lookup order: full relative path, file name, stem (the last two only if unambiguous)."""

    def __init__(self, images: Mapping[str, ImageRegions]):
        self.images = dict(images)
        self._names: dict[str, str | None] = {}
        for name in self.images:
            path = PurePosixPath(name)
            for key in {path.name, path.stem} - {name}:
                self._names[key] = None if key in self._names else name

    def __len__(self) -> int:
        return len(self.images)

    def of(self, image: str) -> ImageRegions | None:
        """The regions of an image; None if the file does not name it."""
        path = PurePosixPath(image)
        for key in (image, path.name, path.stem):
            if key in self.images:
                return self.images[key]
            if (name := self._names.get(key)) is not None:
                return self.images[name]
        return None

    @classmethod
    def from_json(cls, records: Iterable[Mapping[str, Any]], source: str = "regions") -> RegionTable:
        """From records of our own format."""
        images: dict[str, ImageRegions] = {}
        for i, record in enumerate(records, 1):
            name, found = _own(record, f"{source}, record {i}")
            if name in images:
                raise DataError(
                    f"{source} names {name!r} twice", f"again in record {i}", "put all regions of an image in one record"
                )
            images[name] = found
        return cls(images)

    def to_json(self) -> list[dict[str, Any]]:
        """Records of our own format."""
        return [found.to_json(name) for name, found in self.images.items()]


def notes_on(table: RegionTable, data: Dataset) -> list[str]:
    """Return warnings about regions that do not match the dataset; sizes of images are read from their headers."""
    without, outside, used = 0, 0, set()
    for name in data.counts:
        split = data.split(name)
        found = [table.of(image) for image in split.ids]
        used |= {id(regions) for regions in found if regions is not None}
        without += sum(regions is None or not regions.regions for regions in found)
        if not any(found):
            continue
        for row, content in split.iter_images():
            regions = found[row]
            if regions is not None and regions.regions:
                with suppress(BadImage):  # `czsl data verify` tells of it
                    outside += regions.boxes(image_size(content, options=split.decode), 0)[1]
    notes = (
        [f"{without:,} of {sum(data.counts.values()):,} images have no regions and are looked at as a whole"] if without else []
    )
    if outside:
        notes.append(f"{outside:,} regions lie outside of their image and are dropped")
    if unused := [name for name, regions in table.images.items() if id(regions) not in used]:
        named = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
        notes.append(f"{len(unused):,} images of the region file are not in the data: {named}")
    return notes


def checked_boxes(boxes: Any, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """A user's boxes cut to the image (width, height), int64 [R, 4], and how many lay outside and were dropped.

    Raises
    ------
    DataError
        Not rows of four finite numbers, or a right edge left of the left one.
    """
    boxes_R4 = np.asarray(boxes, dtype=np.float64)
    boxes_R4 = boxes_R4.reshape(0, 4) if boxes_R4.size == 0 else boxes_R4
    if boxes_R4.ndim != 2 or boxes_R4.shape[1] != 4 or not np.isfinite(boxes_R4).all():
        raise DataError("boxes are not rows of four finite numbers", f"their shape is {boxes_R4.shape}", BOX_SHAPE)
    turned = (boxes_R4[:, 2:] <= boxes_R4[:, :2]).any(axis=1)
    if turned.any():
        row = int(np.flatnonzero(turned)[0])
        raise DataError(f"box {row} has no area: {boxes_R4[row].tolist()}", "right must exceed left, bottom top", BOX_SHAPE)
    limits = np.array([*size, *size], dtype=np.float64)
    cut = np.concatenate([np.floor(boxes_R4[:, :2]), np.ceil(boxes_R4[:, 2:])], axis=1).clip(0, limits).astype(np.int64)
    inside = (cut[:, 2:] > cut[:, :2]).all(axis=1)
    return cut[inside], int((~inside).sum())


# -- files ---------------------------------------------------------------------------------------------------------
def read_regions(path: PathLike) -> RegionTable:
    """Regions from a file, or from a folder of one JSON file an image (``dog.json`` for ``dog.jpg``).

    Formats: a record as in `SHAPE`, a list of records or one a line; boxes only, ``{"dog.jpg": [box, ..]}``; GRiT, ``{caption: [box,
    ..]}`` of one image or
    ``{image: {caption: [box, ..]}}``; GroundingDINO, ``{"image", "boxes": [[cx, cy, w, h], ..], "phrases", "logits"}`` in shares of
    the image, one, a list or one a line.

    Raises
    ------
    DataError
        Says which file and record is wrong, and how.
    """
    path = Path(path)
    if path.is_dir():
        images: dict[str, ImageRegions] = {}
        for file in sorted(path.glob("*.json")):
            images |= _table(_load(file), str(file), file.stem).images
        if not images:
            raise DataError(
                f"{path} holds no regions", "no *.json file is in it", "give a file, or a folder of one file an image"
            )
        return RegionTable(images)
    return _table(_load(path), str(path), path.stem)


def _load(path: Path) -> Any:
    text = read_text(path, max_bytes=MAX_BYTES, head="cannot read the regions {path}", fix=SHAPE)
    try:
        return parse_json(text, path)
    except DataError as whole:
        try:
            return [parse_json(line, path) for line in text.splitlines() if line.strip()]
        except DataError:
            raise DataError(f"{path} is not a file of regions", f"neither JSON nor JSON lines: {whole.why}", SHAPE) from None


def _table(content: Any, source: str, stem: str) -> RegionTable:
    if isinstance(content, dict) and not {"regions", "boxes"} & content.keys():
        if content and all(isinstance(boxes, list) and is_image_name(name) for name, boxes in content.items()):
            short = {name: [{"box": box} for box in boxes] for name, boxes in content.items()}
            return RegionTable.from_json([{"image": name, "regions": regions} for name, regions in short.items()], source)
        many = bool(content) and all(isinstance(value, dict) for value in content.values())
        images = content if many else {stem: content}
        return RegionTable({name: from_grit(captions, f"{source}: {name}") for name, captions in images.items()})
    records = content if isinstance(content, list) else [content]
    if not all(isinstance(record, dict) for record in records):
        raise DataError(f"{source} is not a file of regions", f"found {str(content)[:80]}", SHAPE)
    if any("boxes" in record for record in records):
        found = {_name(record, source): from_grounding_dino(record, source) for record in records}
        if len(found) < len(records):
            raise DataError(
                f"{source} has two records of one image", "each image has one record", "put all regions of an image in one record"
            )
        return RegionTable(found)
    return RegionTable.from_json(records, source)


def from_grit(captions: Any, source: str = "GRiT regions") -> ImageRegions:
    """Regions from GRiT's ``{caption: [[x0, y0, x1, y1], ..]}``, whose boxes end on their last pixel.

    As Pillow draws such a rectangle, fractions are cut off: the half-open box is [int(x0), int(x1) + 1).
    """
    if not isinstance(captions, dict):
        raise DataError(f"{source} has no captions", f"found {str(captions)[:80]}", "write {caption: [[x0, y0, x1, y1], ..]}")
    regions = []
    for caption, boxes in captions.items():
        if isinstance(boxes, list) and len(boxes) == 4 and not any(isinstance(x, list) for x in boxes):
            boxes = [boxes]
        if not isinstance(boxes, list):
            raise DataError(f"{source}: {caption!r} has no boxes", f"found {str(boxes)[:80]}", "write [[x0, y0, x1, y1], ..]")
        for box in boxes:
            x0, y0, x1, y1 = _numbers(box, f"{source}: {caption!r}")
            regions.append(_region(caption, (int(x0), int(y0), int(x1) + 1, int(y1) + 1), source))
    return ImageRegions(_few(regions, source))


def from_grounding_dino(record: Mapping[str, Any], source: str = "GroundingDINO regions") -> ImageRegions:
    """Regions from GroundingDINO's boxes [cx, cy, w, h] in shares of the image, ``phrases`` and, where given, ``logits``."""
    boxes, phrases = record.get("boxes"), record.get("phrases", record.get("labels"))
    scores = record.get("logits", record.get("scores"))
    if not isinstance(boxes, list) or not isinstance(phrases, list) or len(boxes) != len(phrases):
        raise DataError(
            f"{source}: boxes and phrases are not lists of one length",
            "each box has one phrase",
            'write {"image", "boxes", "phrases"}',
        )
    if scores is not None and (not isinstance(scores, list) or len(scores) != len(boxes)):
        raise DataError(f"{source}: there are not as many logits as boxes", f"found {str(scores)[:80]}", "give one a box")
    regions = []
    for box, phrase, score in zip(boxes, phrases, scores or [None] * len(boxes), strict=True):
        cx, cy, w, h = _numbers(box, source)
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        regions.append(_region(phrase, corners, source, score, relative=True))
    return ImageRegions(_few(regions, source))


def _own(record: Any, source: str) -> tuple[str, ImageRegions]:
    if not isinstance(record, dict) or not isinstance(record.get("regions"), list):
        raise DataError(f"{source} has no list of regions", f"found {str(record)[:80]}", SHAPE)
    regions = []
    for item in record["regions"]:
        if not isinstance(item, dict) or ("box" not in item and "mask" not in item):
            raise DataError(f"{source} has a region without a box", f"found {str(item)[:80]}", SHAPE)
        mask = None if item.get("mask") is None else read_mask(item["mask"], source)
        box = _numbers(item.get("box", [0, 0, 1, 1]), source)
        phrase = item.get("phrase", "")
        regions.append(_region(phrase, box, source, item.get("score"), mask, item.get("relative") is True))
    matches = record.get("matches") or {}
    listed = isinstance(matches, dict) and all(
        isinstance(said, list) and all(isinstance(x, str) for x in said) for said in matches.values()
    )
    if not listed:
        raise DataError(f"{source}: matches are not lists of phrases", f"found {str(matches)[:80]}", '{"dog": ["a brown dog"]}')
    return _name(record, source), ImageRegions(_few(regions, source), {str(w): tuple(said) for w, said in matches.items()})


def _region(
    phrase: Any, box: tuple[float, ...], source: str, score: Any = None, mask: Any = None, relative: bool = False
) -> Region:
    if not isinstance(phrase, str) or len(phrase) > MAX_PHRASE:
        why = f"found {str(phrase)[:80]!r}; limit {MAX_PHRASE} characters"
        raise DataError(f"{source} has a region whose phrase is missing or too long", why, SHAPE)
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score)):
        raise DataError(f"{source}: the score of {phrase!r} is not a number", f"found {str(score)[:80]}", SHAPE)
    x0, y0, x1, y1 = box
    if mask is None and (x1 <= x0 or y1 <= y0):
        raise DataError(
            f"{source}: the box of {phrase!r} has no area: {list(box)}", "right must exceed left, bottom top", BOX_SHAPE
        )
    return Region(" ".join(phrase.split()), (x0, y0, x1, y1), score, mask, relative)


def _numbers(box: Any, source: str) -> tuple[float, float, float, float]:
    good = isinstance(box, list) and len(box) == 4
    if not good or not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in box):
        raise DataError(f"{source} has a box that is not four finite numbers", f"found {str(box)[:80]}", BOX_SHAPE)
    return tuple(box)


def _name(record: Mapping[str, Any], source: str) -> str:
    name = record.get("image")
    if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
        raise DataError(f"{source} has a record without an image", f"found {str(record)[:80]}", SHAPE)
    return str(name)


def _few(regions: list[Region], source: str) -> tuple[Region, ...]:
    if len(regions) > MAX_REGIONS:
        raise DataError(f"{source} has {len(regions):,} regions", f"limit {MAX_REGIONS:,} an image", "keep the best ones")
    return tuple(regions)
