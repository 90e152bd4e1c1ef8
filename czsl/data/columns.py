"""The column of a table that names images: CSV in its dialects, TSV, JSON lines, a JSON list, Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from czsl.errors import DataError
from czsl.filekinds import identify_file
from czsl.reading import PathLike, parquet_errors

MAX_TABLE_BYTES = 512 * 2**20
MAX_COLUMNS = 10_000
SEPARATORS = ",;\t|"
NAMES = frozenset(
    {"image", "images", "img", "image_path", "img_path", "image_name", "image_file", "file", "file_name", "filename"}
    | {"file_path", "filepath", "path", "photo"}
)


@dataclass
class Column:
    """Cells of a column, in order; ``refused``: rows without one (``row 3``, counted from 1 after the header), and why."""

    names: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def read_column(path: PathLike, column: str | None = None) -> Column:
    """The cells of a column of file names.

    Parameters
    ----------
    path : Path
        Parquet and JSON are recognised by their content; all else is CSV, whose separator the header shows.
    column : str, optional
        Its name, capitals do not matter; by default the only one whose name is in `NAMES`.

    Raises
    ------
    DataError
        No such file or column, two that could be meant, or a table that is damaged or too large.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_TABLE_BYTES:
            raise DataError(f"{path} is too large for a table", f"{size:,} bytes, limit {MAX_TABLE_BYTES:,}", "split it")
        if known := identify_file(path):
            raise DataError(f"{path} is not a table", f"it is {known[0]}", known[1])
        with path.open("rb") as file:
            if file.read(4) == b"PAR1":
                return _parquet(path, column)
        text = _text(path)
    except OSError as error:
        raise DataError(f"cannot read {path}", error.strerror or str(error), "is the path right?") from None
    if not text.strip():
        raise DataError(f"{path} is empty", "the file holds no text", "give a table with a column of file names")
    return _json(path, text, column) if text.lstrip()[0] in "[{" else _csv(path, text, column)


def choose(path: Path, found: Sequence[str], asked: str | None) -> str:
    """Return the requested column, or the only one that names images; DataError otherwise."""
    if len(found) > MAX_COLUMNS:
        raise DataError(f"{path} has {len(found):,} columns", f"limit {MAX_COLUMNS:,}", "is it a table of images?")
    listed = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
    fits = [name for name in found if (_plain(name) == _plain(asked) if asked else _plain(name) in NAMES)]
    if not fits:
        what = f"{path} has no column {asked!r}" if asked else f"{path}: no column is called like an image or a file"
        raise DataError(what, f"it has: {listed or 'none'}", "name the right one with --column")
    if len(fits) > 1:
        raise DataError(f"{path}: several columns may name images", ", ".join(fits), "name the right one with --column")
    return fits[0]


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _text(path: Path) -> str:
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not text in {error.encoding.upper()}", f"at byte {error.start:,}", "save it as UTF-8"
        ) from None


def _take(rows: Iterable[tuple[int, Any]]) -> Column:
    taken = Column()
    for number, cell in rows:
        if isinstance(cell, str) and cell.strip() and _is_file_name(cell):
            taken.names.append(cell)
        else:
            empty = cell is None or (isinstance(cell, str) and not cell.strip())
            why = "no image is named" if empty else f"not a file name: {ascii(cell)[:60]}"
            taken.refused[f"row {number}"] = why
    return taken


def _is_file_name(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a character, which JSON can write
        return False


# -- CSV -----------------------------------------------------------------------------------------------------------
def _csv(path: Path, text: str, column: str | None) -> Column:
    first = text.lstrip("\r\n").split("\n", 1)[0]
    separator = max(SEPARATORS, key=lambda s: _fit(first, s, column))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        header = next(row for row in reader if row)
        place = header.index(choose(path, header, column))
        return _take((n, row[place] if place < len(row) else None) for n, row in enumerate((r for r in reader if r), 1))
    except csv.Error as error:
        raise DataError(f"cannot read {path} as CSV", f"{error}", "save it as CSV in UTF-8") from None
    except StopIteration:
        raise DataError(
            f"{path} has no header", "the first line is missing", "give a table with a column of file names"
        ) from None


def _fit(line: str, separator: str, column: str | None) -> tuple[int, int]:
    """Rate how well a header splits: by columns that may be meant, then by columns."""
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return 0, 0
    return sum(_plain(cell) in NAMES or cell == column for cell in cells), len(cells)


# -- JSON ----------------------------------------------------------------------------------------------------------
def _json(path: Path, text: str, column: str | None) -> Column:
    rows = list(_json_rows(path, text))
    if not rows:
        raise DataError(f"{path} has no rows", "the list is empty", "give a list of objects")
    found = list(dict.fromkeys(key for row in rows[:1000] if isinstance(row, dict) for key in row))
    name = choose(path, found, column)
    return _take((n, row.get(name) if isinstance(row, dict) else row) for n, row in enumerate(rows, 1))


def _json_rows(path: Path, text: str) -> Iterator[Any]:
    if text.lstrip()[0] == "[":
        yield from _loads(str(path), text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _loads(f"{path}, line {number}", line)


def _loads(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON", str(error), "give a list of objects, or one object per line") from None


# -- Parquet -------------------------------------------------------------------------------------------------------
def _parquet(path: Path, column: str | None) -> Column:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            name = choose(path, schema.names, column)
            kind = schema.field(name).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)):
                why = f"its type is {str(kind)[:80]}"
                raise DataError(f"{path}: the column {name} holds no file names", why, "images in a table: czsl data import")
            cells = (cell for batch in file.iter_batches(columns=[name]) for cell in batch.column(0).to_pylist())
            return _take(enumerate(cells, 1))
    except parquet_errors() as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(f"cannot read {path}", why, "is it a whole Parquet table?") from None
