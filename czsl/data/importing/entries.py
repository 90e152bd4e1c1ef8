"""The common form of all sources: entries (an image, where its bytes are, a box, labels and a split) and what is wrong so far."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from czsl.classes import NO_ATTRIBUTE, ClassSpace
from czsl.compositions import SPLITS, CompositionSpace, index_pairs
from czsl.data.images import read_image_file
from czsl.data.importing.boxes import Box
from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.foldernames import FolderNames
from czsl.data.importing.problems import Problem
from czsl.data.paths import BadPathError, contained, stable_name
from czsl.errors import DataError
from czsl.spaces import load_space

Pair = tuple[str, str]


@dataclass(frozen=True)
class Reading:
    """Options for reading a source.

    Parameters
    ----------
    names : FolderNames or ClassNames
        Attributes and objects of texts that hold both; or that labels are plain classes, and which are unseen.
    seed : int
        Seed of the split, for sources without one.
    columns : mapping, optional
        ``{"image": "path", "attr": "colour", ..}``: which column holds what; the keys are `czsl.data.importing.columns.ROLES`.
    root : Path, optional
        Folder of the images, if it is not that of the table or annotation file.
    links : {"top", "all"}
        Which symbolic links may lead out of the source, see :func:`czsl.data.paths.contained`.
    margin : float
        Margin of a crop on each side, as a fraction of the box's width and height.
    several : {"rarest", "each"}, optional
        What to do with an image that has several attributes: keep the one that is rarest in the source, or make an entry of each;
        without it such images are listed as unusable.
    separator : {"space", "plus"}, optional
        How lists of pairs are written; default: the only way in which they can be read.
    all_files : bool
        Folder trees: take files that neither their suffix nor their content shows to be images.
    """

    names: FolderNames | ClassNames = field(default_factory=FolderNames)
    seed: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    links: str = "top"
    margin: float = 0.0
    several: str | None = None
    separator: str | None = None
    all_files: bool = False

    @property
    def classes(self) -> ClassNames | None:
        """The names of plain classes, or None if labels are pairs."""
        return self.names if isinstance(self.names, ClassNames) else None


class ImageLocation(Protocol):
    """Location of an image's bytes; two equal locations are the same image."""

    def read(self) -> bytes:
        """The bytes of the image file; :class:`czsl.data.images.BadImage` if they cannot be read."""


@dataclass(frozen=True)
class FileImage:
    """An image that is a file."""

    path: Path

    def read(self) -> bytes:
        """The bytes of the file."""
        return read_image_file(self.path)


@dataclass(frozen=True)
class Entry:
    """One labelled image that a source names and that exists; nothing of it has been read."""

    id: str
    image: ImageLocation
    attr: str
    obj: str
    split: str
    box: Box | None = None


@dataclass
class ImportSource:
    """Content of a source: entries, their label space, and the problems found so far.

    ``root``: the folder that paths are relative to, without links. ``other_roots``: further folders that absolute paths may lie in,
    as the user wrote them. ``unseen``: classes of which no image may be trained on; None if labels are attributes and objects.
    ``taken``: what was taken for what, for the report and ``dataset.json``. ``review``: how many labels of a review file were confirmed or
    ``changed`` or ``left`` as predicted, and how many rows are ``empty``; None for other sources.
    """

    root: Path
    unseen: frozenset[str] | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    space: CompositionSpace | None = None
    links: str = "inside"
    other_roots: tuple[Path, ...] = ()
    taken: dict[str, Any] = field(default_factory=dict)
    review: dict[str, int] | None = None
    _seen: set[Entry] = field(default_factory=set, repr=False)
    _numbers: dict[str, int] = field(default_factory=dict, repr=False)

    def skip(self, kind: str, where: str, detail: str = "") -> None:
        """List an image that cannot be used."""
        self.problems.append(Problem(kind, (where,), "skipped", detail, bad=True))

    def note(self, kind: str, where: str, detail: str = "") -> None:
        """List something that is left out because it is not a labelled image."""
        self.problems.append(Problem(kind, (where,), "left out", detail))

    def add(self, names: Sequence[str], attr: str, obj: str, split: str, name: str = "", box: Box | None = None) -> None:
        """Add the image under the first of these names (relative to the root) that is a file, or list why not.

        ``name`` is the entry's id; default: the name under which the file was found.
        """
        if self.usable(names[0], attr, obj, split) and (found := self.find(names)):
            self.put(Entry(name or found[0], FileImage(found[1]), attr, obj, split, box))

    def usable(self, where: str, attr: str, obj: str, split: str) -> bool:
        """True if labels and split are whole and allowed; otherwise it is listed why not."""
        if split not in SPLITS:
            self.skip("unknown split", where, f"{split!r} is not one of {', '.join(SPLITS)}")
        elif self.unseen is None and not (attr and obj):
            self.skip("missing label", where, f"attribute {attr!r}, object {obj!r}")
        elif not obj:
            self.skip("missing label", where, "no class")
        elif self.unseen and split == "train" and obj in self.unseen:
            self.note("training image of an unseen class", where, obj)
        else:
            return True
        return False

    def find(self, names: Sequence[str]) -> tuple[str, Path] | None:
        """The stable name and path of the first of these names that is a file, or None after listing why it is missing."""
        for name in names:
            try:
                path = contained(self.root, name, self.links)
                stable = stable_name(name)
            except BadPathError as error:
                self.skip(error.kind, name, error.why)
                return None
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises on some broken names)
                return stable, path
        self.skip("missing image", names[0], "no such file")
        return None

    def put(self, entry: Entry) -> None:
        """Add an entry; one of the same image, box, labels and split is listed, another one of the same id is numbered."""
        if entry in self._seen:
            return self.note("repeated record", entry.id, "the same image, labels and split a second time")
        self._seen.add(entry)
        name, number = entry.id, self._numbers.get(entry.id, 1)
        while name in self.entries:
            number += 1
            name = f"{entry.id}#{number}"  # one file with two labels or splits: listed as identical images later
        self._numbers[entry.id] = number
        self.entries[name] = replace(entry, id=name)
        return None

    def close(self) -> None:
        """Make the label space of the entries: that of ``space.json`` in the root, or else the labels that occur."""
        path = self.root / "space.json"
        if self.space is not None or not path.is_file():
            self.space = self.space or space_of(self)
            return
        space = load_space(path)
        if isinstance(space, ClassSpace) != (self.unseen is not None):
            raise DataError(f"{path} does not fit the labels", "one has plain classes, the other pairs", "remove it, or mend it")
        self.space = space
        self.taken["label space"] = "space.json"
        lists = {split: getattr(space, f"{split}_pairs").tolist() for split in SPLITS}
        allowed = {split: {space.pair_names(pair) for pair in pairs} for split, pairs in lists.items()}
        for name, entry in list(self.entries.items()):
            if (entry.attr, entry.obj) not in allowed[entry.split]:
                del self.entries[name]
                self.skip("unknown pair", name, f"'{entry.attr} {entry.obj}' is not a {entry.split} pair of space.json")


def space_of(source: ImportSource) -> CompositionSpace | None:
    """The space of a source's images: names and pairs sorted. None without images."""
    lists: dict[str, set[Pair]] = {split: set() for split in SPLITS}
    for entry in source.entries.values():
        lists[entry.split].add((entry.attr, entry.obj))
    if not any(lists.values()):
        return None
    if source.unseen is not None:
        train, val, test = (sorted(obj for _, obj in lists[split]) for split in SPLITS)
        return ClassSpace.of(sorted({*train, *val, *test}), train, val, test)
    return space_of_lists({split: sorted(pairs) for split, pairs in lists.items()})


def space_of_lists(lists: Mapping[str, Sequence[Pair]]) -> CompositionSpace:
    """The space of lists of pairs: labels sorted, pairs in their order."""
    pairs = [pair for part in lists.values() for pair in part]
    attributes, objects = sorted({a for a, _ in pairs}), sorted({o for _, o in pairs})
    indexed = {f"{split}_pairs": index_pairs(part, attributes, objects) for split, part in lists.items()}
    return CompositionSpace(tuple(attributes), tuple(objects), **indexed)


__all__ = ["NO_ATTRIBUTE", "Entry", "FileImage", "ImageLocation", "ImportSource", "Reading", "space_of", "space_of_lists"]
