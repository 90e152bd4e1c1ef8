"""Names of files: kept inside their root, walked in a fixed order; and the user's cache folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from czsl.errors import DataError, UsageError
from czsl.reading import PathLike


def cache_folder() -> Path:
    """Return the folder for data that can be made again: ``$CZSL_CACHE``, else ``$XDG_CACHE_HOME/czsl``, else ``~/.cache/czsl``."""
    if chosen := os.environ.get("CZSL_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "czsl"


def photographs_limit() -> int:
    """Bytes of kept features of photographs at most: ``$CZSL_PHOTOGRAPHS_GIB`` (a number of GiB, 0 keeps none), else 4 GiB.

    Raises
    ------
    UsageError
        The variable holds no such number.
    """
    given = os.environ.get("CZSL_PHOTOGRAPHS_GIB", "4")
    try:
        gib = float(given)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < 2**20:
        raise UsageError(
            f"CZSL_PHOTOGRAPHS_GIB is {given!r}",
            "it is the size of a cache in GiB",
            "set it to a number, or to 0 to keep nothing",
        )
    return int(gib * 2**30)


class BadPathError(DataError):
    """A name that cannot be used; ``kind``: ``path leaves the root``, ``unusable name`` or ``unusable file``."""

    def __init__(self, kind: str, name: str, why: str):
        super().__init__(f"{kind}: {name!r}", why, "name files below the data's own folder")
        self.kind = kind


def stable_name(name: str) -> str:
    """The identity of an image: its path below the root with forward slashes (``./a//b.jpg`` -> ``a/b.jpg``).

    Raises
    ------
    BadPathError
        The name is empty, not UTF-8, absolute, or climbs with ``..``.
    """
    if not name or "\0" in name:
        raise BadPathError("unusable name", name, "it is empty or holds a zero byte")
    if name.startswith("/"):
        raise BadPathError("path leaves the root", name, "absolute path")
    if ".." in PurePosixPath(name).parts:
        raise BadPathError("path leaves the root", name, "'..' in the path")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadPathError("unusable name", name, "it is not UTF-8") from None
    return PurePosixPath(name).as_posix()


# How far symbolic links are followed: not out of the root; also out of it by a link that lies directly in it; everywhere.
LINKS = ("inside", "top", "all")


def contained(root: PathLike, name: str, links: str = "inside") -> Path:
    """The file ``name`` below ``root`` (an absolute path without links), whether or not it exists.

    Parameters
    ----------
    root : path
    name : str
    links : {"inside", "top", "all"}
        Which symbolic links may lead out of the root: none; one that lies directly in the root; any.

    Raises
    ------
    BadPathError
        The path leaves the root: absolute, ``..``, or through a symbolic link that may not.
    """
    root = Path(root)
    stable = stable_name(name)
    path = root / stable
    target = Path(os.path.realpath(path))
    if links == "all" or target.is_relative_to(root):
        return path
    top = root / stable.split("/", 1)[0]
    if links == "top" and top.is_symlink() and target.is_relative_to(os.path.realpath(top)):
        return path
    hint = "" if links == "inside" else "; accept it with --follow-links"
    raise BadPathError("path leaves the root", name, f"a symbolic link leads out to {target}{hint}")


@dataclass
class Walk:
    """Content of a folder, as sorted names relative to it.

    ``files``: regular files (links to files inside the root included). ``refused``: everything else, with its kind (of
    `BadPathError`) and cause: links to folders that are not followed, links out of the root, pipes, unreadable folders, names that
    are not UTF-8.
    """

    files: list[str] = field(default_factory=list)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)


def walk(folder: PathLike, links: str = "inside") -> Walk:
    """List everything below ``folder``; ``links`` as for :func:`contained`, and no folder is listed a second time through a link."""
    folder = Path(folder)
    root = Path(os.path.realpath(folder))
    found = Walk()
    visited = {str(root)}

    def unreadable(error: OSError) -> None:
        found.refused[os.path.relpath(error.filename, root)] = ("unusable file", error.strerror or "unreadable")

    for place, folders, files in os.walk(root, onerror=unreadable, followlinks=links != "inside"):
        folders.sort()
        for name in list(folders):
            relative = _relative(root, place, name)
            if (Path(place) / name).is_symlink() and (why := _why_not(root, relative, links, visited)):
                found.refused[relative] = ("unusable file", why)
                folders.remove(name)
            elif links != "inside":
                visited.add(os.path.realpath(Path(place) / name))
        for name in files:
            relative = _relative(root, place, name)
            try:
                # Below folders that were not reached through links, only a link can lead out.
                plain = links == "inside" and not os.path.islink(os.path.join(place, name))  # noqa: PTH114, PTH118
                path = root / stable_name(relative) if plain else contained(root, relative, links)
            except BadPathError as error:
                found.refused[relative] = (error.kind, error.why)
                continue
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises on some broken names)
                found.files.append(relative)
            else:
                found.refused[relative] = ("unusable file", "not a regular file, or a broken link")
    found.files.sort()
    return found


def _why_not(root: Path, relative: str, links: str, visited: set[str]) -> str:
    """The reason not to follow a link to a folder, or nothing."""
    target = os.path.realpath(root / relative)
    if links == "inside":
        return "links to folders are not followed"
    if target in visited or root.is_relative_to(target):
        return "it leads to a folder that is listed already"
    if links == "all" or ("/" not in relative and not Path(target).is_relative_to(root)):
        return ""
    return "links to folders are not followed; accept them with --follow-links"


def _relative(root: Path, place: str, name: str) -> str:
    return (Path(place) / name).relative_to(root).as_posix()
