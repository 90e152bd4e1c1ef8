"""``czsl predict --sort-into``: copies of images, or links to them, in folders named after what the images show.

Nothing that exists is overwritten. The place of an image follows from its own path, the paths of the other images and the label space,
so the same command can be repeated: what is in place already is left as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from czsl.data.images import BadImage
from czsl.data.inputs import ImageSource, as_source
from czsl.data.paths import BadPathError, contained
from czsl.errors import SetupError, UsageError
from czsl.runs.files import FULL
from czsl_cli.answers import doubt

UNSURE = "unsure"
MAX_LABEL_BYTES = 100  # bytes of a label in a folder's name
MAX_FILE_BYTES = 240  # bytes of a file's name; file systems take 255
CHUNK = 2**20
# Signs that some file system or this module's own notation gives a meaning.
_SPECIAL = set('<>:"/\\|?*%,~')
_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(10))}  # of Windows


class LabelFolders:
    """Folder names of labels: readable, usable on every common file system, different for different labels.

    A composition is ``wet dog``; if other known names could be read from that as well (``old stone`` and ``bridge``, ``old`` and
    ``stone bridge``), it is ``old stone, bridge``. Signs that file systems refuse are written as ``%2F``; long names are cut and names
    that differ only in case get a hash.

    Parameters
    ----------
    vocabulary : mapping of str to sequence of str
        Names by kind: ``attributes`` and ``objects``, or ``classes``.
    """

    def __init__(self, vocabulary: Mapping[str, Sequence[str]]):
        self._tokens = {kind: _tokens(names) for kind, names in vocabulary.items()}
        self._known = {kind: {_folded(token) for token in tokens.values()} for kind, tokens in self._tokens.items()}

    def folder(self, label: Mapping[str, Any]) -> str:
        """Return the folder of a label ``{"attr", "obj"}`` or ``{"class"}``."""
        if "class" in label:
            return self._tokens["classes"][label["class"]]
        attribute, obj = self._tokens["attributes"][label["attr"]], self._tokens["objects"][label["obj"]]
        words = f"{_folded(attribute)} {_folded(obj)}"
        places = [i for i, sign in enumerate(words) if sign == " "]
        known = self._known
        readings = sum(words[:i] in known["attributes"] and words[i + 1 :] in known["objects"] for i in places)
        return f"{attribute} {obj}" if readings == 1 else f"{attribute}, {obj}"


class Sorter:
    """Copies images into folders, or links to them.

    Parameters
    ----------
    dest : Path
        Folder to sort into; made if it does not exist.
    source : ImageSource or Path
        The images, or the folder of them.
    names : sequence of str
        Names of all images.
    vocabulary : mapping
        Names of labels, see :class:`LabelFolders`.
    link : bool
        Make symbolic links instead of copies.

    Attributes
    ----------
    placed, kept, unreadable : int
        Images that were put in place, that were in place before, and that stay because they could not be read.
    failed : dict
        Reason by name of image, for those that could not be placed.
    """

    def __init__(
        self,
        dest: Path,
        source: ImageSource | Path,
        names: Sequence[str],
        vocabulary: Mapping[str, Sequence[str]],
        link: bool = False,
    ):
        dest.mkdir(parents=True, exist_ok=True)
        self.dest, self._source, self._link = dest.resolve(), as_source(source), link
        self._folders = LabelFolders(vocabulary)
        self._shared = {n for n, count in Counter(_folded(PurePosixPath(name).name) for name in names).items() if count > 1}
        self.placed = self.kept = self.unreadable = 0
        self.failed: dict[str, str] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Place the image of a record.

        Raises
        ------
        SetupError
            If the disk is full.
        """
        name = record["image"]
        if record["error"]:
            self.unreadable += 1
            return
        folder = UNSURE if doubt(record) else self._folders.folder(record["predictions"][0])
        try:
            file = self._source.file(name)
            if file is not None:
                self._place(file, self._folder(folder), name)
            else:
                self._unpack(self._folder(folder), name)
        except (BadPathError, BadImage, _NotPlacedError) as error:
            self.failed[name] = f"not sorted: {error if isinstance(error, _NotPlacedError) else error.why}"
        except OSError as error:
            if error.errno in FULL:
                raise SetupError(
                    f"no space left to sort into {self.dest}",
                    f"{error.strerror}; {self.placed + self.kept} images are in place, whole",
                    "make space and repeat the command, or use --link",
                ) from None
            self.failed[name] = f"not sorted: {error.strerror or error}"

    def summary(self) -> str:
        """Return one line about what was done."""
        kept = f", {self.kept} were in place before" if self.kept else ""
        left = f", {self.unreadable + len(self.failed)} are not sorted" if self.unreadable or self.failed else ""
        return f"{self.placed} images {'linked' if self._link else 'copied'} into folders of {self.dest}{kept}{left}"

    def _folder(self, name: str) -> Path:
        path = contained(self.dest, name)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise _NotPlacedError(f"{path} is in the way: it is not a folder")
        path.mkdir(exist_ok=True)
        for left in path.glob(".czsl-*.tmp"):  # of a process that was killed
            if not _alive(left):
                left.unlink(missing_ok=True)
        return path

    def _unpack(self, folder: Path, name: str) -> None:
        """Place the member of an archive."""
        if self._link:
            raise _NotPlacedError("it lies in an archive, which links cannot lead into")
        copy = folder / f".czsl-{os.getpid()}.member.tmp"
        try:
            copy.write_bytes(self._source.open(name))
            self._place(copy, folder, name)
        finally:
            copy.unlink(missing_ok=True)

    def _place(self, source: Path, folder: Path, name: str) -> None:
        """Put an image in its folder under the first name that is free, or holds the same image."""
        own = folder / PurePosixPath(name).name
        if os.path.lexists(own) and _is_same(source, own):  # also if its name is shared only now
            self.kept += 1
            return
        for target in self._targets(source, folder, name):
            if os.path.lexists(target):
                if _is_same(source, target):
                    self.kept += 1
                    return
                continue
            try:
                link_new(source, target) if self._link else copy_new(source, target)
            except FileExistsError:  # another process was faster
                continue
            self.placed += 1
            return
        raise _NotPlacedError(f"{folder} holds other files of its names")

    def _targets(self, source: Path, folder: Path, name: str):
        """Yield names for an image: its own; with a hash of its path if others have the same; with a hash of its content."""
        path = PurePosixPath(name)
        own = path.name if _folded(path.name) not in self._shared else _hashed(path, name.encode())
        yield folder / own
        digest = hashlib.sha256(name.encode())
        with source.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        yield folder / _hashed(path, digest.digest())


class _NotPlacedError(Exception):
    """One image that is not sorted; the text is the reason."""


def check_apart(dest: Path, folder: Path) -> None:
    """UsageError if sorted images would lie among the images of ``folder``, or these among the sorted ones."""
    target, source = dest.resolve(), folder.resolve()
    if target == source:
        raise UsageError(f"--sort-into {dest} is the folder of the images", "images are never moved", "give another folder")
    if target.is_relative_to(source):
        raise UsageError(
            f"--sort-into {dest} lies inside {folder}", "the next prediction would find the copies", "give a folder outside of it"
        )
    if source.is_relative_to(target):
        raise UsageError(
            f"{folder} lies inside --sort-into {dest}", "images would be sorted among themselves", "give another folder"
        )
    if dest.exists() and not dest.is_dir():
        raise UsageError(f"--sort-into {dest} is a file", "images go into folders below it", "give a folder")


def copy_new(source: Path, target: Path) -> None:
    """Copy a file with its times to a name that is free: whole or not at all, never over another file.

    Raises
    ------
    FileExistsError
        If the name is taken.
    """
    temporary = target.with_name(f".czsl-{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        with suppress(OSError):  # times and permissions are a courtesy
            shutil.copystat(source, temporary)
        try:
            os.link(temporary, target)  # unlike a rename, it refuses a name that is taken
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            _copy_exclusively(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def link_new(source: Path, target: Path) -> None:
    """Make a symbolic link; FileExistsError if the name is taken."""
    target.symlink_to(source.resolve())


def _copy_exclusively(source: Path, target: Path) -> None:
    with target.open("xb") as file:
        try:
            with source.open("rb") as content:
                shutil.copyfileobj(content, file, CHUNK)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _alive(temporary: Path) -> bool:
    """Return whether the process that is named in a temporary file runs on this machine."""
    try:
        os.kill(int(temporary.name.split("-")[1].split(".")[0]), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _is_same(source: Path, target: Path) -> bool:
    """Return whether the target is the same file or a regular file with the same bytes."""
    try:
        if source.samefile(target):
            return True
        if not target.is_file() or source.stat().st_size != target.stat().st_size:
            return False
        with source.open("rb") as one, target.open("rb") as other:
            while chunk := one.read(CHUNK):
                if chunk != other.read(CHUNK):
                    return False
        return True
    except FileNotFoundError:  # a broken link
        return False


def _tokens(names: Sequence[str]) -> dict[str, str]:
    """Return a part of a folder's name for each label; those that would meet, also on disks that ignore case, get a hash."""
    plain = {name: _encoded(name) for name in names}
    taken = Counter(_folded(token) for token in plain.values())
    taken.update([UNSURE, *_DEVICES])
    found = {}
    for name, token in plain.items():
        clear = (
            taken[_folded(token)] == 1 and len(token.encode()) <= MAX_LABEL_BYTES and token.split(".")[0].lower() not in _DEVICES
        )
        found[name] = token if clear else f"{_cut(token, MAX_LABEL_BYTES)}~{_short_hash(name.encode('utf-8', 'surrogatepass'))}"
    return found


def _encoded(name: str) -> str:
    """Return a label with the signs written as %XX that not every file system takes or that do not show."""
    last = len(name) - 1
    signs = []
    for i, sign in enumerate(name):
        edge = i in (0, last) and sign in " ."
        if sign.isprintable() and sign not in _SPECIAL and not edge:
            signs.append(sign)
        else:
            signs.append("".join(f"%{byte:02X}" for byte in sign.encode("utf-8", "surrogatepass")))
    return "".join(signs)


def _folded(name: str) -> str:
    """Return what file systems that ignore case and composition of accents compare."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _hashed(path: PurePosixPath, content: bytes) -> str:
    mark = f"~{_short_hash(content)}{path.suffix}"
    return _cut(path.stem, MAX_FILE_BYTES - len(mark.encode())) + mark


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _cut(name: str, limit: int) -> str:
    return name.encode()[:limit].decode("utf-8", "ignore").rstrip(" .")
