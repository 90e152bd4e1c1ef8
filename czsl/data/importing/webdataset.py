"""WebDataset: tar files (shards) in which the files of one sample have the same name before the first dot. Never unpacked."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from czsl.data.images import MAX_FILE_BYTES, BadImage, is_image_name
from czsl.data.importing.entries import ImportSource, Reading
from czsl.data.importing.items import Item, ItemTable, add_table, columns_of
from czsl.data.importing.tables import named, source_at, split_by_name
from czsl.data.importing.textfiles import read_text, short
from czsl.data.paths import BadPathError, stable_name
from czsl.errors import DataError

MAX_MEMBERS = 500_000
MAX_LABEL_BYTES = 1 << 20
MAX_SHARDS = 100_000
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


@dataclass(frozen=True)
class MemberImage:
    """An image in a tar file: where its bytes begin, and how many there are."""

    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        """The bytes of the image; `BadImage` if the archive is not what it was."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.size)
        except OSError as error:
            raise BadImage("unreadable file", error.strerror or str(error)) from None
        if len(data) < self.size:
            raise BadImage("damaged image", "the archive ends within it")
        return data


def shards(path: Path) -> list[Path]:
    """The tar files of a folder and its folders, sorted; or the file itself."""
    if path.is_file():
        return [path]
    found = [p for place in ("*.tar", "*/*.tar", "*/*/*.tar") for p in path.glob(place)]
    return sorted(p for p in found if p.is_file() and not p.name.startswith("."))


def read_webdataset(path: Path, reading: Reading) -> ImportSource:
    """Shards of one dataset.

    A sample has an image (``0001.jpg``) and labels: the fields of ``0001.json``, or the text of other small files, whose columns are
    their endings (``0001.attr``, ``0001.obj.txt``, ``0001.cls``). Numbers in ``.cls`` are named by ``classnames.txt`` next to the shards.
    The split is a field, or the name of the shard.
    """
    folder = path if path.is_dir() else path.parent
    source = source_at(folder, reading)
    files = shards(path)
    if not files or len(files) > MAX_SHARDS:
        raise DataError(f"{path} has {len(files):,} tar files", f"there must be 1 to {MAX_SHARDS:,}", "is this the right folder?")
    table = ItemTable(str(path), [], [])
    names = _class_names(folder)
    for file in files:
        split, stem = split_by_name(file, folder), file.relative_to(folder).with_suffix("").as_posix()
        samples: dict[str, Item] = {}
        for member in members(file, table):
            _add(member, file, f"{stem}/", split, samples, table, names)
        for key, item in samples.items():
            if item.image is None:
                table.bad.append(("missing image", f"{stem}/{key}", f"{file.name} has labels of it, but no image"))
            else:
                table.items.append(item)
    table.columns = columns_of(table.items)
    add_table(source, table, reading)
    return source


@dataclass(frozen=True)
class TarMember:
    """A regular file in an archive, with the text of a small one."""

    name: str
    start: int
    size: int
    text: str | None


def members(path: Path, table: ItemTable) -> list[TarMember]:
    """The regular files of a tar; links, absolute names and ``..`` are listed in ``table.bad``.

    Raises
    ------
    DataError
        The file is not a tar, is compressed, damaged between its members, or has more than `MAX_MEMBERS`: then it is unknown what is
        missing, so nothing of it is used.
    """
    check_plain_tar(path)
    found: list[TarMember] = []
    number = 0
    try:
        end = path.stat().st_size
        with tarfile.open(path, "r:") as tar, path.open("rb") as raw:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                number += 1
                if number > MAX_MEMBERS:
                    raise DataError(
                        f"{path} has more than {MAX_MEMBERS:,} members", "the limit of one archive", "make smaller shards"
                    )
                if info.isdir():
                    continue
                if refused := _why_not(info, end):
                    table.bad.append((refused[0], f"{path.name}: {short(info.name)}", refused[1]))
                    continue
                text = None
                if not is_image_name(info.name) and info.size <= MAX_LABEL_BYTES:
                    raw.seek(info.offset_data)
                    text = raw.read(info.size).decode("utf-8-sig", "replace")
                found.append(TarMember(info.name, info.offset_data, info.size, text))
            _check_end(raw, tar.offset)
    except DataError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError, MemoryError, LookupError) as error:
        why = f"after {number} members: {' '.join(str(error).split()) or type(error).__name__}"
        raise DataError(f"cannot read {path}", why, "download it again") from None
    if not number:
        raise DataError(f"cannot read {path}", "it is an empty archive", "download it again")
    return found


def _check_end(raw: BinaryIO, offset: int) -> None:
    """Raise ReadError if anything but zeros follows: the reader stops in silence at a damaged header."""
    raw.seek(offset)
    while block := raw.read(1 << 20):
        if any(block):
            raise tarfile.ReadError(f"a damaged header at byte {offset:,}, or archives that were joined")


def check_plain_tar(path: Path) -> None:
    """DataError for a compressed archive: an image in it could only be reached by unpacking all before it."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise DataError(f"cannot read {path}", str(error), "is the path right?") from None
    for sign, name in COMPRESSED.items():
        if head.startswith(sign):
            raise DataError(
                f"{path} is compressed with {name}", "shards are read in place, as plain tar files", "decompress it first"
            )


def _why_not(info: tarfile.TarInfo, end: int) -> tuple[str, str] | None:
    if info.issym() or info.islnk():
        return "link in an archive", f"it leads to {short(info.linkname)}"
    if not info.isreg() or info.issparse():
        return "unusable file", "not a regular file"
    try:
        stable_name(info.name)
    except BadPathError as error:
        return error.kind, error.why
    if info.size < 0 or info.offset_data + info.size > end:
        return "damaged image", "the archive ends within it"
    if info.size > MAX_FILE_BYTES:
        return "unreadable file", f"{info.size:,} bytes, limit {MAX_FILE_BYTES:,}"
    return None


def _add(
    member: TarMember,
    path: Path,
    prefix: str,
    split: str | None,
    samples: dict[str, Item],
    table: ItemTable,
    names: list[str] | None,
) -> None:
    """Put a member into its sample."""
    folder, _, file = stable_name(member.name).rpartition("/")
    stem, _, ending = file.partition(".")
    if not stem or not ending:  # a hidden file, a README
        return
    key = f"{folder}/{stem}" if folder else stem
    where = f"{path.name}: {short(key)}"
    item = samples.setdefault(key, Item(where, {}, split=split))
    ending = ending.lower()
    if is_image_name(file):
        if item.image is not None:
            table.bad.append(("repeated member", f"{path.name}: {short(member.name)}", "the sample has an image already"))
            return
        item.image, item.id = MemberImage(path.resolve(), member.start, member.size), f"{prefix}{stable_name(member.name)}"
    elif ending == "json":
        _json_cells(item, member, path, table)
    elif member.text is not None and ending:
        column = ending.removesuffix(".txt") if ending != "txt" else ending
        if column in item.cells:
            table.bad.append(("repeated member", f"{path.name}: {short(member.name)}", f"the sample has a {column} already"))
            return
        text = member.text.strip()
        item.cells[column] = named(int(text), names) if column == "cls" and text.isdecimal() and len(text) < 9 else text


def _json_cells(item: Item, member: TarMember, path: Path, table: ItemTable) -> None:
    try:
        if member.text is None:
            raise ValueError(f"{member.size:,} bytes, limit {MAX_LABEL_BYTES:,}")
        cells = json.loads(member.text)
        if not isinstance(cells, dict):
            raise TypeError(f"a {type(cells).__name__}, not an object with names")
    except (ValueError, TypeError, RecursionError) as error:
        why = " ".join(str(error).split())[:120]
        table.bad.append(("unreadable row", f"{path.name}: {short(member.name)}", why))
        return
    item.cells |= {key: value for key, value in cells.items() if key not in item.cells}


def _class_names(folder: Path) -> list[str] | None:
    path = folder / "classnames.txt"
    if not path.is_file():
        return None
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
