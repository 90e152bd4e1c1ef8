"""Tables as people have them: CSV in its dialects, TSV, JSON lines, a JSON list, and Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from czsl.data.importing.columns import find_roles, split_in_name, split_of
from czsl.data.importing.entries import ImportSource, Reading
from czsl.data.importing.items import MAX_COLUMNS, Item, ItemTable, add_table, check_width, columns_of
from czsl.data.importing.textfiles import Twins, object_of, parse_json, read_text
from czsl.errors import CzslError, DataError
from czsl.reading import parquet_errors

SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MAX_FOOTER = 64 * 2**20
MAX_FIELD = 1 << 20
MAX_HEADER = 1 << 26


def read_manifest(path: Path, reading: Reading) -> ImportSource:
    """A table of images, with the columns of :mod:`czsl.data.importing.columns`; images relative to its folder.

    Attributes and objects are read if a table has both and labels are not plain classes. Without a column of splits they are drawn.
    """
    if path.is_dir() and (found := manifest_in(path)):
        path = found
    if path.is_dir():
        return _read_split_tables(path, reading)
    source = source_at(path.parent, reading)
    add_table(source, read_table(path, reading), reading)
    return source


def split_tables(folder: Path) -> list[Path]:
    """The tables of a folder that are named after splits (``train.csv``, ``validation.csv``), if there are two or more."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and split_of(p.stem) and p.is_file())
    return found if len(found) > 1 and not any(starts_with(path, b"PAR1") for path in found) else []


def _read_split_tables(folder: Path, reading: Reading) -> ImportSource:
    files = split_tables(folder)
    if not files:
        raise DataError(
            f"{folder} has no manifest.csv or manifest.parquet",
            "the layout `manifest` reads one of these files",
            "give the manifest's own path",
        )
    source, whole = source_at(folder, reading), ItemTable(str(files[0]), [], [])
    for path in files:
        table = read_table(path, reading)
        if whole.columns and set(table.columns) != set(whole.columns):
            other = ", ".join(sorted(set(table.columns) ^ set(whole.columns))[:10])
            raise DataError(f"{path} has other columns than {files[0].name}", other, "give all tables the same columns")
        for item in table.items:
            item.split = split_of(path.stem)
        whole.columns, whole.taken = table.columns, {**whole.taken, **table.taken}
        whole.items += table.items
        whole.bad += table.bad
    add_table(source, whole, reading)
    return source


def source_at(folder: Path, reading: Reading) -> ImportSource:
    """An empty source with images below a folder, or below that of ``--root``."""
    root = reading.root if reading.root is not None else folder
    if not root.is_dir():
        raise DataError(f"no folder {root}", "--root names the folder of the images", "is the path right?")
    others = tuple(dict.fromkeys((root.absolute(), folder.absolute(), folder.resolve())))
    return ImportSource(root.resolve(), links=reading.links, other_roots=others)


def manifest_in(folder: Path) -> Path | None:
    """The table ``manifest.*`` in a folder, or None."""
    return next((p for suffix in SUFFIXES if (p := folder / f"manifest{suffix}").is_file()), None)


def read_table(path: Path, reading: Reading, has_image: bool = False) -> ItemTable:
    """All records of a table, whatever its form.

    Raises
    ------
    DataError
        The table cannot be read, or its columns are unclear.
    """
    if starts_with(path, b"PAR1"):
        return _parquet(path, reading, has_image)
    if path.suffix.lower() == ".parquet":
        raise DataError(f"cannot read {path}", "it does not begin as a Parquet file", "is it a Parquet table?")
    text = read_text(path, "save it as CSV in UTF-8")
    return text_table(text, path, reading, has_image)


def text_table(text: str, path: Path, reading: Reading, has_image: bool = False) -> ItemTable:
    """The records of CSV, JSON lines or a JSON list."""
    start = text.lstrip()[:1]
    if start == "[":
        return records_table(parse_json(text, path), path)
    if start == "{":
        return _json_object(text, path)
    return _csv(text, path, reading, has_image)


def starts_with(path: Path, sign: bytes) -> bool:
    """True if a file begins with these bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(sign)) == sign
    except OSError:
        return False


# -- CSV -----------------------------------------------------------------------------------------------------------
def _csv(text: str, path: Path, reading: Reading, has_image: bool) -> ItemTable:
    lines_before = 0
    hint = re.match(r'"?sep=(.)"?[ \t]*\r?\n', text)  # a first line that some spreadsheets write
    if hint:
        text, lines_before = text[hint.end() :], 1
    delimiter = hint[1] if hint else _delimiter(text, path, reading, has_image)
    rows = _rows(text, delimiter, path, lines_before)
    first = next(rows, (0, []))[1]
    if isinstance(first, str):
        raise DataError(f"cannot read {path}", f"line {lines_before + 1}, the header: {first}", "save it as CSV in UTF-8")
    header = [name.strip() for name in first]
    check_width(header, str(path))
    names = _unique(header)
    table = ItemTable(str(path), header, [])
    if delimiter != ",":
        table.taken["separated by"] = DELIMITERS.get(delimiter, repr(delimiter))
    for line, cells in rows:
        where = f"{path.name}, line {line}"
        if isinstance(cells, str):
            table.bad.append(("unreadable row", where, cells))
        elif len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
            table.bad.append(("too many cells", where, f"{len(cells)} cells, the header has {len(header)}"))
        elif any(cell.strip() for cell in cells):
            table.items.append(Item(where, dict(zip(names, cells, strict=False))))
    return table


def _rows(
    text: str, delimiter: str, path: Path, lines_before: int = 0, limit: int = MAX_FIELD
) -> Iterator[tuple[int, list[str] | str]]:
    """Rows with the line that they begin in; the reason instead of cells for a row that cannot be read."""
    csv.field_size_limit(limit)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + lines_before + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error) or "field limit" in str(error):
                why = f"a quote that is opened in line {line} is not closed"
                if "limit" in str(error):
                    why = f"a cell of line {line} has more than {limit:,} characters; is a quote open?"
                raise DataError(f"cannot read {path}", why, "mend the quote, or save the table again") from None
            yield line, str(error)
            continue
        if row:
            yield line, row


def _delimiter(text: str, path: Path, reading: Reading, has_image: bool) -> str:
    """The delimiter with which the header has the columns that are needed; without one, that of the most columns."""
    headers: dict[str, list[str]] = {}
    for delimiter in DELIMITERS:
        rows = _rows(text[:MAX_HEADER], delimiter, path, limit=MAX_HEADER)
        first = next(rows, (0, []))[1]
        headers[delimiter] = [name.strip() for name in first] if isinstance(first, list) else []
    fitting = [d for d, header in headers.items() if _fits(header, path, reading, has_image)]
    if len(fitting) > 1:
        ways = "; ".join(f"{DELIMITERS[d]}: {', '.join(headers[d][:10])}" for d in fitting)
        raise DataError(f"{path} can be read in more than one way", ways, "write a first line sep=, with the sign that separates")
    return fitting[0] if fitting else max(headers, key=lambda d: len(headers[d]))


def _fits(header: list[str], path: Path, reading: Reading, has_image: bool) -> bool:
    if len(header) > MAX_COLUMNS:
        return False
    try:
        find_roles(header, reading.columns, reading.classes is not None, str(path), has_image)
    except CzslError:
        return False
    return True


def _unique(header: list[str]) -> list[str]:
    """Keys of the cells: a name that occurs again gets a number, so that no cell replaces another."""
    seen: dict[str, int] = {}
    keys = []
    for name in header:
        seen[name] = seen.get(name, 0) + 1
        keys.append(name if seen[name] == 1 else f"{name}\0{seen[name]}")
    return keys


# -- JSON ----------------------------------------------------------------------------------------------------------
def records_table(records: Any, path: Path, split: str | None = None) -> ItemTable:
    """The records of a JSON list."""
    if not isinstance(records, list):
        raise DataError(
            f"cannot read {path}", f"it holds a {type(records).__name__}, not a list of records", "give a list of objects"
        )
    return _table((f"{path.name}, record {number}" for number in range(1, len(records) + 1)), records, path, split)


def _table(places: Iterable[str], records: Iterable[Any], path: Path, split: str | None = None) -> ItemTable:
    table = ItemTable(str(path), [], [])
    for where, record in zip(places, records, strict=True):
        if isinstance(record, BadLine):
            table.bad.append(("unreadable row", where, record.why))
        elif isinstance(record, Twins):
            table.bad.append(("unreadable row", where, "a name occurs twice"))
        elif not isinstance(record, dict):
            table.bad.append(("unreadable row", where, f"a {type(record).__name__}, not an object with names"))
        else:
            table.items.append(Item(where, record, split=split))
    table.columns = columns_of(table.items)
    return table


class BadLine:
    """A line that is not JSON, with the reason in ``why``."""

    def __init__(self, why: str):
        self.why = why


def _json_object(text: str, path: Path) -> ItemTable:
    """JSON lines, or one object with a list of records for each split."""
    try:
        content = json.loads(text, object_pairs_hook=object_of)
    except RecursionError:
        raise DataError(f"cannot read {path}", "it is nested too deep", "save it as JSON lines") from None
    except ValueError:
        content = None
    lists = isinstance(content, dict) and content and all(isinstance(v, list) for v in content.values())
    if lists and all(split_of(name) for name in content):
        parts = [records_table(records, path, split_of(name)) for name, records in content.items()]
        table = ItemTable(str(path), list(dict.fromkeys(c for part in parts for c in part.columns)), [])
        for name, part in zip(content, parts, strict=True):
            for item in part.items:
                item.where = f"{item.where} of {name}"
            table.items += part.items
            table.bad += [(kind, f"{where} of {name}", detail) for kind, where, detail in part.bad]
        return table
    if isinstance(content, dict):  # one record, or another structure, whose names the error lists
        return records_table([content], path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    table = _table((f"{path.name}, line {number}" for number, _ in lines), (_json_line(line) for _, line in lines), path)
    if not table.items:
        first = table.bad[0] if table.bad else ("", str(path), "it is empty")
        raise DataError(f"cannot read {path}", f"{first[1]}: {first[2]}", "save it as JSON lines, or as a list of objects")
    return table


def _json_line(line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=object_of)
    except RecursionError:
        return BadLine("nested too deep")
    except ValueError as error:
        return BadLine(" ".join(str(error).split())[:120])


# -- Parquet -------------------------------------------------------------------------------------------------------
def open_parquet(path: Path):
    """Open a Parquet file after a look at the size of its description; DataError if it is damaged or has too many columns."""
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as raw:
            size = raw.seek(0, 2)
            raw.seek(max(0, size - 8))
            tail = raw.read(8)
        footer = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or footer + 12 > size:
            raise DataError(f"cannot read {path}", "its end is missing", "copy it again; is it a Parquet table?")
        if footer > MAX_FOOTER:
            raise DataError(
                f"cannot read {path}", f"its description has {footer:,} bytes, limit {MAX_FOOTER:,}", "keep fewer columns"
            )
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    except parquet_errors() as error:
        raise DataError(f"cannot read {path}", _first_line(error), "is it a Parquet table?") from None
    check_width(names, str(path))
    return file


def parquet_names(schema) -> dict[str, list[str]]:
    """Names of integer labels by column, as Hugging Face's programs store them in a Parquet file."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, Mapping) and isinstance(feature.get("names"), list)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def named(value: Any, names: list[str] | None) -> Any:
    """The name of an integer label, if there are names; a number without a name becomes a nested value, which is listed."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else {"unknown label": value}


def _parquet(path: Path, reading: Reading, has_image: bool) -> ItemTable:
    with open_parquet(path) as file:
        schema = file.schema_arrow
        roles = find_roles(schema.names, reading.columns, reading.classes is not None, str(path), has_image)
        columns = list(roles.shown().values())
        names = parquet_names(schema)
        table = ItemTable(str(path), list(schema.names), [])
        row = 0
        try:
            for batch in file.iter_batches(columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    cells = {column: named(record[column], names.get(column)) for column in columns}
                    table.items.append(Item(f"{path.name}, row {row}", cells))
        except parquet_errors() as error:
            raise DataError(f"cannot read {path}", _first_line(error), "is it a Parquet table?") from None
    return table


def split_by_name(path: Path, root: Path) -> str | None:
    """The split named by a file's name or by its folder below the root."""
    return split_in_name(path.relative_to(root).as_posix())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
