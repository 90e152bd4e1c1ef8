"""Predictions of a folder: a record an image, to JSON lines, CSV or Parquet.

A record is ``{"image", "predictions": [{"attr", "obj", "score"}], "attributes": [{"name", "prob"}], "objects": [...], "error"}``.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from czsl.errors import UsageError

COLUMNS = ("image", "rank", "attr", "obj", "score")
_NAMED = pa.list_(pa.struct([("name", pa.string()), ("prob", pa.float64())]))
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("predictions", pa.list_(pa.struct([("attr", pa.string()), ("obj", pa.string()), ("score", pa.float64())]))),
        ("attributes", _NAMED),
        ("objects", _NAMED),
        ("error", pa.string()),
    ]
)
FORMATS = (".jsonl", ".csv", ".parquet")
PARQUET_ROWS = 1024


def failed(image: str, reason: str) -> dict[str, Any]:
    """The record of an image that could not be read."""
    return {"image": image, "predictions": [], "attributes": [], "objects": [], "error": reason}


def check_format(path: Path) -> None:
    """UsageError unless the suffix names a format."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path}: unknown format {path.suffix!r}", "the suffix chooses the format", f"use one of {', '.join(FORMATS)}"
        )


def write(path: Path, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Write records as they pass by and hand them on; the file appears under its name when the last one is written."""
    check_format(path)
    with _whole(path) as temporary:
        writer = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[path.suffix.lower()]
        yield from writer(temporary, records)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _jsonl(path: Path, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            yield record


def _csv(path: Path, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row an image and rank; an image that could not be read has a row without a rank."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for record in records:
            for rank, p in enumerate(record["predictions"], 1):
                rows.writerow([record["image"], rank, p["attr"], p["obj"], f"{p['score']:.6g}"])
            if record["error"]:
                rows.writerow([record["image"], "", "", "", ""])
            yield record


def _parquet(path: Path, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with pq.ParquetWriter(path, SCHEMA) as file:
        waiting: list[dict[str, Any]] = []
        for record in records:
            waiting.append(record)
            if len(waiting) == PARQUET_ROWS:
                file.write_table(pa.Table.from_pylist(waiting, SCHEMA))
                waiting = []
            yield record
        file.write_table(pa.Table.from_pylist(waiting, SCHEMA))
