"""Text and JSON from outside: limits on size and depth, one kind of error."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from czsl.errors import DataError
from czsl.filekinds import identify

MAX_TEXT_BYTES = 1 << 30


def read_text(path: Path, fix: str = "save it as text in UTF-8", limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a file in UTF-8, or in UTF-16 as spreadsheets write it; a mark at its beginning is left out.

    Raises
    ------
    DataError
        The file is unreadable, larger than ``limit`` bytes, or in another encoding; the error names the line.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"cannot read {path}", f"{size:,} bytes, limit {limit:,}", "divide it")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}", str(error), fix) from None
    return decode_text(data, path, fix)


def decode_text(data: bytes, path: Path | str, fix: str = "save it as text in UTF-8") -> str:
    """Decode the content of a text file as :func:`read_text` does."""
    if known := identify(data):
        raise DataError(f"cannot read {path}", f"it is {known[0]}", known[1])
    encoding = _encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        why = f"line {line} is not {'UTF-8' if encoding == 'utf-8-sig' else 'UTF-16'}: {data[error.start : error.start + 4]!r}"
        raise DataError(f"cannot read {path}", why, fix) from None


def _encoding(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = data[:64]
    if len(head) > 3 and not any(head[1::2]) and all(head[0::2]):  # ASCII in UTF-16 without a mark
        return "utf-16-le"
    if len(head) > 3 and not any(head[0::2]) and all(head[1::2]):
        return "utf-16-be"
    return "utf-8-sig"


class Twins(dict):
    """A JSON object in which a name occurs twice; of such a name the last value is kept."""


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of a JSON object, or `Twins`; a hook for ``json.loads``."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else Twins(found)


def parse_json(text: str, where: Path | str, fix: str = "save it as JSON") -> Any:
    """Parse JSON; DataError with the place of the error, also for text that is nested too deep."""
    try:
        return json.loads(text, object_pairs_hook=object_of)
    except RecursionError:
        raise DataError(f"cannot read {where}", "it is nested too deep", fix) from None
    except ValueError as error:
        raise DataError(f"cannot read {where}", " ".join(str(error).split())[:200], fix) from None


def read_json(path: Path, fix: str = "save it as JSON in UTF-8") -> Any:
    """The content of a JSON file; DataError as for :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, fix), path, fix)


def short(text: object, limit: int = 100) -> str:
    """A text from outside as a message can hold it: cut after ``limit`` characters."""
    shown = str(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."
