"""Predictions of a folder: a record an image, to JSON lines, CSV or Parquet, and the part of them that outlives a crash.

A record is ``{"image", "predictions": [{"attr", "obj", "score", "calibrated", "prob"}], "attributes": [{"name", "prob"}], "objects": [...],
"operating_point": {"bias", "how", "temperature", "prob_bias"}, "error"}``; of plain classes there are ``{"class", ..}`` and ``classes``.
``calibrated`` is the score with the bias of the operating point, which the list is ranked by. ``sure`` is there if names can be left out,
and ``rejected`` if images can show no candidate; ``decoding`` is ``fast-jpeg`` if large JPEGs were reduced while they were decoded. In
Parquet the operating point and the decoding are metadata of the file.
"""

from __future__ import annotations

import csv
import fcntl
import glob
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Self

from czsl.data.inputs import ImageSource, as_source
from czsl.errors import DataError, UsageError
from czsl.printable import printable
from czsl.reading import PathLike, parse_json
from czsl.runs.files import whole_file

FIGURES = ("score", "calibrated", "prob")  # of each prediction
DOUBTS = ("sure", "rejected")  # of a record, if they were asked for
FORMATS = (".jsonl", ".csv", ".parquet")
PARQUET_ROWS = 1024
FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


class Partial:
    """Partial results of an unfinished predictions file: ``.<name>.partial.jsonl`` next to it, one batch of records per line.

    It belongs to the inputs that its first line names; for other inputs it is empty. A ``with`` block that ends well deletes it, so a
    finished file has none; one that ends with an error keeps it, unless it holds nothing. One process at a time writes it.

    Parameters
    ----------
    out : Path
        The file of predictions that is to be made.
    inputs : str
        Hash of everything that the records follow from, see :func:`inputs_sha256`.

    Raises
    ------
    UsageError
        If another process writes the same file.
    """

    def __init__(self, out: PathLike, inputs: str):
        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.done = out.with_name(f".{out.name}.partial.jsonl"), 0
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(
                f"{out} is being written", "by another czsl predict", "wait for it, or choose another --out"
            ) from None
        for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):  # of a process that was killed
            left.unlink(missing_ok=True)
        self._take_up(json.dumps({"question": inputs}).encode() + b"\n")

    def _take_up(self, first: bytes) -> None:
        """Seek to the end of the last complete line, or truncate the file if its first line differs."""
        self._file.seek(0)
        end = len(first) if self._file.readline() == first else 0
        while end and _batch(line := self._file.readline()) is not None:
            end, self.done = end + len(line), self.done + 1
        self._file.truncate(end)
        if not end:
            self._append(first)
        self._first = len(first)

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """The finished ones, in order."""
        with self.path.open("rb") as file:
            file.seek(self._first)
            for _ in range(self.done):
                yield _batch(file.readline()) or []

    def add(self, records: list[dict[str, Any]]) -> None:
        """Keep the next batch."""
        self._append(json.dumps(records).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None or self._file.tell() <= self._first:
            self.path.unlink(missing_ok=True)
        self._file.close()


def _batch(line: bytes) -> list[dict[str, Any]] | None:
    """The records of a line; None if it is cut or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        content = parse_json(line)
    except DataError:
        return None
    return content if isinstance(content, list) and all(map(_is_record, content)) else None


def _is_record(record: Any) -> bool:
    """Return whether this has the form of an image's record."""
    if not isinstance(record, dict) or not isinstance(record.get("image"), str) or not {"predictions", "error"} <= record.keys():
        return False
    listed = {kind: record[kind] for kind in ("predictions", "attributes", "objects", "classes", "wanted") if kind in record}
    if not all(isinstance(items, list) and all(isinstance(item, dict) for item in items) for items in listed.values()):
        return False
    labels = [x for kind in ("predictions", "wanted") for x in listed.get(kind, ())]
    named = [x for kind in ("attributes", "objects", "classes") for x in listed.get(kind, ())]
    return (
        isinstance(record["error"], str | None)
        and (record["error"] is not None or _answered(record))
        and ({"attributes", "objects"} <= record.keys() or "classes" in record)
        and all(_texts(x, ("class",) if "class" in x else ("attr", "obj")) and _is_number(x.get("score")) for x in labels)
        and all(_is_number(x.get(figure)) for x in listed.get("predictions", ()) for figure in FIGURES)
        and all(_texts(x, ("name",)) and _is_number(x.get("prob")) for x in named)
    )


def _answered(record: dict[str, Any]) -> bool:
    """Return whether a record without an error names a composition and its parts, or a class."""
    return bool(record["predictions"]) and ("classes" in record or bool(record.get("attributes") and record.get("objects")))


def _texts(item: dict[str, Any], names: Sequence[str]) -> bool:
    return all(isinstance(item.get(name), str) for name in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def inputs_sha256(source: ImageSource | PathLike, names: list[str], **facts: Any) -> str:
    """SHA-256 of what predictions follow from: images by name, location, size and time of change, and the given facts (plain data)."""
    source = as_source(source)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in names:
        digest.update(json.dumps([name, *source.stamp(name)]).encode())
    return digest.hexdigest()


def failed(image: str, reason: str, kinds: Sequence[str] = ("attributes", "objects")) -> dict[str, Any]:
    """The record of an image that could not be read; ``kinds`` of names are those of the other records."""
    return {"image": image, "predictions": [], **{kind: [] for kind in kinds}, "error": reason}


def check_format(path: PathLike | None, excel: bool = False) -> None:
    """Raise UsageError unless the suffix names a format (for spreadsheets: CSV). None stands for no file."""
    path = None if path is None else Path(path)
    if excel and (path is None or path.suffix.lower() != ".csv"):
        raise UsageError("--excel goes with --out FILE.csv", "spreadsheets read CSV", "name a .csv file, or drop --excel")
    if path is None:
        return
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path}: unknown format {path.suffix!r}", "the suffix chooses the format", f"use one of {', '.join(FORMATS)}"
        )


def write(path: PathLike, records: Iterable[dict[str, Any]], excel: bool = False) -> Iterator[dict[str, Any]]:
    """Write records as they pass by and hand them on; the file appears under its name when the last one is written.

    The first record decides whether labels are pairs or plain classes. Names of files that are not UTF-8 keep their bytes in CSV and JSON
    (as ``\\udcXX``); Parquet, whose text is Unicode, holds them escaped.

    Parameters
    ----------
    path : Path
    records : iterable of dict
    excel : bool
        CSV for spreadsheets: with a byte order mark, and a ``'`` before text that would run as a formula.
    """
    path = Path(path)
    check_format(path, excel)
    first = next(records := iter(records), None)
    classes = first is not None and "classes" in first
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        csv_writer = _excel if excel else _csv
        writer = {".jsonl": _jsonl, ".csv": csv_writer, ".parquet": _parquet}[path.suffix.lower()]
        yield from writer(temporary, records if first is None else chain([first], records), classes)


def _columns(classes: bool) -> tuple[str, ...]:
    """Return the columns that name a label."""
    return ("class",) if classes else ("attr", "obj")


def _jsonl(path: Path, records: Iterable[dict[str, Any]], classes: bool) -> Iterator[dict[str, Any]]:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json_line(record) + "\n")
            yield record


def json_line(record: dict[str, Any]) -> str:
    """A record as a line of JSON that UTF-8 can hold: what is not Unicode is written as an escape."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(record)
    return line


def _csv(
    path: Path,
    records: Iterable[dict[str, Any]],
    classes: bool,
    encoding: str = "utf-8",
    cell: Callable[[str], str] = lambda text: text,
) -> Iterator[dict[str, Any]]:
    """One row per image and rank; an image that could not be read has a row without a rank."""
    columns = _columns(classes)
    with path.open("w", encoding=encoding, errors="surrogateescape", newline="") as file:
        rows = csv.writer(file)
        first, records = _first(records)
        doubts, figures = [name for name in DOUBTS if name in first], _figures(first)
        rows.writerow(["image", "rank", *columns, *figures, *doubts])
        for record in records:
            judged = [str(record.get(name, "")).lower() for name in doubts]
            for rank, p in enumerate(record["predictions"], 1):
                values = (f"{p[name]:.6g}" for name in figures)
                rows.writerow([cell(record["image"]), rank, *(cell(p[name]) for name in columns), *values, *judged])
            if record["error"]:
                rows.writerow([cell(record["image"]), "", *("" for _ in (*columns, *figures, *doubts))])
            yield record


def _excel(path: Path, records: Iterable[dict[str, Any]], classes: bool) -> Iterator[dict[str, Any]]:
    yield from _csv(path, records, classes, "utf-8-sig", excel_cell)


def excel_cell(text: str) -> str:
    """Text that a spreadsheet shows as it is: with a ``'`` before what it would run as a formula or a command.

    Source: OWASP, CSV injection.
    """
    runs = text.lstrip().startswith(FORMULA_STARTS) or text.startswith(("\t", "\r", "\n"))
    return f"'{text}" if runs else text


def _unicode(name: str) -> str:
    """A name that UTF-8 can hold."""
    return name if name.isascii() else "".join(c if not "\ud800" <= c <= "\udfff" else printable(c) for c in name)


def _figures(record: dict[str, Any]) -> list[str]:
    """The numbers of a record's predictions."""
    predictions = record.get("predictions") or [dict.fromkeys(FIGURES, 0.0)]
    return [name for name in FIGURES if name in predictions[0]]


def _first(records: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """The first record of a readable image (empty if no image was readable), and all records."""
    waiting, records = [], iter(records)
    for record in records:
        waiting.append(record)
        if not record["error"]:
            return record, chain(waiting, records)
    return {}, chain(waiting, records)


def _parquet(path: Path, records: Iterable[dict[str, Any]], classes: bool) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # no other format needs it, and it takes a tenth of a second to import
    import pyarrow.parquet as pq

    first, records = _first(records)
    figures = [(name, pa.float64()) for name in _figures(first)]
    predicted = pa.struct([*((name, pa.string()) for name in _columns(classes)), *figures])
    doubts = [(name, pa.bool_()) for name in DOUBTS if name in first]
    names = pa.list_(pa.struct([("name", pa.string()), ("prob", pa.float64())]))
    named = [(kind, names) for kind in (("classes",) if classes else ("attributes", "objects"))]
    schema = pa.schema([("image", pa.string()), ("predictions", pa.list_(predicted)), *named, *doubts, ("error", pa.string())])
    facts = {name: json.dumps(first[name]) for name in ("operating_point", "decoding") if name in first}
    schema = schema.with_metadata(facts) if facts else schema
    file = pq.ParquetWriter(path, schema)
    try:
        waiting: list[dict[str, Any]] = []
        for record in records:
            waiting.append({**record, "image": _unicode(record["image"])})
            if len(waiting) == PARQUET_ROWS:
                file.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
            yield record
        file.write_table(pa.Table.from_pylist(waiting, schema))
        file.close()
    except BaseException:
        with suppress(OSError, pa.ArrowException):  # on a full disk closing fails as writing did, and would hide it
            file.close()
        raise
