"""VAW's own JSON: instances with a box, a name and several attributes, in images of Visual Genome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from czsl.compositions import SPLITS
from czsl.data.importing.annotations import annotation_files, names_in
from czsl.data.importing.boxes import BadBoxError, Box
from czsl.data.importing.columns import split_in_name
from czsl.data.importing.entries import ImportSource, Reading, space_of_lists
from czsl.data.importing.items import Item, ItemTable, add_table
from czsl.data.importing.pairs import read_pair_lists
from czsl.data.importing.published import LISTS
from czsl.data.importing.tables import source_at

PLACES = ("", "images/", "VG_100K/", "VG_100K_2/", "images/VG_100K/", "images/VG_100K_2/")


def read_vaw(path: Path, reading: Reading) -> ImportSource:
    """VAW's files; each instance becomes a crop of its image, ``<image_id>.jpg``.

    With VAW-CZSL's pair lists next to them, those attributes count that make a pair of the instance's split, and the label space is
    that of the lists.
    """
    folder = path if path.is_dir() else path.parent
    source = source_at(folder, reading)
    lists = None
    if (folder / LISTS).is_dir():
        found, separator = read_pair_lists([folder / LISTS / f"{split}_pairs.txt" for split in SPLITS], reading.separator)
        lists = dict(zip(SPLITS, found, strict=True))
        source.space = space_of_lists(lists)
        source.taken["pairs"] = "attribute+object" if separator == "plus" else "attribute object"
    allowed = None if lists is None else {split: set(pairs) for split, pairs in lists.items()}
    table = ItemTable(str(path), ["image", "attribute", "object", "split"], [])
    for file, records in annotation_files(path, "vaw"):
        name = file.relative_to(folder).as_posix()
        split = split_in_name(name)
        for number, record in enumerate(records, 1):
            _add(source, table, record, f"{name}, record {number}", split, allowed)
    if all(item.cells["split"] is None for item in table.items):
        table.columns.remove("split")
    add_table(source, table, reading)
    return source


def _add(
    source: ImportSource, table: ItemTable, record: Any, where: str, split: str | None, allowed: dict[str, set] | None
) -> None:
    if not isinstance(record, dict):
        table.bad.append(("unreadable row", where, f"a {type(record).__name__}, not an object with names"))
        return
    try:
        box = Box.of(record.get("instance_bbox"))
    except BadBoxError as error:
        table.bad.append(("bad box", where, str(error)))
        return
    attributes, obj = record.get("positive_attributes"), record.get("object_name")
    if attributes == []:
        source.note("record without an attribute", where, str(obj)[:60])
        return
    if allowed is not None and split in allowed and isinstance(attributes, list):
        kept = [attr for attr in attributes if isinstance(attr, str) and isinstance(obj, str) and (attr, obj) in allowed[split]]
        if not kept:
            source.note("record of no listed pair", where, str(obj)[:60])
            return
        attributes = kept
    key = record.get("image_id")
    image = f"{key}.jpg" if isinstance(key, int | str) and not isinstance(key, bool) else None
    cells = {"image": image, "attribute": attributes, "object": obj, "split": split}
    number = str(record.get("instance_id", "")) or where.rpartition(" ")[2]
    table.items.append(Item(where, cells, also=names_in(PLACES, image), box=box, box_id=number))
