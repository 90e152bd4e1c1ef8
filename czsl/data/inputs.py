"""Images to look at, as people name them: files, folders, patterns, archives, a list, or a column of a table.

:func:`gather` turns what was named into an :class:`ImageSource`: unique names, and how to read each one. It is plain data that travels to
workers. What a folder or an archive holds besides is counted and named, never dropped in silence.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from czsl.data.archives import images_in, is_archive, open_archive
from czsl.data.columns import read_column
from czsl.data.images import RAW_SUFFIXES, is_image_file, is_image_name, read_image_file
from czsl.data.paths import BadPathError, contained, walk
from czsl.errors import DataError, UsageError
from czsl.reading import PathLike

MAX_LIST_BYTES = 256 * 2**20
Stamp = tuple[bytes, int, int, int]  # location, size, time of change, time of change of status
_PATTERN = frozenset("*?[")
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".json", ".txt", ".xlsx")


@dataclass(frozen=True)
class ImageSource:
    """Images by name.

    Parameters
    ----------
    root : str
        A folder or an archive; a name is a path below it unless ``locations`` holds another one.
    names : list of str
        Unique, in the order of the results.
    locations : dict
        Name -> folder or archive, and the path below it; an empty folder means that the path is a file's own.
    """

    root: str
    names: list[str] = field(repr=False)
    locations: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)

    def open(self, name: str) -> bytes:
        """The bytes of an image; `BadImage` if it cannot be read."""
        root, inner = self.locations.get(name, (self.root, name))
        if root and os.path.isfile(root):  # noqa: PTH113 (Path.is_file raises on some broken names)
            return open_archive(Path(root)).read(inner)
        return read_image_file(Path(root) / inner)

    def file(self, name: str) -> Path | None:
        """The image's own file; None for a member of an archive."""
        root, inner = self.locations.get(name, (self.root, name))
        return None if root and os.path.isfile(root) else Path(root) / inner  # noqa: PTH113

    @property
    def folders(self) -> list[str]:
        """The folders and archives that were named, without files that were named themselves."""
        found = dict.fromkeys(root for root, _ in self.locations.values() if root)
        return list(dict.fromkeys([*([self.root] if len(self.locations) < len(self.names) else []), *found]))

    @property
    def roots(self) -> list[str]:
        """The folders and archives in which images lie; for files that were named themselves, the folders of these."""
        found = dict.fromkeys(root or os.path.dirname(inner) for root, inner in self.locations.values())  # noqa: PTH120
        whole = [self.root] if len(self.locations) < len(self.names) else []
        return list(dict.fromkeys([*whole, *found]))

    def stamp(self, name: str) -> list[Any]:
        """Return the path of an image, its size and time of change (of the archive, for a member); None if it is not there."""
        root, inner = self.locations.get(name, (self.root, name))
        file = root if root and os.path.isfile(root) else os.path.join(root, inner)  # noqa: PTH113, PTH118
        try:
            status = os.stat(file)  # noqa: PTH116
        except (OSError, ValueError):
            return [root, inner, None, None]
        return [root, inner, status.st_size, status.st_mtime_ns]

    def version(self, name: str) -> Stamp | None:
        """Return the path of an image with size and times of its file (of the archive, for a member): equal as long as it has not changed.

        None if it is not there. The time of the last change of status is part of it: tools that copy a file can set the other one.
        """
        root, inner = self.locations.get(name, (self.root, name))
        file = root if root and os.path.isfile(root) else os.path.join(root, inner)  # noqa: PTH113, PTH118
        try:
            status = os.stat(file)  # noqa: PTH116
        except (OSError, ValueError):
            return None
        return os.fsencode(root) + b"\0" + os.fsencode(inner), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def as_source(source: ImageSource | PathLike, names: Sequence[str] = ()) -> ImageSource:
    """A source of names below a folder; a source stays what it is."""
    return source if isinstance(source, ImageSource) else ImageSource(str(Path(source).resolve()), list(names))


@dataclass
class Gathered:
    """The given images as a source, and what of them is not read.

    ``left_out``: files that look like no image, with the reason; ``refused``: what cannot be used and may be images: links that lead
    out, names with ``..``, damaged parts of an archive.
    """

    source: ImageSource
    left_out: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class Gatherer:
    """Collects images under unique names.

    Parameters
    ----------
    all_files : bool
        Take in every file of a folder or an archive, hidden ones and those that look like no image.
    full_names : bool
        Prefix names with their folder or archive as it was given, even if only one was.
    """

    def __init__(self, all_files: bool = False, full_names: bool = False):
        self.all_files, self.full_names = all_files, full_names
        self.root, self.locations = "", dict[str, tuple[str, str]]()
        self.left_out: dict[str, str] = {}
        self.refused: dict[str, str] = {}

    def add(self, given: str, prefix: bool = True) -> None:
        """A file, a folder or an archive, under the name that was given.

        Raises
        ------
        UsageError
            A path does not exist.
        DataError
            An archive is refused.
        """
        path = Path(given)
        if os.path.isdir(given):  # noqa: PTH112 (Path.is_dir raises on some broken names)
            self._add_folder(path, f"{given.rstrip('/')}/" if prefix else "")
        elif not os.path.exists(given):  # noqa: PTH110
            if "\0" in given:
                raise UsageError(f"no file or folder {given!r}", "the name holds a zero byte", "give images or folders of images")
            why = "web addresses are not downloaded" if "://" in given else "nothing exists at this path"
            raise UsageError(f"no file or folder {given}", why, "give images, folders or archives that exist")
        elif is_archive(path):
            self._add_archive(path, f"{given}/" if prefix else "")
        else:
            self.put(given, "", os.path.realpath(given))

    def add_listed(self, name: str) -> None:
        """Path in a line of a list; a missing file counts as an unreadable image and does not end the command."""
        if "\0" not in name and os.path.exists(name):  # noqa: PTH110
            self.add(name)
        else:
            self.put(name, "", os.path.abspath(name))  # noqa: PTH100

    def put(self, name: str, root: str, inner: str) -> None:
        """One image; the same name a second time is the same image."""
        self.locations.setdefault(name, (root, inner))

    def _add_folder(self, folder: Path, prefix: str) -> None:
        root = os.path.realpath(folder)
        found = walk(folder)
        for name in found.files:
            reason = "" if self.all_files else _why_no_image(name, Path(root) / name)
            if reason:
                self.left_out[prefix + name] = reason
            else:
                self.put(prefix + name, root, name)
        for name, (_, why) in found.refused.items():
            might_be_images = is_image_name(name) or os.path.isdir(os.path.join(root, name))  # noqa: PTH112, PTH118
            (self.refused if might_be_images else self.left_out)[prefix + name] = why

    def _add_archive(self, path: Path, prefix: str) -> None:
        archive = open_archive(path)
        root = os.path.realpath(path)
        images = set(images_in(archive))
        for name in archive.members:
            reason = "" if self.all_files else _hidden(name) or ("" if name in images else _not_by_content(name))
            if reason:
                self.left_out[prefix + name] = reason
            else:
                self.put(prefix + name, root, name)
        for name, why in archive.refused.items():
            self.refused[prefix + name] = why

    def result(self) -> Gathered:
        """All that was added."""
        return Gathered(_compact(self.locations), self.left_out, self.refused)


def gather(
    given: Sequence[str | os.PathLike[str]], *, lines: Sequence[str] = (), all_files: bool = False, full_names: bool = False
) -> Gathered:
    """Images from files, folders, archives and patterns.

    Parameters
    ----------
    given : sequence of paths
        A pattern (``photos/*.jpg``, ``photos/**/*.jpg``) is expanded here unless a file is called like it. One folder or one archive
        gives names below it; of several, each name begins with the folder as it was given. A file keeps the name that was given.
    lines : sequence of str
        More of them from a list (:func:`listed`), in which nothing is a pattern.
    all_files : bool
        Also files that look like no image.
    full_names : bool
        Names begin with the folder in any case.

    Raises
    ------
    UsageError
        Something is not there, a pattern matches nothing, or the only file is a table or a list.
    DataError
        An archive is refused (:mod:`czsl.data.archives`).
    """
    paths = [path for text in given for path in _expanded(os.fspath(text))]
    if len(paths) == 1 and not lines and _is_table(paths[0]):
        fix = f"read a column of it with --images {paths[0]}, or a list of files: czsl ... - < {paths[0]}"
        raise UsageError(f"{paths[0]} is not an image", "it looks like a table or a list", fix)
    gatherer = Gatherer(all_files, full_names)
    for path in paths:
        gatherer.add(path, prefix=full_names or len(paths) > 1 or bool(lines))
    for line in lines:
        gatherer.add_listed(line)
    return gatherer.result()


def gather_table(table: PathLike, column: str | None = None, root: PathLike | None = None) -> Gathered:
    """Images that a column of a table names, under the names of the table.

    Parameters
    ----------
    table : Path
        CSV, TSV, JSON lines, JSON or Parquet, see :func:`czsl.data.columns.read_column`.
    column : str, optional
        By default the one that is called like ``image``, ``path`` or ``file_name``.
    root : Path, optional
        The folder that names are relative to; the table's own by default. Absolute paths below it are fine, others are refused.

    Raises
    ------
    DataError
        The table cannot be read, or none of its images is there.
    """
    table = Path(table)
    base = os.path.realpath(root or table.parent)
    gatherer, rows = Gatherer(), read_column(table, column)
    gatherer.refused |= rows.refused
    for name in rows.names:
        local = name.removeprefix("file://").replace("\\", "/")
        try:
            inner = os.path.relpath(local, base) if os.path.isabs(local) else local  # noqa: PTH117
            gatherer.put(name, base, os.path.relpath(contained(Path(base), inner), base))
        except BadPathError as error:
            gatherer.refused[name] = error.why
    if rows.names and not any(os.path.exists(os.path.join(*location)) for location in gatherer.locations.values()):  # noqa: PTH110, PTH118
        why = f"looked below {base}, for example for {rows.names[0]}"
        raise DataError(f"none of the images that {table} names can be used", why, "give the folder of its names: --root DIR")
    return gatherer.result()


def listed(data: bytes) -> list[str]:
    """Names of a list: one a line, or with zero bytes between them (``find -print0``); bytes that are not UTF-8 stay.

    Raises
    ------
    UsageError
        The list is empty or larger than `MAX_LIST_BYTES`.
    """
    if len(data) > MAX_LIST_BYTES:
        raise UsageError("the list of images is too long", f"limit {MAX_LIST_BYTES:,} bytes", "give the folder instead")
    data = data.removeprefix(b"\xef\xbb\xbf")
    parts = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    names = [os.fsdecode(part) for part in parts if part.strip()]
    if not names:
        raise UsageError("the list of images is empty", "nothing was read from stdin", "find photos -name '*.jpg' | czsl ... -")
    return names


def no_images(gathered: Gathered, where: str) -> DataError:
    """The error of a source without images; it names what is there instead."""
    ignored = gathered.refused | gathered.left_out
    if not ignored:
        return DataError(f"no images below {where}", "no files were found", "is it the right folder?")
    name, why = next(iter(ignored.items()))
    more = f" and {len(ignored) - 1:,} more" if len(ignored) > 1 else ""
    return DataError(
        f"no images below {where}", f"left out: {name} ({why}){more}", "is it the right folder? --all-files tries all"
    )


def _expanded(text: str) -> list[str]:
    if os.path.lexists(text) or not _PATTERN & set(text):
        return [text]
    found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 (names stay as given)
    if not found:
        raise UsageError(
            f"no file matches {text}", "the pattern finds nothing", "check the pattern, and that it is below this folder"
        )
    return found


def _is_table(given: str) -> bool:
    path = Path(given)
    return path.suffix.lower() in _TABLES and os.path.isfile(given) and not is_image_file(path)  # noqa: PTH113


def _compact(locations: dict[str, tuple[str, str]]) -> ImageSource:
    """A source that holds only the locations that its most used root does not explain."""
    roots: dict[str, int] = {}
    for name, (root, inner) in locations.items():
        if name == inner and root:
            roots[root] = roots.get(root, 0) + 1
    common = max(roots, key=roots.__getitem__, default="")
    odd = {name: location for name, location in locations.items() if location != (common, name)}
    return ImageSource(common, list(locations), odd)


def _why_no_image(name: str, path: Path) -> str:
    if reason := _hidden(name):
        return reason
    if is_image_file(path):
        return ""
    return "an archive within a folder: name it to read it" if is_archive(path) else _not_by_content(name)


def _hidden(name: str) -> str:
    return "hidden" if any(part.startswith((".", "__MACOSX")) for part in name.split("/")) else ""


def _not_by_content(name: str) -> str:
    if PurePosixPath(name).suffix.lower() in RAW_SUFFIXES:
        return "a camera's raw file"
    return "neither its suffix nor its content is that of an image"
