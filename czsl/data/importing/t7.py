"""The metadata of the published benchmarks: a list of ``{image, attr, obj, set}``, in a `.t7` (torch) or `.json` file.

UT-Zappos' records also hold ``_image``, the path in its download.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from czsl.data.importing.textfiles import read_json
from czsl.errors import DataError
from czsl.reading import PathLike, read_torch


class Metadata(NamedTuple):
    """One labelled image as published; ``set`` is its split, ``original`` its path in the download."""

    image: str
    attr: str
    obj: str
    set: str
    original: str = ""


_KEYS = ("image", "attr", "obj", "set")
REFUSED = "refused {path}: it is not a list of records"
FIX = "download it again: it must be a list of dicts of text (image, attr, obj, set), and nothing in it is executed"


def read_metadata(path: PathLike) -> list[Metadata]:
    """Read a metadata file; a `.t7` by :func:`czsl.reading.read_torch`, which never runs the code of a pickle.

    Raises
    ------
    DataError
        The file is unreadable, or holds anything but a list of dicts of text with the four keys.
    """
    path = Path(path)
    content = read_json(path, "download it again") if path.suffix == ".json" else read_torch(path, head=REFUSED, fix=FIX)
    if not isinstance(content, list):
        raise _refused(path, f"it holds a {type(content).__name__}, not a list")
    return [_record(path, place, item) for place, item in enumerate(content)]


def _record(path: Path, place: int, item: object) -> Metadata:
    if not isinstance(item, dict):
        raise _refused(path, f"record {place} is a {type(item).__name__}, not a dict")
    for key in _KEYS:
        if type(item.get(key)) is not str:
            raise _refused(path, f"record {place}: {key!r} is {type(item[key]).__name__ if key in item else 'missing'}")
    original = item.get("_image")
    return Metadata(item["image"], item["attr"], item["obj"], item["set"], original if type(original) is str else "")


def _refused(path: Path, why: str) -> DataError:
    return DataError(REFUSED.format(path=path), why, FIX)
