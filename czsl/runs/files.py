"""Files and folders that are either whole or absent, and locks on folders."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from czsl.errors import SetupError, UsageError
from czsl.reading import PathLike

FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
READERS = ".readers"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, the largest file allowed


@contextmanager
def whole_file(path: PathLike, sync: bool = False) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to, and rename it to ``path`` if the block ends without an error.

    Several processes may write the same file at once: the last one wins. With ``sync`` the content is on the disk before the rename, so the
    file also survives a crash of the machine.
    """
    path = Path(path)
    temporary = _temporary_path(path)
    try:
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: PathLike, replace: bool = False, sync: bool = False) -> Iterator[Path]:
    """Yield a new folder next to ``path`` to write to, and rename it to ``path`` if the block ends without an error.

    ``path`` is absent or an empty folder; with ``replace`` it may be a folder with content, which is deleted after the rename. ``sync`` as
    for :func:`whole_file`, for each file and for both renames.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _temporary_path(path), None
    temporary.mkdir()
    try:
        yield temporary
        if sync:
            for file in temporary.rglob("*"):
                _sync(file)
            _sync(temporary)
        if replace and path.exists():
            old = path.rename(_temporary_path(path))
        elif path.is_dir():
            path.rmdir()
        try:
            temporary.rename(path)
        except OSError:
            if old is not None:
                old.rename(path)
            raise
        if sync:
            _sync(path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomically(path: PathLike, content: bytes, sync: bool = True) -> None:
    """Write bytes to a file with :func:`whole_file`."""
    with whole_file(path, sync) as temporary:
        temporary.write_bytes(content)


def write_array(path: PathLike, array: np.ndarray) -> None:
    """An array as ``.npy``, written atomically."""
    path = Path(path)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def write_json(path: PathLike, content: Any) -> None:
    """JSON with a newline at its end, written atomically."""
    path = Path(path)
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _temporary_path(path: Path) -> Path:
    """Return a hidden name of one's own next to a path: threads, processes and hosts may write the same file at once."""
    stem = os.fsdecode(os.fsencode(path.name)[:200])  # a file name has at most 255 bytes
    return path.with_name(f".{stem}.{uuid.uuid4().hex}.tmp")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def held(folder: PathLike, work: str) -> Iterator[None]:
    """Keep other processes, also those of other machines on a shared file system, from the same work on a folder.

    The lock goes with the process, however it ends. A file system without locks is used without one.

    Raises
    ------
    UsageError
        Names the process that is at work.
    """
    folder = Path(folder)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UsageError(
                f"{work} is under way in {folder}",
                f"by {file.read().strip() or 'another process'}",
                "wait for it, or stop it first",
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_held(folder: PathLike) -> bool:
    """Return whether a process is at work on a folder, as far as its file system has locks."""
    try:
        with (Path(folder) / ".lock").open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock was ever taken, or the file system has none
        return False
    return False


@contextmanager
def read_by(folder: PathLike) -> Iterator[None]:
    """Keep :func:`changed` away while a command reads a folder; several may read at once. A folder without locks is read without one.

    Raises
    ------
    UsageError
        The folder is being changed.
    """
    try:
        file = (Path(folder) / READERS).open("a", encoding="utf-8")
    except OSError:  # a read-only folder, which no process changes
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder} is being changed", "czsl add is at work on it", "wait until it has ended") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield


@contextmanager
def changed(folder: PathLike, work: str) -> Iterator[None]:
    """Hold a folder (:func:`held`) to change what others read: not while a command reads it (:func:`read_by`).

    Raises
    ------
    UsageError
        Another process works on the folder or reads it.
    """
    with held(folder, "other work"), (Path(folder) / READERS).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            why = f"it reads what {work} changes"
            raise UsageError(f"another czsl command uses {folder}", why, "wait until it has ended, or stop it first") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield


def sha256_file(path: PathLike) -> str:
    """Hex SHA-256 of a file."""
    path = Path(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def no_space(error: OSError, folder: PathLike) -> SetupError:
    """Return the error of a full disk for the run in a folder."""
    folder = Path(folder)
    free = shutil.disk_usage(folder).free / 2**20
    return SetupError(
        f"no space left to write in {folder}",
        f"{error.strerror}{f': {error.filename}' if error.filename else ''} ({free:,.0f} MiB free); the checkpoints before are kept",
        f"make space, then continue with: czsl train --resume {folder}",
    )
