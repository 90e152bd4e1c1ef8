"""COCO-style JSON: images, categories, and annotations with a box; each box becomes a crop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from czsl.data.importing.annotations import annotation_files, image_places, names_in
from czsl.data.importing.boxes import BadBoxError, Box
from czsl.data.importing.columns import split_in_name
from czsl.data.importing.entries import ImportSource, Reading
from czsl.data.importing.items import Item, ItemTable, add_table, columns_of
from czsl.data.importing.tables import source_at
from czsl.errors import DataError


def read_coco(path: Path, reading: Reading) -> ImportSource:
    """Annotation files of one dataset; the object is the category's name, the attribute a field of the annotation.

    Attributes are a field of the annotation or of its ``attributes`` (text, a list, or named values), or ``attribute_ids`` with a
    list of ``attributes`` as categories have one. A box that covers the whole image is the image itself, as it is on the disk.
    """
    folder = path if path.is_dir() else path.parent
    source = source_at(folder, reading)
    table = ItemTable(str(path), [], [])
    for file, content in annotation_files(path, "coco"):
        _read_file(file, content, folder, source, table)
    table.columns = columns_of(table.items)
    add_table(source, table, reading)
    return source


def _read_file(path: Path, content: dict, folder: Path, source: ImportSource, table: ItemTable) -> None:
    name = path.relative_to(folder).as_posix()
    images = _by_id(content.get("images"), "images", path)
    categories = {key: record.get("name") for key, record in _by_id(content.get("categories", []), "categories", path).items()}
    attributes = {key: record.get("name") for key, record in _by_id(content.get("attributes", []), "attributes", path).items()}
    annotations = content.get("annotations", [])
    if not isinstance(annotations, list):
        raise DataError(f"cannot read {path}", "its annotations are not a list", "is it COCO's format?")
    split, places = split_in_name(name), image_places(source.root, path.parent, path.stem)
    used: dict[Any, int] = {}
    for record in annotations:
        if isinstance(record, dict) and isinstance(record.get("image_id"), int | str):
            used[record["image_id"]] = used.get(record["image_id"], 0) + 1
    for number, record in enumerate(annotations, 1):
        where = f"{name}, annotation {number}"
        if not isinstance(record, dict):
            table.bad.append(("unreadable row", where, f"a {type(record).__name__}, not an object with names"))
            continue
        key = record.get("image_id")
        image = images.get(key) if isinstance(key, int | str) else None
        if image is None:
            table.bad.append(("missing image", where, f"no image has the id {key!r}"))
            continue
        if record.get("iscrowd") in (1, True):
            source.note("crowd of objects", where, "a box of several objects")
            continue
        try:
            box = _box(record, image, used[key] == 1)
        except BadBoxError as error:
            table.bad.append(("bad box", where, str(error)))
            continue
        cells = {"image": image.get("file_name"), **_cells(record, image, attributes)}
        category = record.get("category_id")
        cells["category"] = categories.get(category) if isinstance(category, int | str) else None
        also = names_in(places, cells["image"])
        table.items.append(Item(where, cells, split=split, also=also, box=box, box_id=str(record.get("id", number))))
    for key in [key for key in images if key not in used]:
        source.note("image without an annotation", str(images[key].get("file_name")))


def _by_id(records: Any, what: str, path: Path) -> dict[Any, dict]:
    if not isinstance(records, list):
        raise DataError(f"cannot read {path}", f"its {what} are not a list", "is it COCO's format?")
    found: dict[Any, dict] = {}
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not isinstance(record.get("id"), int | str):
            raise DataError(f"cannot read {path}", f"number {number} of its {what} has no id", "is it COCO's format?")
        if record["id"] in found:
            raise DataError(
                f"cannot read {path}", f"two of its {what} have the id {record['id']!r}", "give each an id of its own"
            )
        found[record["id"]] = record
    return found


def _box(record: dict, image: dict, only: bool) -> Box | None:
    """The box of an annotation; None if it has none, or it is the whole of an image without other boxes."""
    if "bbox" not in record or record["bbox"] in (None, []):
        return None
    box = Box.of(record["bbox"])
    width, height = image.get("width"), image.get("height")
    if only and isinstance(width, int | float) and isinstance(height, int | float) and width > 0 and height > 0:
        return None if box.covers(width, height) else box
    return box


def _cells(record: dict, image: dict, attributes: dict[Any, Any]) -> dict[str, Any]:
    """Return the fields of an annotation other than its box and category, by column."""
    skipped = {
        "id",
        "image_id",
        "category_id",
        "bbox",
        "segmentation",
        "area",
        "iscrowd",
        "keypoints",
        "attributes",
        "attribute_ids",
    }
    cells = {key: image[key] for key in ("split", "set", "phase", "czsl_id") if key in image}
    cells |= {key: value for key, value in record.items() if key not in skipped and not isinstance(value, dict)}
    ids, named = record.get("attribute_ids"), record.get("attributes")
    if isinstance(ids, list) and attributes:
        cells["attributes"] = [attributes.get(i) if isinstance(i, int | str) else None for i in ids]
    elif isinstance(named, dict):
        cells |= {str(key): value for key, value in named.items()}
    elif named is not None:
        values = named if isinstance(named, list) else [named]
        by_id = bool(attributes) and all(isinstance(v, int) for v in values)
        cells["attributes"] = [attributes.get(v) for v in values] if by_id else named
    return cells
