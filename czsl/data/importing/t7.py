"""The metadata of the published benchmarks: a list of ``{image, attr, obj, set}``, in a `.t7` (torch) or `.json` file.

UT-Zappos' records also hold ``_image``, the path in its download.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from czsl.data.importing.textfiles import read_json
from czsl.errors import DataError
from czsl.reading import PathLike


class Metadata(NamedTuple):
    """One labelled image as published; ``set`` is its split, ``original`` its path in the download."""

    image: str
    attr: str
    obj: str
    set: str
    original: str = ""


_KEYS = ("image", "attr", "obj", "set")


def read_metadata(path: PathLike) -> list[Metadata]:
    """Read a metadata file; a `.t7` by ``torch.load(weights_only=True)``, which never runs the code of a pickle.

    Raises
    ------
    DataError
        The file is unreadable, or holds anything but a list of dicts of text with the four keys.
    """
    path = Path(path)
    content = read_json(path, "download it again") if path.suffix == ".json" else _read_torch(path)
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


def _read_torch(path: Path) -> object:
    import torch  # slow to import, and only needed for this format

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|Unsupported class|Unsupported operand|Unsupported global:?) ?(\S+)", str(error))
        detail = f"it asks for {found[1]}" if found else "it is not plain data"
        raise _refused(path, detail) from None
    except Exception as error:  # torch raises errors of many kinds on foreign files
        raise DataError(f"cannot read {path}", _first_line(error), "download it again") from None


def _refused(path: Path, why: str) -> DataError:
    fix = "it must be a list of dicts of text (image, attr, obj, set); nothing in it was executed"
    return DataError(f"refused {path}: more or less than plain data", why, fix)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
