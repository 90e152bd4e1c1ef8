"""Files that ask which image fits a sentence, or which sentence an image: ComVG, SVO-Probes, Winoground, VL-Checklist and retrieval.

The format is found by the content. Names of images stay names here; whoever opens them keeps them inside their folder.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from czsl.errors import DataError
from czsl.reading import PathLike, parse_json, read_lines, read_text

MAX_BYTES = 512 * 2**20
MAX_ITEMS = 1_000_000
MAX_TEXT = 4000  # characters of a sentence
FORMATS = (
    "ComVG or SVO-Probes (CSV with sentence, pos_triplet, pos_image_id, neg_image_id), Winoground (JSON lines with caption_0, "
    "caption_1, image_0, image_1), VL-Checklist (a list of [image, {POS, NEG}]), retrieval (JSON lines with image, captions)"
)
Triplet = tuple[str, str, str]


@dataclass(frozen=True)
class MatchItem:
    """One question: which of the images fits each sentence, or which sentence each image.

    identity : as the file has it
    captions, images : one or two of each
    triplets : subject, verb and object of each caption, where the file has them
    group : a part of the file that is counted by itself (the replaced word of ComVG)
    """

    identity: str
    captions: tuple[str, ...]
    images: tuple[str, ...]
    triplets: tuple[Triplet | None, ...]
    group: str = ""


@dataclass(frozen=True)
class MatchFile:
    """``kind``: ``comvg``, ``svo``, ``winoground``, ``vl-checklist`` or ``retrieval``, and its items.

    comvg, svo: one caption, its right and its wrong image. winoground: two of each, in order. vl-checklist: the right and the wrong
    caption of an image. retrieval: all captions of an image.
    """

    kind: str
    items: tuple[MatchItem, ...]


def read_match_file(path: PathLike) -> MatchFile:
    """Read a file of one of the formats.

    Raises
    ------
    DataError
        An unknown format, or an incomplete item, which is named.
    """
    path = Path(path)
    text = read_text(path, max_bytes=MAX_BYTES, fix=f"formats: {FORMATS}")
    start = text.lstrip()[:1]
    found = _from_list(text, path) if start == "[" else _from_lines(text, path) if start == "{" else _from_csv(text, path)
    if not found.items:
        raise DataError(f"{path} has no item", "it is empty", f"formats: {FORMATS}")
    if len(found.items) > MAX_ITEMS:
        raise DataError(f"{path} has {len(found.items):,} items", f"limit {MAX_ITEMS:,}", "split it")
    return found


def _from_csv(text: str, path: Path) -> MatchFile:
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        columns = set(reader.fieldnames or ())
        rows = list(reader) if {"sentence", "pos_image_id", "neg_image_id"} <= columns else None
    except csv.Error as error:
        raise DataError(f"{path} is not a readable CSV", str(error), f"formats: {FORMATS}") from None
    if rows is None:
        raise DataError(f"{path} is of no known format", f"its first line: {text[:100].splitlines()[:1]}", f"formats: {FORMATS}")
    kind = "svo" if {"subj_neg", "verb_neg", "obj_neg"} <= columns else "comvg"
    items = []
    for number, row in enumerate(rows, 2):
        where = f"{path}, row {number}"
        group = (row.get("neg_value") or "") if kind == "comvg" else _svo_group(row)
        images = tuple(_image(row[f"{sign}_image_id"], where, ".jpg") for sign in ("pos", "neg"))
        triplet = _triplet(row.get("pos_triplet"), where)
        items.append(MatchItem(row.get("id") or str(number), (_text(row["sentence"], where),), images, (triplet,), group.strip()))
    return MatchFile(kind, tuple(items))


def _svo_group(row: Mapping[str, Any]) -> str:
    named = {"subject": "subj_neg", "verb": "verb_neg", "object": "obj_neg"}
    return next((name for name, column in named.items() if str(row[column]).strip().lower() in ("true", "1")), "")


def _from_lines(text: str, path: Path) -> MatchFile:
    items, kinds = [], set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = _json(line, where)
        if not isinstance(record, dict):
            raise DataError(f"{where} is not a record", f"found {line[:80]}", f"formats: {FORMATS}")
        if "caption_0" in record:
            kinds.add("winoground")
            captions = tuple(_text(record.get(f"caption_{i}"), where) for i in range(2))
            images = tuple(_image(record.get(f"image_{i}"), where, ".png") for i in range(2))
            items.append(MatchItem(str(record.get("id", number)), captions, images, (None, None), str(record.get("tag") or "")))
        elif "captions" in record:
            kinds.add("retrieval")
            said = record["captions"]
            if not isinstance(said, list) or not said:
                raise DataError(
                    f"{where} has no list of captions", f"found {str(said)[:80]}", 'write {"image": .., "captions": [..]}'
                )
            captions = tuple(_text(caption, where) for caption in said)
            items.append(MatchItem(str(number), captions, (_image(record.get("image"), where, ""),), (None,) * len(captions)))
        else:
            raise DataError(
                f"{where} is of no known format", f"its fields: {', '.join(map(str, record))[:120]}", f"formats: {FORMATS}"
            )
        if len(kinds) > 1:
            raise DataError(
                f"{where} is of another format than the lines before",
                "all lines of a file are questions of one kind",
                "put each format into a file of its own",
            )
    return MatchFile(next(iter(kinds), "retrieval"), tuple(items))


def _from_list(text: str, path: Path) -> MatchFile:
    items = []
    for number, entry in enumerate(_json(text, str(path)), 1):
        where = f"{path}, entry {number}"
        good = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], dict)
        sides = [entry[1].get(key) for key in ("POS", "NEG")] if good else []
        if not good or not all(isinstance(side, list) and side for side in sides) or len(sides[0]) != len(sides[1]):
            why = f"found {str(entry)[:80]}"
            raise DataError(
                f"{where} is not an entry of VL-Checklist", why, 'write ["image.jpg", {"POS": [caption], "NEG": [caption]}]'
            )
        image = _image(entry[0], where, "")
        for right, wrong in zip(*sides, strict=True):
            items.append(MatchItem(str(number), (_text(right, where), _text(wrong, where)), (image,), (None, None)))
    return MatchFile("vl-checklist", tuple(items))


def _json(text: str, where: str) -> Any:
    return parse_json(text, where, fix=f"formats: {FORMATS}")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise DataError(f"{where} has no sentence", f"found {str(value)[:80]!r}", f"a text of at most {MAX_TEXT} characters")
    return value


def _image(value: Any, where: str, suffix: str) -> str:
    """The name of an image, with a suffix if it has none; a name that leaves the folder fails when it is opened."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"{where} names no image", f"found {str(value)[:80]!r}", "give its name in the folder of images")
    name = str(value).strip()
    return name if PurePosixPath(name).suffix else name + suffix


def _triplet(value: Any, where: str) -> Triplet | None:
    """``man,sit,table``; None if no triplet is given."""
    if value is None or not value.strip():
        return None
    words = [word.strip() for word in value.split(",")]
    if len(words) != 3:
        raise DataError(f"{where} has an invalid triplet", f"found {value[:80]!r}", "write subject,verb,object")
    return words[0], words[1], words[2]


def all_captions(items: Iterable[MatchItem]) -> dict[str, Triplet | None]:
    """Each caption once, with its triplet if known."""
    found: dict[str, Triplet | None] = {}
    for item in items:
        for caption, triplet in zip(item.captions, item.triplets, strict=True):
            found[caption] = found.get(caption) or triplet
    return found


def all_images(items: Sequence[MatchItem]) -> list[str]:
    """Each image once, in the file's order."""
    return list(dict.fromkeys(name for item in items for name in item.images))


def read_sentences(path: PathLike) -> list[str]:
    """The lines of a text file that are not empty.

    Raises
    ------
    DataError
        It cannot be read, is not text, or has no line.
    """
    path = Path(path)
    lines = read_lines(path, max_bytes=MAX_BYTES, fix="give one sentence a line, in UTF-8")
    if not any(lines):
        raise DataError(f"{path} has no sentence", "it is empty", "give one sentence a line")
    return [line for line in lines if line]
