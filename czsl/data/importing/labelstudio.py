"""Label Studio's exports: JSON, JSON-MIN and CSV of choices; boxes with choices of their own become crops."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from czsl.data.importing.annotations import annotation_files
from czsl.data.importing.boxes import BadBoxError, Box
from czsl.data.importing.entries import ImportSource, Reading
from czsl.data.importing.items import Item, ItemTable, add_table, columns_of
from czsl.data.importing.tables import read_table, records_table, source_at

FOLDERS = ("", "images/", "upload/", "media/", "media/upload/")
# What an export in CSV or JSON-MIN says of the work, not of the image.
WORK = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"}


def read_label_studio(path: Path, reading: Reading) -> ImportSource:
    """An export; the columns are the names of the labelling controls, and those of the task's data.

    Images are found by the part of their address that the export keeps: below the export's folder, ``images/`` or ``--root``, with or
    without the eight letters and digits that an upload puts before the name.
    """
    folder = path if path.is_dir() else path.parent
    source = source_at(folder, reading)
    table = ItemTable(str(path), [], [])
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        table = read_table(path, reading)
        for item in table.items:
            item.cells = {key: _choices_text(value) for key, value in item.cells.items()}
    else:
        for file, records in annotation_files(path, "label-studio"):
            if any(isinstance(record, dict) and isinstance(record.get("data"), dict) for record in records):
                for number, task in enumerate(records, 1):
                    _add_task(table, task, f"{file.name}, task {number}")
            else:
                flat = records_table(records, file)
                table.bad += flat.bad
                for item in flat.items:
                    item.cells = {key: _choices(value) for key, value in item.cells.items()}
                    table.items.append(item)
        table.columns = columns_of(table.items)
    table.columns = [column for column in table.columns if column not in WORK]
    for item in table.items:
        _find_image(item)
    add_table(source, table, reading)
    return source


def looks_like(text: str) -> bool:
    """True for the header of an export in CSV."""
    header = text.lstrip("\ufeff").split("\n", 1)[0]
    return {"annotation_id", "lead_time"} <= {name.strip().strip('"') for name in header.replace("\t", ",").split(",")}


def _add_task(table: ItemTable, task: Any, where: str) -> None:
    """The entries of one task: one of the whole image, or one of each box."""
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        table.bad.append(("unreadable row", where, "it has no data"))
        return
    annotations = task.get("annotations", task.get("completions"))
    done = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")] if isinstance(annotations, list) else []
    found = []
    for annotation in done:
        results = annotation.get("result")
        found.append(_regions(results if isinstance(results, list) else [], table, where))
    if not found or not any(found):
        if not any(bad[1].startswith(where) for bad in table.bad):
            table.bad.append(("missing label", where, "it has no label yet"))
        return
    if any(regions != found[0] for regions in found[1:]):
        table.bad.append(("conflicting annotations", where, f"{len(found)} annotations that differ"))
        return
    data = {key: value for key, value in task["data"].items() if isinstance(key, str)}
    if isinstance(task.get("file_upload"), str):
        data["\0upload"] = task["file_upload"]
    for number, (box, cells) in found[0].items():
        table.items.append(Item(where, {**data, **cells}, box=box, box_id=number))


def _regions(results: list, table: ItemTable, where: str) -> dict[str, tuple[Box | None, dict[str, Any]]]:
    """Choices by region, with its box; the whole image is the region without a name."""
    boxes: dict[str, Box] = {}
    choices: dict[str, dict[str, Any]] = {}
    for result in results:
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            continue
        number, control = str(result.get("id", "")), str(result.get("from_name", ""))
        if "width" in value and "height" in value:
            try:
                if value.get("rotation"):
                    raise BadBoxError("a box that is turned")
                boxes[number] = Box.of([value.get(k) for k in ("x", "y", "width", "height")], fraction=True, scale=0.01)
            except BadBoxError as error:
                table.bad.append(("bad box", f"{where}, region {number[:20]}", str(error)))
                continue
        for kind in ("choices", "rectanglelabels", "labels", "text", "taxonomy"):
            if isinstance(value.get(kind), list) and value[kind]:
                choices.setdefault(number, {}).setdefault(control, _one(value[kind]))
    if not boxes:
        whole: dict[str, Any] = {}
        for cells in choices.values():
            whole |= cells
        return {"": (None, whole)} if whole else {}
    common: dict[str, Any] = {}
    for number, cells in choices.items():
        if number not in boxes:
            common |= cells
    return {number: (box, {**common, **choices.get(number, {})}) for number, box in boxes.items()}


def _one(values: list) -> Any:
    return values[0] if len(values) == 1 else values


def _choices(value: Any) -> Any:
    """``{"choices": [..]}``, as JSON-MIN has several choices, as a list."""
    return (
        _one(value["choices"])
        if isinstance(value, dict) and isinstance(value.get("choices"), list) and value["choices"]
        else value
    )


def _choices_text(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith('{"choices"'):
        return value
    try:
        return _choices(json.loads(value))
    except (ValueError, RecursionError):
        return value


def _find_image(item: Item) -> None:
    """Replace the address of an image by the path that it holds, and add the other names that its file may have."""
    upload = item.cells.pop("\0upload", None)
    for key, value in list(item.cells.items()):
        if not isinstance(value, str) or not ("/" in value or upload):
            continue
        path = _path_in(value)
        if path is None:
            continue
        names = [path, PurePosixPath(path).name, *([upload] if isinstance(upload, str) else [])]
        names += [name.partition("-")[2] for name in names if _has_prefix(name)]
        item.cells[key] = path
        item.also = (*item.also, *(f"{folder}{name}" for name in dict.fromkeys(names) for folder in FOLDERS if name))


def _path_in(value: str) -> str | None:
    """The path of a file in an address of Label Studio, of a storage or of a server; None for any other text."""
    parts = urlsplit(value) if value.isprintable() else None
    if parts is None:
        return None
    if parts.path.endswith("/data/local-files/") or parts.path.endswith("/data/local-files"):
        return (parse_qs(parts.query).get("d") or [""])[0].lstrip("/") or None
    for mark in ("/data/upload/", "/storage-data/"):
        if mark in parts.path:
            return unquote(parts.path.split(mark, 1)[1])
    return unquote(parts.path.lstrip("/")) if parts.scheme in ("s3", "gs", "http", "https", "azure-blob") else None


def _has_prefix(name: str) -> bool:
    start = PurePosixPath(name).name.partition("-")[0]
    return name == PurePosixPath(name).name and len(start) == 8 and all(c in "0123456789abcdef" for c in start)
