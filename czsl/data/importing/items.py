"""From records of any program, with named cells, to entries: labels, several attributes, splits, and where the images are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from czsl.classes import NO_ATTRIBUTE
from czsl.compositions import label_of, label_words
from czsl.data.importing.boxes import Box
from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.columns import Roles, ambiguous, find_roles, may_be, split_of
from czsl.data.importing.entries import Entry, FileImage, ImageLocation, ImportSource, Reading
from czsl.data.importing.splitting import split_by_class, split_by_pair
from czsl.data.paths import BadPathError, contained, stable_name
from czsl.errors import DataError, UsageError

MAX_COLUMNS = 10_000
PREDICTED = "predicted"  # a table that has it is a review file: rows without a label are not reviewed, the others are counted
SAMPLE = 50  # rows that decide whether two columns name different images


@dataclass
class Item:
    """One record: ``where`` it stands, for messages; its cells; and further facts about its image.

    ``image`` and ``id``: the bytes, if no column names a file. ``split``: that of the file or folder of the record. ``folder``: what
    a relative path is relative to, below the source's root; ``also``: further names of the image below the root. ``box`` with
    ``box_id``: the part of the image that is meant.
    """

    where: str
    cells: dict[str, Any]
    image: ImageLocation | None = None
    id: str = ""
    split: str | None = None
    folder: str = ""
    also: tuple[str, ...] = ()
    box: Box | None = None
    box_id: str = ""


@dataclass
class Found:
    """An item with its labels, and the place of its image."""

    item: Item
    attr: str
    obj: str
    split: str | None
    id: str
    image: ImageLocation


@dataclass
class ItemTable:
    """Records with the same columns.

    ``name`` is for messages. ``bad``: what is wrong with single records, as (kind, where, detail). ``taken``: facts about the reading.
    """

    name: str
    columns: list[str]
    items: list[Item]
    bad: list[tuple[str, str, str]] = field(default_factory=list)
    taken: dict[str, Any] = field(default_factory=dict)


def add_table(source: ImportSource, table: ItemTable, reading: Reading) -> None:
    """Add the records of a table to a source, and make its label space.

    Parameters
    ----------
    source : ImportSource
    table : ItemTable
    reading : Reading

    Raises
    ------
    DataError
        The columns are unclear, or splits are missing in a part of the records.
    """
    check_width(table.columns, table.name)
    has_image = any(item.image is not None for item in table.items)
    roles = find_roles(table.columns, reading.columns, reading.classes is not None, table.name, has_image)
    _check_images(source, table, roles, reading)
    for problem in table.bad:
        source.skip(*problem)
    source.taken |= {"columns": roles.shown(), **table.taken}
    items = _reviewed(source, table, roles) if PREDICTED in table.columns else table.items
    labelled = _labels(source, items, roles, reading)
    if roles.cls is not None:
        source.unseen = (reading.classes or ClassNames()).unseen_among(obj for _, _, obj in labelled if obj)
    found = []
    for item, attr, obj in labelled:
        place = _place(source, item, roles)
        if place is None:
            continue
        where = place[0]
        if source.usable(where, attr, obj, "val"):  # the split is checked below, when it is known
            found.append(Found(item, attr, obj, _own_split(source, item, roles, where), *place))
    _give_splits(source, found, roles, reading, table.name)
    for one in found:
        if one.split is None or not source.usable(one.id, one.attr, one.obj, one.split):
            continue
        name = one.id
        if one.item.box is not None:
            number = "".join(c if c.isalnum() or c in "._-" else "_" for c in one.item.box_id[:60])
            name = f"{name}#{number}.png"
        source.put(Entry(name, one.image, one.attr, one.obj, one.split, one.item.box))
    if "splits" in source.taken:
        source.taken["splits"] = dict(sorted(source.taken["splits"].items()))
    elif roles.split is None and any(one.item.split for one in found):
        source.taken["splits"] = "named by folders and files"
    if any(one.item.box is not None for one in found):
        source.taken["crops"] = f"boxes with a margin of {reading.margin:g} of their sides"
    source.close()


def _reviewed(source: ImportSource, table: ItemTable, roles: Roles) -> list[Item]:
    """The items of a review file that have a label; confirmed and corrected labels are counted."""
    source.review = dict.fromkeys(("changed", "left", "empty"), 0)
    kept = []
    for item in table.items:
        attr, obj = (_label(item.cells.get(column)) if column else "" for column in (roles.attr, roles.cls or roles.obj))
        predicted = _label(item.cells.get(PREDICTED))
        if not attr and not obj:
            source.review["empty"] += 1
            source.note("no label given", text_of(item.cells.get(roles.image or "")) or item.where, f"predicted: {predicted}")
            continue
        words = label_words(label_of(attr or "", obj or ""))
        source.review["left" if words == predicted else "changed"] += 1
        kept.append(item)
    return kept


def check_width(columns: Sequence[str], name: str) -> None:
    """DataError for a table with more than `MAX_COLUMNS` columns."""
    if len(columns) > MAX_COLUMNS:
        raise DataError(
            f"{name} has {len(columns):,} columns", f"limit {MAX_COLUMNS:,}", "keep those of images, labels and splits"
        )


def columns_of(items: Sequence[Item]) -> list[str]:
    """All names of cells, in the order in which they occur; no more of them than show that there are too many."""
    columns: dict[str, None] = {}
    for item in items:
        if len(columns) <= MAX_COLUMNS:
            columns |= dict.fromkeys(item.cells)
    return list(columns)


def text_of(value: Any) -> str | None:
    """The text of a cell: text (also as bytes in UTF-8), or a whole number; "" for an empty one; None for anything else."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None


# -- labels --------------------------------------------------------------------------------------------------------
def _labels(source: ImportSource, items: Sequence[Item], roles: Roles, reading: Reading) -> list[tuple[Item, str, str]]:
    """Each item with its attribute and object; those without are listed."""
    if roles.pair is not None:
        return _split_pairs(source, items, roles.pair, reading)
    column = roles.cls or roles.obj
    assert column is not None
    done: list[tuple[Item, list[str], str]] = []
    for item in items:
        obj = _label(item.cells.get(column))
        attrs = [NO_ATTRIBUTE] if roles.attr is None else _several(item.cells.get(roles.attr))
        if obj is None or attrs is None:
            source.skip("unusable label", item.where, "a label is text, not a nested value")
        elif len(attrs) > 1 and reading.several is None:
            source.skip("several attributes", item.where, f"{', '.join(attrs)}; choose with --several rarest or --several each")
        else:
            done.append((item, attrs, obj))
    counts = Counter(attr for _, attrs, _ in done for attr in attrs)
    result = []
    for item, attrs, obj in done:
        if len(attrs) > 1:
            source.taken["several attributes"] = reading.several
        kept = attrs if reading.several == "each" else [min(attrs, key=lambda attr: (counts[attr], attr))] if attrs else [""]
        result += [(item, attr, obj) for attr in kept]
    return result


def _split_pairs(source: ImportSource, items: Sequence[Item], column: str, reading: Reading) -> list[tuple[Item, str, str]]:
    if isinstance(reading.names, ClassNames):
        raise UsageError(
            "--columns pair=... with plain classes", "a class has no attribute", "drop --classes, or name the column class"
        )
    texts: list[tuple[Item, str]] = []
    for item in items:
        text = _label(item.cells.get(column))
        if not text:
            source.skip("missing label" if text == "" else "unusable label", item.where, f"column {column}")
        else:
            texts.append((item, text))
    pairs = reading.names.resolve({(text,) for _, text in texts})
    result = []
    for item, text in texts:
        pair = pairs[(text,)]
        if pair is None:
            source.skip("unknown pair", item.where, f"{text!r} is not a listed attribute and object")
        else:
            result.append((item, *pair))
    return result


def _label(value: Any) -> str | None:
    """The text of a label without spaces around it; a list of one text counts as the text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    text = text_of(value)
    return None if text is None else text.strip()


def _several(value: Any) -> list[str] | None:
    """The attributes of a cell without repetitions, none left out; None if it holds something else."""
    texts = [_label(v) for v in value] if isinstance(value, list) and len(value) > 1 else [_label(value if value != [] else None)]
    return (
        None if None in texts else list(dict.fromkeys(text for text in texts if text is not None and (text or len(texts) == 1)))
    )


# -- splits --------------------------------------------------------------------------------------------------------
def _own_split(source: ImportSource, item: Item, roles: Roles, where: str) -> str | None:
    """The split that the record names itself; what is unknown is kept, to be listed."""
    if roles.split is None:
        return item.split
    value = _label(item.cells.get(roles.split))
    known = split_of(value or "")
    if known and value not in (None, known):
        source.taken.setdefault("splits", {})[value] = known
    return known or value or ""


def _give_splits(source: ImportSource, found: list[Found], roles: Roles, reading: Reading, name: str) -> None:
    """Draw the split by the seed if no record has one."""
    without = [one for one in found if one.split is None]
    if not without:
        return
    if len(without) < len(found):
        raise DataError(
            f"{name}: {len(without)} of {len(found)} records have no split",
            f"for example {without[0].id}",
            "add a column split, or name files and folders after train, val and test",
        )
    images = [(one.id, one.attr, one.obj) for one in found]
    splits = split_by_pair(images, reading.seed) if source.unseen is None else split_by_class(images, source.unseen, reading.seed)
    for one, split in zip(found, splits, strict=True):
        one.split = split
    source.taken["split"] = f"none given: drawn by {'pair' if source.unseen is None else 'class'} with seed {reading.seed}"


# -- images --------------------------------------------------------------------------------------------------------
def _place(source: ImportSource, item: Item, roles: Roles) -> tuple[str, ImageLocation] | None:
    """The id and the image of an item, or None after listing the reason."""
    given = text_of(item.cells.get(roles.id)) if roles.id else None
    if given:
        try:
            given = stable_name(given)
        except BadPathError as error:
            source.skip(error.kind, item.where, error.why)
            return None
    if item.image is not None:
        return given or item.id, item.image
    cell = text_of(item.cells.get(roles.image or ""))
    if not cell or not cell.strip():
        source.skip("missing image", item.where, "its cell is empty" if cell is not None else "its cell holds no path")
        return None
    found = source_file(source, cell, item)
    return None if found is None else (given or found[0], FileImage(found[1]))


def source_file(source: ImportSource, cell: str, item: Item) -> tuple[str, Path] | None:
    """The file that a cell names, as (stable name, path), or None after listing the reason."""
    try:
        names = _names(source, cell, item.folder)
        if names and isinstance(names[0], tuple):  # an absolute path below another root
            root, name = names[0]
            path = contained(root, name, source.links)
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises on some broken names)
                return stable_name(name), path
            source.skip("missing image", cell, "no such file")
            return None
    except BadPathError as error:
        source.skip(error.kind, cell, error.why)
        return None
    plain = [name for name in names if isinstance(name, str)]
    return source.find(list(dict.fromkeys([*plain, *item.also])))


def _names(source: ImportSource, cell: str, folder: str) -> list[str | tuple[Path, str]]:
    """Names below the root that a cell may mean: as it stands, without spaces around it, with / for \\, of a file:// address."""
    texts = list(dict.fromkeys([cell, cell.strip()]))
    if cell.strip().lower().startswith("file:"):
        texts = [_file_address(cell.strip())]
    elif "\\" in cell:
        texts += [text.replace("\\", "/") for text in texts]
    last = texts[-1]
    if len(last) > 1 and last[1] == ":" and last[0].isalpha() and last[2:3] in ("/", "\\"):
        raise BadPathError(
            "path leaves the root", cell, "it is an absolute path of another system; use paths relative to the table"
        )
    if "://" in cell and not cell.strip().lower().startswith("file:"):
        raise BadPathError("path leaves the root", cell, "it is an address in a network; download the images first")
    if last.startswith("/"):
        return [_below_a_root(source, last)]
    return [str(PurePosixPath(folder) / text) if folder else text for text in texts]


def _file_address(text: str) -> str:
    parts = urlsplit(text)
    path = unquote(parts.path)
    return path if parts.netloc in ("", "localhost") else f"{parts.netloc}{path}"


def _below_a_root(source: ImportSource, text: str) -> str | tuple[Path, str]:
    """An absolute path as a name below the source's root, or as (other root, name)."""
    if ".." in PurePosixPath(text).parts:
        raise BadPathError("path leaves the root", text, "'..' in the path")
    roots = (source.root, *source.other_roots)
    for root in roots:
        if PurePosixPath(text).is_relative_to(root.as_posix()):
            name = PurePosixPath(text).relative_to(root.as_posix()).as_posix()
            real = Path(os.path.realpath(root))
            return name if real == source.root else (real, name)
    shown = ", ".join(str(root) for root in dict.fromkeys(roots))
    raise BadPathError("path leaves the root", text, f"it lies outside {shown}; name the folder of the images with --root")


def _check_images(source: ImportSource, table: ItemTable, roles: Roles, reading: Reading) -> None:
    """Raise DataError if another column than `image` also names existing files: the choice is then unclear."""
    if roles.image is None or "image" in reading.columns:
        return
    others = [column for column in may_be("image", table.columns) if column != roles.image]
    quiet = ImportSource(source.root, links=source.links, other_roots=source.other_roots)
    for item in table.items[:SAMPLE] if others else ():
        mine = text_of(item.cells.get(roles.image))
        for column in others:
            cell = text_of(item.cells.get(column))
            theirs = source_file(quiet, cell, item) if cell and cell != mine else None
            if theirs and theirs != (source_file(quiet, mine, item) if mine else None):
                raise ambiguous("image", [roles.image, column], table.name)
