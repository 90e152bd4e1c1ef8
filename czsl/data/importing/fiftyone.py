"""FiftyOne's exports of classifications: ``labels.json`` next to ``data/``, or ``samples.json`` of a whole dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from czsl.data.images import SUFFIXES
from czsl.data.importing.annotations import annotation_files, image_places, names_in
from czsl.data.importing.boxes import BadBoxError, Box
from czsl.data.importing.columns import split_in_name, split_of
from czsl.data.importing.entries import ImportSource, Reading
from czsl.data.importing.items import Item, ItemTable, add_table, columns_of
from czsl.data.importing.tables import source_at
from czsl.errors import DataError


def read_fiftyone(path: Path, reading: Reading) -> ImportSource:
    """An export; the columns are the names of the fields (``label`` in ``labels.json``), splits are tags or folders."""
    folder = path if path.is_dir() else path.parent
    source = source_at(folder, reading)
    table = ItemTable(str(path), [], [])
    for file, content in annotation_files(path, "fiftyone"):
        name = file.relative_to(folder).as_posix()
        places = image_places(source.root, file.parent)
        split = split_in_name(name)
        if "samples" in content:
            _samples(table, content["samples"], name, places, split)
        else:
            _labels(source, table, content, file, places, split)
    table.columns = columns_of(table.items)
    add_table(source, table, reading)
    return source


# -- labels.json ---------------------------------------------------------------------------------------------------
def _labels(
    source: ImportSource, table: ItemTable, content: dict, path: Path, places: tuple[str, ...], split: str | None
) -> None:
    classes, labels = content.get("classes"), content.get("labels")
    if not isinstance(labels, dict) or not (classes is None or isinstance(classes, list)):
        raise DataError(f"cannot read {path}", "expected: classes, a list or null, and labels by image", "export it again")
    files = _files(source, places)
    for name, value in labels.items():
        where = f"{path.name}: {name[:100]}"
        cells: dict[str, Any] = {}
        if isinstance(value, dict):
            if "bounding_box" in value or "detections" in value:
                table.bad.append(("unusable label", where, "a detection, not a classification"))
                continue
            cells |= value.get("attributes", {}) if isinstance(value.get("attributes"), dict) else {}
            value = value.get("label")
        if isinstance(value, int) and not isinstance(value, bool) and classes is not None:
            value = classes[value] if 0 <= value < len(classes) else None
        if value is None:
            table.bad.append(("missing label", where, "no class, or a number that is not a class"))
            continue
        names = names_in(places, name) + names_in(("",), files.get(name))
        table.items.append(Item(where, {"image": name, **cells, "label": value}, split=split, also=names))


def _files(source: ImportSource, places: tuple[str, ...]) -> dict[str, str]:
    """Image files in the folders by their names without the ending, which ``labels.json`` does not have."""
    found: dict[str, str] = {}
    for place in places:
        folder = source.root / place
        for file in sorted(folder.rglob("*")) if place and folder.is_dir() else ():
            if file.suffix.lower() in SUFFIXES:
                found.setdefault(
                    file.relative_to(folder).with_suffix("").as_posix(), f"{place}{file.relative_to(folder).as_posix()}"
                )
    return found


# -- samples.json --------------------------------------------------------------------------------------------------
def _samples(table: ItemTable, samples: Any, name: str, places: tuple[str, ...], split: str | None) -> None:
    if not isinstance(samples, list):
        raise DataError(f"cannot read {name}", "its samples are not a list", "export it again")
    for number, sample in enumerate(samples, 1):
        where = f"{name}, sample {number}"
        if not isinstance(sample, dict):
            table.bad.append(("unreadable row", where, f"a {type(sample).__name__}, not an object with names"))
            continue
        tags = sample.get("tags")
        splits = {found for tag in (tags if isinstance(tags, list) else []) if isinstance(tag, str) and (found := split_of(tag))}
        if len(splits) > 1:
            table.bad.append(("unknown split", where, f"its tags name several: {', '.join(sorted(splits))}"))
            continue
        own = splits.pop() if splits else split
        cells, boxes = _fields(sample, table, where)
        also = names_in(places, cells["image"])
        if not boxes:
            table.items.append(Item(where, cells, split=own, also=also))
        for label, more, box, ident in boxes:
            table.items.append(Item(where, {**cells, **more, "label": label}, split=own, also=also, box=box, box_id=ident))


def _fields(sample: dict, table: ItemTable, where: str) -> tuple[dict[str, Any], list[tuple[Any, dict, Box, str]]]:
    """The cells of a sample, and its boxes with their labels and attributes."""
    cells: dict[str, Any] = {"image": sample.get("filepath")}
    boxes: list[tuple[Any, dict, Box, str]] = []
    for key, value in sample.items():
        kind = value.get("_cls") if isinstance(value, dict) else None
        if key in ("filepath", "tags", "metadata") or key.startswith("_"):
            continue
        if kind == "Classification":
            cells[key] = value.get("label")
        elif kind == "Classifications" and isinstance(value.get("classifications"), list):
            cells[key] = [c.get("label") if isinstance(c, dict) else None for c in value["classifications"]]
        elif kind == "Detections" and isinstance(value.get("detections"), list):
            for number, detection in enumerate(value["detections"], 1):
                try:
                    if not isinstance(detection, dict):
                        raise BadBoxError("no detection")
                    box = Box.of(detection.get("bounding_box"), fraction=True)
                except BadBoxError as error:
                    table.bad.append(("bad box", f"{where}, detection {number}", str(error)))
                    continue
                more = {
                    k: v
                    for k, v in detection.items()
                    if isinstance(v, str | int) and k not in ("label",) and not k.startswith("_")
                }
                boxes.append((detection.get("label"), more, box, f"{key}-{number}"))
        elif kind is None and not isinstance(value, dict | list):
            cells[key] = value
    return cells, boxes
