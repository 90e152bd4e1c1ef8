"""Parquet files that hold the images themselves, as the Hugging Face Hub has them: a struct of bytes and path, or plain bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from czsl.data.images import MAX_FILE_BYTES, BadImage, is_image_name, read_image_file
from czsl.data.importing.columns import find_roles, may_be
from czsl.data.importing.entries import ImportSource, Reading
from czsl.data.importing.items import Item, ItemTable, add_table, check_width, source_file
from czsl.data.importing.tables import named, open_parquet, parquet_names, source_at, split_by_name
from czsl.errors import DataError
from czsl.reading import parquet_errors

MAX_FILES = 10_000
MAX_GROUP_BYTES = 2 * 2**30
MAX_DEPTH = 3
KEPT_GROUPS = 2


class Groups:
    """The images of the row groups that were read last; threads share it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int, str], list[bytes | None]] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, path: Path, group: int, row: int, column: str) -> bytes | None:
        """The bytes in one row, or None; `BadImage` if the file is damaged."""
        key = (path, group, column)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = _read_group(*key)
                while len(self._kept) > KEPT_GROUPS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key][row]


@dataclass(frozen=True)
class ParquetImage:
    """The bytes in one row of a Parquet file, or else the file that the row names."""

    path: Path
    group: int
    row: int
    column: str
    file: Path | None
    groups: Groups = field(compare=False, repr=False)

    def read(self) -> bytes:
        """The bytes of the image; `BadImage` if they are missing or the file is damaged."""
        data = self.groups.image(self.path, self.group, self.row, self.column)
        if data is None:
            if self.file is not None:
                return read_image_file(self.file)
            raise BadImage("missing image", "the row has no bytes, and its path is that of no file")
        if len(data) > MAX_FILE_BYTES:
            raise BadImage("unreadable file", f"{len(data):,} bytes, limit {MAX_FILE_BYTES:,}")
        return data


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, at most `MAX_DEPTH` folders deep, sorted."""
    found = [path for depth in range(MAX_DEPTH + 1) for path in folder.glob("/".join(["*"] * depth + ["*.parquet"]))]
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def image_columns(schema) -> list[str]:
    """The columns that hold images: structs with bytes or a path, and bytes."""
    import pyarrow as pa

    def holds(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return {"bytes", "path"} & {kind.field(i).name for i in range(kind.num_fields)} != set()
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    return [field.name for field in schema if holds(field.type)]


def read_parquet_images(path: Path, reading: Reading) -> ImportSource:
    """One Parquet file or a folder of them; the split is a column, or the name of the file (``train-00000-of-00004.parquet``).

    An image that has no bytes but a path is the file of this name. The id of an image names its file and row, so that images are
    read in their order.
    """
    folder = path if path.is_dir() else path.parent
    files = parquet_files(path) if path.is_dir() else [path]
    if not files or len(files) > MAX_FILES:
        raise DataError(
            f"{path} has {len(files):,} Parquet files", f"there must be 1 to {MAX_FILES:,}", "is this the right folder?"
        )
    source = source_at(folder, reading)
    whole = ItemTable(str(files[0] if len(files) == 1 else path), [], [])
    groups = Groups()
    for file in files:
        _read_file(file, folder, source, whole, reading, groups)
    add_table(source, whole, reading)
    return source


def _read_file(path: Path, folder: Path, source: ImportSource, whole: ItemTable, reading: Reading, groups: Groups) -> None:
    with open_parquet(path) as file:
        schema = file.schema_arrow
        check_width(schema.names, str(path))
        column = _image_column(image_columns(schema), reading, path)
        if whole.columns and set(schema.names) != set(whole.columns):
            other = ", ".join(sorted(set(schema.names) ^ set(whole.columns))[:10])
            raise DataError(f"{path} has other columns than the files before it", other, "import files of one kind")
        whole.columns = list(schema.names)
        chosen = {role: name for role, name in reading.columns.items() if role != "image"}
        roles = find_roles([n for n in schema.names if n != column], chosen, reading.classes is not None, str(path), True)
        names, split = parquet_names(schema), split_by_name(path, folder)
        stem = path.relative_to(folder).with_suffix("").as_posix()
        labels = [name for name in roles.shown().values() if name != roles.image]
        number = 0
        for group in range(file.num_row_groups):
            description = file.metadata.row_group(group)
            if description.total_byte_size > MAX_GROUP_BYTES:
                size = f"row group {group} has {description.total_byte_size:,} bytes"
                raise DataError(f"cannot read {path}", f"{size}, limit {MAX_GROUP_BYTES:,}", "write it with smaller row groups")
            try:
                table = file.read_row_group(group, columns=[*labels, *_path_of(schema, column)], use_threads=False)
                rows = table.to_pylist() if table.num_columns else [{}] * description.num_rows
            except parquet_errors() as error:
                why = (str(error).splitlines() or [""])[0]
                raise DataError(f"cannot read {path}", why, "download it again") from None
            for row, record in enumerate(rows):
                number += 1
                cells: dict[str, Any] = {label: named(record.get(label), names.get(label)) for label in labels}
                inner = record.get(column)
                inner = inner.get("path") if isinstance(inner, dict) else None
                image = ParquetImage(path.resolve(), group, row, column, _file_of(source, inner), groups)
                name = f"{stem}/{number:07d}{_tail(inner)}"
                whole.items.append(Item(f"{path.name}, row {number}", cells, image, name, split))


def _image_column(found: list[str], reading: Reading, path: Path) -> str:
    if (chosen := reading.columns.get("image")) in found:
        return str(chosen)
    usual = [name for name in may_be("image", found) if name.casefold() == "image"] or may_be("image", found) or found
    if len(usual) != 1 or (chosen and chosen not in found):
        why = f"columns with images: {', '.join(found) or 'none'}"
        raise DataError(f"{path}: cannot tell which column holds the images", why, "name it with --columns image=NAME")
    return usual[0]


def _path_of(schema, column: str) -> list[str]:
    """The part of the image's column that holds its path, to read it without the bytes."""
    import pyarrow as pa

    kind = schema.field(column).type
    has_path = pa.types.is_struct(kind) and any(kind.field(i).name == "path" for i in range(kind.num_fields))
    return [f"{column}.path"] if has_path else []


def _tail(path: Any) -> str:
    """The end of an id: the file's own name, if there is one that is usable, or nothing."""
    name = PurePosixPath(path.replace("\\", "/")).name if isinstance(path, str) else ""
    name = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name)[:100]
    return f"-{name}" if is_image_name(name) else f"-{name}.jpg" if name else ".jpg"


def _file_of(source: ImportSource, path: Any) -> Path | None:
    """The file below the root that a row names, if there is one."""
    if not isinstance(path, str) or not path:
        return None
    quiet = ImportSource(source.root, links=source.links, other_roots=source.other_roots)
    found = source_file(quiet, path, Item("", {}))
    return found[1] if found else None


def _read_group(path: Path, group: int, column: str) -> list[bytes | None]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            values = file.read_row_group(group, columns=[column], use_threads=False)[column].to_pylist()
    except parquet_errors() as error:
        raise BadImage("unreadable file", (str(error).splitlines() or [""])[0]) from None
    return [value.get("bytes") if isinstance(value, dict) else value for value in values]
