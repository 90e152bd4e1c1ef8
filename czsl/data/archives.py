"""Images in a zip or tar, read in place: nothing is ever unpacked to the disk.

An archive from outside may be a bomb, name files outside of itself, or hold links and devices. Its list of members is read under limits
first; a member is then read on its own, up to the size of one image file. Archives within an archive are not opened.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from czsl.data.images import MAX_FILE_BYTES, BadImage
from czsl.data.paths import BadPathError, stable_name
from czsl.errors import DataError
from czsl.reading import PathLike

MAX_MEMBERS = 250_000
MAX_DIRECTORY_BYTES = 64 * 2**20  # of a zip's list of members
MAX_HEADER_BYTES = 2**20  # of one tar header: long names are shorter
FREE_BYTES = 2**30  # an archive may always unpack to this much ...
MAX_RATIO = 100  # ... and above it to this many times its size; photographs shrink little
HEAD_BYTES = 512
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_COMPRESSED: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),  # type: ignore[dict-item, return-value]
    b"BZh": lambda file: bz2.BZ2File(file),
    b"\xfd7zXZ\0": lambda file: lzma.LZMAFile(file),  # noqa: SIM115
}
_BROKEN: tuple[type[Exception], ...] = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)
_BROKEN += (EOFError, OSError, ValueError, OverflowError, NotImplementedError, RuntimeError, KeyError)  # of hostile numbers, too


class ArchiveMember(NamedTuple):
    """A regular file of an archive: where its content begins (tar), and its size in bytes."""

    offset: int
    size: int


class Archive:
    """A zip or tar file, opened by :func:`open_archive`.

    Attributes
    ----------
    path : Path
    members : dict of ArchiveMember
        Regular files by name (with forward slashes), in the order of the archive.
    refused : dict of str
        Names that cannot be used, and why: links, ``..``, absolute paths, names that occur twice, encrypted members.
    """

    def __init__(self, path: Path):
        self.path = path
        self.members: dict[str, ArchiveMember] = {}
        self.refused: dict[str, str] = {}
        self._lock = threading.Lock()  # one stream is read at a time
        self._zip: zipfile.ZipFile | None = None
        self._file: IO[bytes] | None = None
        self._stream: IO[bytes] | None = None  # of a tar: the file, or what it unpacks to
        self._infos: dict[str, zipfile.ZipInfo] = {}
        try:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
            if head.startswith(_ZIP_MAGIC):
                self._open_zip()
            else:
                self._open_tar(head)
        except BaseException as error:
            self.close()
            if isinstance(error, _BROKEN):
                raise _refused(path, f"it is damaged: {_one_line(error)}", "copy or download it again") from None
            raise

    def close(self) -> None:
        """Close the file; nothing can be read after it."""
        for part in (self._zip, self._stream, self._file):
            if part is not None:
                part.close()

    def __del__(self):
        self.close()

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """The content of a member of at most ``limit`` bytes; `BadImage` if it is larger, damaged or none."""
        member = self.members.get(name)
        if member is None:
            raise BadImage("unreadable file", f"{self.path.name} has no such member")
        if member.size > limit:
            raise BadImage("unreadable file", f"{member.size:,} bytes, limit {limit:,}")
        try:
            with self._lock:
                data = self._read(name, member)
        except _BROKEN as error:
            raise BadImage("unreadable file", f"damaged in {self.path.name}: {_one_line(error)}") from None
        if len(data) != member.size:
            raise BadImage("unreadable file", f"{self.path.name} ends within it")
        return data

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a member; empty if it cannot be read."""
        member = self.members[name]
        try:
            with self._lock:
                return self._read(name, ArchiveMember(member.offset, min(count, member.size)))
        except _BROKEN:
            return b""

    def _read(self, name: str, part: ArchiveMember) -> bytes:
        if self._zip is not None:
            with self._zip.open(self._infos[name]) as file:
                return file.read(part.size)
        assert self._stream is not None
        self._stream.seek(part.offset)
        return self._stream.read(part.size)

    def _add(self, name: str, member: ArchiveMember, why_not: str = "") -> None:
        """Take a file in, or note why not."""
        if len(self.members) + len(self.refused) >= MAX_MEMBERS:
            raise _too_many(self.path)
        try:
            stable = stable_name(name.replace("\\", "/") if self._zip is not None else name)
        except BadPathError as error:
            self.refused[name] = error.why
            return
        if stable in self.members:
            why_not, stable = "the name occurs twice; the first one is read", f"{stable}#2"
        if why_not:
            self.refused[stable] = why_not
        else:
            self.members[stable] = member

    # -- zip -------------------------------------------------------------------------------------------------------
    def _open_zip(self) -> None:
        _check_directory(self.path)
        self._zip = zipfile.ZipFile(self.path)
        total = 0
        for info in self._zip.infolist():
            if info.filename.endswith("/"):
                continue
            total += info.file_size
            mode = info.external_attr >> 16
            why_not = ""
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                why_not = "a link" if stat.S_ISLNK(mode) else "not a regular file"
            elif info.flag_bits & 1:
                why_not = "it is encrypted"
            before = len(self.members)
            self._add(info.filename, ArchiveMember(0, info.file_size), why_not)
            if len(self.members) > before:
                self._infos[next(reversed(self.members))] = info
        _check_total(self.path, total)

    # -- tar -------------------------------------------------------------------------------------------------------
    def _open_tar(self, head: bytes) -> None:
        opener = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)
        self._file = self.path.open("rb")
        self._stream = self._file if opener is None else opener(self._file)
        limited = _Limited(self._stream, self.path, opener is not None)
        with tarfile.open(fileobj=limited, mode="r:") as tar:
            try:
                for _ in range(MAX_MEMBERS + 1):
                    info = tar.next()
                    tar.members = []  # type: ignore[attr-defined]  # else every header is kept a second time
                    if info is None:
                        break
                    if not info.isdir():
                        self._add(info.name, ArchiveMember(info.offset_data, info.size), _why_not_in_tar(info))
                else:
                    raise _too_many(self.path)
                # A damaged header ends a listing without a word; only zeros or the file's end do so rightly.
                limited.seek(tar.offset)
                damage = "damaged header" if limited.read(tarfile.BLOCKSIZE).strip(b"\0") else ""
            except _BROKEN as error:
                damage = _one_line(error)
            if damage:
                self.refused[f"from byte {tar.offset:,} on"] = damage


class _Limited(io.RawIOBase):
    """A seekable stream of a tar's headers: no single read is large, and a compressed stream does not grow without end."""

    def __init__(self, stream: IO[bytes], path: Path, compressed: bool):
        self._stream, self._path = stream, path
        self._max_bytes = max(FREE_BYTES, MAX_RATIO * path.stat().st_size) if compressed else None

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise _refused(self._path, "a header in it is larger than any name", "is it a tar of images?")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if self._max_bytes is not None and whence == 0 and offset > self._max_bytes:
            raise _bomb(self._path)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _why_not_in_tar(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {info.linkname}"
    if not info.isreg() or info.issparse():
        return "not a regular file"
    return "its size is negative" if info.size < 0 else ""


def is_archive(path: PathLike) -> bool:
    """True if a file's content is a zip, or a tar that may be compressed; its suffix decides only for the oldest form of tar."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    if head.startswith((*_ZIP_MAGIC, *_COMPRESSED)):
        return True
    return head[257:262] == b"ustar" or (path.suffix.lower() == ".tar" and len(head) > 0)


def open_archive(path: PathLike) -> Archive:
    """The archive, listed; one that a process has listed before is reused.

    Raises
    ------
    DataError
        Not an archive, damaged, a bomb, or one of too many members.
    """
    path = Path(path)
    status = path.stat()
    return _kept(path, status.st_size, status.st_mtime_ns)


@lru_cache(4)
def _kept(path: Path, size: int, changed: int) -> Archive:
    return Archive(path)


def images_in(archive: Archive) -> Iterator[str]:
    """Names of members that are images by suffix or content, in the archive's order."""
    from czsl.data.images import HEAD_BYTES as ENOUGH
    from czsl.data.images import RAW_SUFFIXES, image_format, is_image_name

    for name in archive.members:
        raw = PurePosixPath(name).suffix.lower() in RAW_SUFFIXES
        if is_image_name(name) or (not raw and image_format(archive.head(name, ENOUGH)) is not None):
            yield name


def _check_directory(path: Path) -> None:
    """Count a zip's members before its list is parsed: the list's bytes and the signatures in it are bounded."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"PK\x05\x06", max(0, size - 22 - 65535))
        if end < 0 or end + 22 > size:
            raise zipfile.BadZipFile("it has no list of its members: is it whole?")
        length = struct.unpack_from("<I", content, end + 12)[0]
        locator = end - 20
        if locator >= 56 and content[locator : locator + 4] == b"PK\x06\x07":
            end = locator - 56  # of the large form, as zipfile finds it
            length = struct.unpack_from("<Q", content, end + 40)[0]
        if length > MAX_DIRECTORY_BYTES:
            raise _too_many(path)
        listing = content[max(0, end - length) : end]
        if listing.count(b"PK\x01\x02") > MAX_MEMBERS:
            raise _too_many(path)


def _check_total(path: Path, total: int) -> None:
    if total > max(FREE_BYTES, MAX_RATIO * path.stat().st_size):
        raise _bomb(path)


def _bomb(path: Path) -> DataError:
    why = f"it would unpack to more than {MAX_RATIO} times its size, as no photographs do"
    return _refused(path, why, "unpack it yourself if you trust it, and give the folder")


def _too_many(path: Path) -> DataError:
    why = f"it has more than {MAX_MEMBERS:,} members"
    return _refused(path, why, "unpack it and give the folder, or split it")


def _refused(path: Path, why: str, fix: str) -> DataError:
    return DataError(f"{path} is not read", why, fix)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
