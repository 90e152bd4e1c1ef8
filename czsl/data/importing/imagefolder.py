"""Image folders of the Hugging Face kind: ``metadata.csv``, ``.jsonl`` or ``.parquet`` next to the images, for each split or as one."""

from __future__ import annotations

from pathlib import Path

from czsl.data.images import is_image_name
from czsl.data.importing.columns import split_of
from czsl.data.importing.entries import FileImage, ImportSource, Reading
from czsl.data.importing.items import ItemTable, add_table
from czsl.data.importing.tables import read_table, source_at
from czsl.data.paths import walk
from czsl.errors import DataError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def metadata_files(folder: Path) -> list[Path]:
    """The metadata files of an image folder: in it, in its folders, or one level deeper, sorted."""
    places = [folder, *sorted(p for p in folder.glob("*") if p.is_dir()), *sorted(p for p in folder.glob("*/*") if p.is_dir())]
    return [place / name for place in places for name in METADATA if (place / name).is_file()]


def read_image_folder(folder: Path, reading: Reading) -> ImportSource:
    """An image folder; ``file_name`` is relative to the metadata file, and splits are a column, or named by folders."""
    source = source_at(folder, reading)
    files = metadata_files(folder)
    if not files:
        raise DataError(f"{folder} has no metadata.csv", "nor metadata.jsonl or metadata.parquet", "give the right --layout")
    whole = ItemTable("the metadata", [], [])
    for path in files:
        base = path.parent.relative_to(folder).as_posix()
        base = "" if base == "." else base
        table = read_table(path, reading)
        shown = path.relative_to(folder).as_posix()
        if whole.items and set(table.columns) != set(whole.columns):
            raise DataError(
                f"{shown} has other columns than {files[0].relative_to(folder)}",
                ", ".join(sorted(set(table.columns) ^ set(whole.columns))[:10]),
                "give all metadata files the same columns",
            )
        whole.columns, whole.name = table.columns, str(folder / shown)
        whole.taken |= table.taken
        whole.bad += [(kind, f"{base}/{where}" if base else where, detail) for kind, where, detail in table.bad]
        for item in table.items:
            item.where = f"{base}/{item.where}" if base else item.where
            item.folder = base
            item.split = _split(base)
        whole.items += table.items
    if not any(item.split for item in whole.items):
        _splits_of_files(whole, reading)
    add_table(source, whole, reading)
    _strays(source, folder)
    return source


def _split(folder: str) -> str | None:
    return next((split for part in reversed(folder.split("/")) if (split := split_of(part))), None)


def _splits_of_files(table: ItemTable, reading: Reading) -> None:
    """The splits that the images' own folders name, where one metadata file is for all."""
    from czsl.data.importing.columns import find_roles

    roles = find_roles(table.columns, reading.columns, reading.classes is not None, table.name)
    for item in table.items:
        name = item.cells.get(roles.image or "")
        if isinstance(name, str) and "/" in name:
            item.split = _split(name.rpartition("/")[0])


def _strays(source: ImportSource, folder: Path) -> None:
    """List image files without a record."""
    named = {entry.image.path for entry in source.entries.values() if isinstance(entry.image, FileImage)}
    listed = {problem.where[0] for problem in source.problems}
    for name in walk(folder, source.links).files:
        if is_image_name(name) and source.root / name not in named and name not in listed:
            source.note("file without a record", name)
