"""Image features of single photographs, kept between commands: a second question about a folder encodes only what is new.

Each file of the cache folder belongs to one way of making features (tower, precision, preprocessing). It finds a photograph by its place,
size and times without reading it, and otherwise by the SHA-256 of its content: a renamed or copied file is encoded once.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from czsl.data.inputs import Stamp
from czsl.data.paths import cache_folder

FORMAT = 1
WAIT_S = 30.0  # for another process that writes
FRESH_NS = 2 * 10**9  # a file changed this recently may change again without a new time
DTYPES = ("float32", "float64")
MAX_VALUES = 2**28  # of one image
TABLES = """
create table if not exists feature(content blob primary key, form text not null, data blob not null);
create table if not exists file(place blob primary key, size integer, changed integer, status integer, content blob not null);
"""
BY_STAMP = "select form, data from file join feature using (content) where place = ? and size = ? and changed = ? and status = ?"
BY_CONTENT = "select form, data from feature where content = ?"
OLDEST = "delete from feature where rowid in (select rowid from feature order by rowid limit ?)"
log = logging.getLogger("czsl")
T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """Features of one image to be kept: its content's key, its stamp before it was read (None: unknown), and the array."""

    content: bytes
    stamp: Stamp | None
    features: np.ndarray


class FeatureStore:
    """Features by image, in one SQLite file; several threads and processes may use it at once.

    A store that cannot be read or written (damaged, a full disk, a folder without permission) logs one warning and keeps nothing from then
    on: no answer depends on it.

    Parameters
    ----------
    path : Path
        See :func:`store_file`.
    max_bytes : int
        Largest size of all stores in the folder together; the oldest features make room for new ones. 0: nothing is kept.
    """

    def __init__(self, path: Path, max_bytes: int):
        self.path, self.max_bytes = path, max_bytes
        self._lock = threading.Lock()
        self._base: sqlite3.Connection | None = None
        if max_bytes:
            self._try(self._open, None)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, or no permission: not damaged
                raise
            log.warning("the cache %s is damaged (%s) and begins empty", self.path, error)
            self.path.unlink(missing_ok=True)
            self._connect()
        os.utime(self.path)  # the least recently used store goes first
        _drop_others(self.path, self.max_bytes)

    def _connect(self) -> None:
        base = sqlite3.connect(self.path, timeout=WAIT_S, check_same_thread=False)
        try:
            if base.execute("pragma user_version").fetchone()[0] not in (0, FORMAT):
                raise sqlite3.DatabaseError("another format")
            base.executescript(f"pragma synchronous = normal; {TABLES} pragma user_version = {FORMAT};")
        except BaseException:
            base.close()
            raise
        self._base = base

    def find(self, stamps: Sequence[Stamp | None]) -> list[np.ndarray | None]:
        """Features of images by their stamps; None for an image that is new or has changed."""

        def look(base: sqlite3.Connection) -> list[np.ndarray | None]:
            return [None if stamp is None else _array(base.execute(BY_STAMP, stamp).fetchone()) for stamp in stamps]

        return self._ask(look, [None] * len(stamps))

    def find_content(self, content: bytes, stamp: Stamp | None) -> np.ndarray | None:
        """Features of an image by its content's key, which is then known under this stamp as well."""

        def look(base: sqlite3.Connection) -> np.ndarray | None:
            found = _array(base.execute(BY_CONTENT, (content,)).fetchone())
            if found is not None:
                with base:
                    _note(base, content, stamp)
            return found

        return self._ask(look, None)

    def add(self, items: Iterable[Kept]) -> None:
        """Store features; the oldest are deleted if the cache is full."""
        arrays = [(item, np.ascontiguousarray(item.features)) for item in items]

        def write(base: sqlite3.Connection) -> None:
            with base:
                for item, array in arrays:
                    if array.dtype.name in DTYPES:
                        form = " ".join([array.dtype.name, *map(str, array.shape)])
                        base.execute("insert or replace into feature values (?, ?, ?)", (item.content, form, array.tobytes()))
                        _note(base, item.content, item.stamp)
                _make_room(base, self.max_bytes)

        self._ask(write, None)

    def _ask(self, question: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        with self._lock:
            if self._base is None:
                return otherwise
            base = self._base
            return self._try(lambda: question(base), otherwise)

    def _try(self, work: Callable[[], T], otherwise: T) -> T:
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            log.warning("image features are not kept: %s: %s", self.path, error)
            self._close()
            return otherwise

    def _close(self) -> None:
        base, self._base = self._base, None
        if base is not None:
            base.close()

    def close(self) -> None:
        """Close the file; nothing is found or kept after it."""
        with self._lock:
            self._close()


def store_file(*facts: str) -> Path:
    """The file of the features that follow from these facts: tower, precision, preprocessing."""
    name = hashlib.blake2b("\0".join(facts).encode(), digest_size=16).hexdigest()
    return cache_folder() / "photographs" / f"{name}.sqlite"


def _note(base: sqlite3.Connection, content: bytes, stamp: Stamp | None) -> None:
    """Remember where a content was found, unless the file is so new that it may change within the same time."""
    if stamp is not None and time.time_ns() - max(stamp[2:]) > FRESH_NS:
        base.execute("insert or replace into file values (?, ?, ?, ?, ?)", (*stamp, content))


def _make_room(base: sqlite3.Connection, max_bytes: int) -> None:
    """Drop the oldest features, a twentieth at a time, until the used pages fit."""
    page = base.execute("pragma page_size").fetchone()[0]

    def used() -> int:
        pages, free = (base.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        return (pages - free) * page

    while used() > max_bytes:
        number = base.execute("select count(*) from feature").fetchone()[0]
        if not number:
            return
        base.execute(OLDEST, (-(-number // 20),))
        base.execute("delete from file where content not in (select content from feature)")


def _drop_others(path: Path, max_bytes: int) -> None:
    """Delete the least recently used other stores of the folder while all together are too large."""
    found = []
    for file in path.parent.glob("*.sqlite"):
        with suppress(OSError):
            status = file.stat()
            found.append((file == path, -status.st_mtime_ns, file, status.st_size))
    total = sum(size for *_, size in found)
    for own, _, file, size in sorted(found, key=lambda f: f[:2], reverse=True):
        if total > max_bytes and not own:
            file.unlink(missing_ok=True)
            total -= size


def _array(row: tuple[str, bytes] | None) -> np.ndarray | None:
    """An array of a row; None if the row is missing or its parts do not fit each other."""
    if row is None or not isinstance(row[0], str) or not isinstance(row[1], bytes):
        return None
    dtype, *sizes = row[0].split() or [""]
    if dtype not in DTYPES or not all(s.isdecimal() and len(s) < 10 for s in sizes):
        return None
    shape = tuple(map(int, sizes))
    values = math.prod(shape)
    if values > MAX_VALUES or values * np.dtype(dtype).itemsize != len(row[1]):
        return None
    array = np.frombuffer(row[1], dtype).reshape(shape).copy()
    return array if np.isfinite(array).all() else None
