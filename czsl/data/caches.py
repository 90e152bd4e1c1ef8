"""The user's cache folder by kind: its size, and how to empty it. All of its content can be made again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from czsl.data.paths import cache_folder

_HALF_MADE = r"\..+\.[0-9a-f]{32}\.tmp"
# Kind -> (its folder below the cache folder, names of its entries, what it is). Nothing else is ever deleted, whichever folder is chosen.
KINDS = {
    "pixels": ("pixels", rf"\w+-[0-9a-f]{{20}}-(\d+|places).*\.npy|{_HALF_MADE}", "decoded and resized images of datasets"),
    "features": (
        "features",
        rf"\w+-[0-9a-f]{{20}}-[0-9a-f]{{20}}-.+\.(npy|parts)|{_HALF_MADE}",
        "features of datasets' images, for frozen towers",
    ),
    "photographs": (
        "photographs",
        r"[0-9a-f]{32}\.sqlite(-journal)?",
        "features of images and texts that commands were asked about",
    ),
    "answers": (
        "answers",
        rf"[0-9a-f]{{32}}\.jsonl\.gz|{_HALF_MADE}",
        "predictions, for the same question about the same images",
    ),
    "towers": ("towers", r"[0-9a-f]{32}\.json", "notes on CLIP models, so that kept features are used without loading one"),
    "toy": ("", r"toy-[0-9a-f]+", "the drawn toy dataset"),
}


@dataclass(frozen=True)
class Cache:
    """One kind of cached data: its entries on the disk."""

    kind: str
    about: str
    entries: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(_size(entry) for entry in self.entries)

    def clear(self) -> None:
        """Delete the entries; links are deleted themselves, never what they lead to.

        Raises
        ------
        OSError
            An entry cannot be deleted.
        """
        for entry in self.entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def caches() -> list[Cache]:
    """All kinds, in a fixed order, with what is there of them now."""
    return [Cache(kind, about, tuple(_entries(folder, pattern))) for kind, (folder, pattern, about) in KINDS.items()]


def _entries(folder: str, pattern: str) -> Iterator[Path]:
    place = cache_folder() / folder
    for entry in sorted(place.iterdir()) if place.is_dir() else ():
        if re.fullmatch(pattern, entry.name) and (folder or (entry / "dataset.json").is_file()):
            yield entry


def _size(entry: Path) -> int:
    files = entry.rglob("*") if entry.is_dir() and not entry.is_symlink() else (entry,)
    total = 0
    for file in files:
        with suppress(OSError):  # it was deleted meanwhile
            status = file.lstat()
            total += status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
    return total


def stamps_of(files: Sequence[Path]) -> list[list[Any]] | None:
    """Return the places of files with sizes and times, as plain data, or None if a file does not exist."""
    out: list[list[Any]] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            return None
        out.append([str(file.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return out
