"""Images in folders that name their pair or class."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from czsl.data.images import is_image_file
from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.columns import split_of
from czsl.data.importing.entries import ImportSource, Reading
from czsl.data.importing.splitting import split_by_class, split_by_pair
from czsl.data.paths import walk
from czsl.errors import DataError


def read_tree(folder: Path, reading: Reading) -> ImportSource:
    """Images sorted into folders that name their pair or class, below ``train/ val/ test/`` or, without these, split by it.

    Most images decide whether one folder (``attr obj``, ``attr_obj``) or two (``attr/obj``) name the pair; others are listed. A
    class is named by one folder. Folders of splits may have their other usual names, as ``validation/``.
    """
    names = reading.names
    source = ImportSource(folder.resolve(), links=reading.links)
    usable, split_folders = _labelled(source, folder, reading)
    if isinstance(names, ClassNames):
        source.unseen = names.unseen_among(obj for _, _, obj in usable)
    if split_folders is not None or not usable:
        splits = [(split_folders or {})[name.split("/", 1)[0]] for name, _, _ in usable]
    else:
        splits = (
            split_by_pair(usable, reading.seed) if source.unseen is None else split_by_class(usable, source.unseen, reading.seed)
        )
    for (name, attr, obj), split in zip(usable, splits, strict=True):
        source.add((name,), attr, obj, split)
    source.close()
    return source


def read_labelled_tree(folder: Path, reading: Reading) -> ImportSource:
    """Images sorted into folders that name their pair, all of them for training.

    Raises
    ------
    DataError
        The folders are splits, or their names can be read in several ways.
    """
    source = ImportSource(folder.resolve(), links=reading.links)
    usable, split_folders = _labelled(source, folder, reading)
    if split_folders is not None and usable:
        given = next(iter(sorted(split_folders)))
        raise DataError(
            f"{folder} has folders of splits such as {given}/",
            "images of all of them would be trained on",
            f"give one of them: {folder / given}",
        )
    for name, attr, obj in usable:
        source.add((name,), attr, obj, "train")
    return source


def _labelled(source: ImportSource, folder: Path, reading: Reading) -> tuple[list[tuple[str, str, str]], dict[str, str] | None]:
    """Images of a tree with attribute and object, and the split of each top folder (None if folders are not splits).

    Images that cannot be used are listed in the source.
    """
    names = reading.names
    classes = isinstance(names, ClassNames)
    found = walk(folder, reading.links)
    for name, (kind, why) in found.refused.items():
        source.skip(kind, name, why)
    images = []
    for name in found.files:
        if any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
            source.note("hidden file", name, "of a program, not of the data")
        elif not reading.all_files and not is_image_file(source.root / name):
            source.note("not an image file", name, "neither its suffix nor its content is that of an image")
        else:
            images.append(name)
    tops = {name.split("/", 1)[0] for name in images}
    split_folders = {top: split for top in tops if (split := split_of(top))}
    # A folder `train` that holds images itself is a class: the vehicle.
    has_splits = "train" in split_folders.values() or tops <= set(split_folders)
    has_splits &= not classes or any(name.count("/") > 1 for name in images if name.split("/", 1)[0] in split_folders)
    offset = 1 if has_splits else 0
    depths = [name.count("/") - offset for name in images]
    depth = 2 if not classes and 2 * sum(d == 2 for d in depths) > sum(d in (1, 2) for d in depths) else 1
    expected = "one folder that names the class" if classes else "attr/obj" if depth == 2 else "one folder that names the pair"
    labelled = []
    for name, levels in zip(images, depths, strict=True):
        parts = PurePosixPath(name).parts[offset:-1]
        if has_splits and name.split("/", 1)[0] not in split_folders:
            source.skip("unknown split", name, "outside train, val, test")
        elif levels != depth:
            source.skip("no class" if classes else "no pair", name, f"expected {expected}")
        else:
            labelled.append((name, parts))
    pair_of = names.resolve({parts for _, parts in labelled})
    usable = []
    for name, parts in labelled:
        pair = pair_of[parts]
        if pair is None:
            source.skip("unknown pair", name, f"{'/'.join(parts)!r} is not a listed attribute and object")
        else:
            usable.append((name, *pair))
    return usable, split_folders if has_splits else None
