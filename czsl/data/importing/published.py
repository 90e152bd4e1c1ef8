"""Published benchmarks as they are downloaded: pair lists, a metadata file, and folders of images.

``compositional-split-natural/{train,val,test}_pairs.txt``, ``metadata_compositional-split-natural.t7`` (or the same records as
`.json`) and ``images/``, as MIT-States, UT-Zappos, C-GQA, VAW-CZSL and Clothing16K have them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from czsl.compositions import SPLITS, CompositionSpace
from czsl.data.importing.entries import ImportSource, Reading, space_of_lists
from czsl.data.importing.pairs import read_pair_lists
from czsl.data.importing.t7 import Metadata, read_metadata
from czsl.data.paths import walk
from czsl.errors import DataError

LISTS = "compositional-split-natural"
METADATA = "metadata_compositional-split-natural"
# UT-Zappos' download, below the names that the public programs and the archive give it.
ORIGINALS = ("_images", "ut-zap50k-images", "images/ut-zap50k-images", "images")
FOLDERS = ("images", "release_dataset/images")  # the second is MIT-States' archive


def read_published(folder: Path, reading: Reading) -> ImportSource:
    """A published benchmark.

    Labels are sorted, pairs keep the order of their files. Records with ``NA`` in a label or the split belong to no split, as
    in the public programs. An image is looked up under ``images/`` by its exact name, then with spaces for the ``_`` of its
    folder; then by ``_image``, its path in UT-Zappos' download. Such an image has the id that it would have under ``images/``, so
    the dataset does not depend on the form of the download.
    """
    source = ImportSource(folder.resolve(), links=reading.links)
    found, separator = read_pair_lists([folder / LISTS / f"{split}_pairs.txt" for split in SPLITS], reading.separator)
    lists = dict(zip(SPLITS, found, strict=True))
    if separator == "plus":
        source.taken["pairs"] = "attribute+object"
    source.space = space_of_lists(lists)
    allowed = {split: set(pairs) for split, pairs in lists.items()}
    named = set()
    for record in read_metadata(metadata_file(folder)):
        exact = f"images/{record.image}"
        named.add(exact)
        if "NA" in (record.attr, record.obj, record.set):
            source.note("unlabelled record", exact, f"{record.attr} {record.obj}, split {record.set}")
        elif record.set in SPLITS and (record.attr, record.obj) not in allowed[record.set]:
            source.skip("unknown pair", exact, _why_unknown(source.space, record.attr, record.obj, record.set))
        elif record.image.startswith("/"):
            source.skip("path leaves the root", record.image, "absolute path")
        else:
            _add(source, record, exact)
    used = {entry.image.path for entry in source.entries.values()}  # type: ignore[attr-defined]
    taken = named | {path.relative_to(source.root).as_posix() for path in used if path.is_relative_to(source.root)}
    for name in walk(folder / "images").files:
        if f"images/{name}" not in taken:
            source.note("file without a record", f"images/{name}")
    return source


def _add(source: ImportSource, record: Metadata, exact: str) -> None:
    head, _, tail = exact.rpartition("/")
    usual = (exact, f"{head.replace('_', ' ')}/{tail}")
    others = [f"{base}/{image}" for base in FOLDERS[1:] for image in (record.image, f"{usual[1].removeprefix('images/')}")]
    if record.original:
        others += [f"{base}/{original}" for base in ORIGINALS for original in _spellings(record.original)]
    found = next((name for name in (*usual, *others) if _is_file(source.root / name)), None)
    if found is None or found in usual:
        return source.add(usual, record.attr, record.obj, record.set)
    source.taken.setdefault("images", f"found by their path in the download, below {found.split('/', 1)[0]}/")
    return source.add((found,), record.attr, record.obj, record.set, exact)


def _spellings(original: str) -> Iterator[str]:
    """A path as the metadata has it, and as the archive does, where a folder's last ``.`` is ``%2E``."""
    yield original
    *folders, file = original.split("/")
    encoded = [f"{f[:-1]}%2E" if f.endswith(".") and f.strip(".") else f for f in folders]
    if encoded != folders:
        yield "/".join([*encoded, file])


def _is_file(path: Path) -> bool:
    try:
        return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises on some broken names)
    except ValueError:
        return False


def metadata_file(folder: Path) -> Path:
    """The metadata of a published benchmark; DataError if it is missing."""
    for suffix in (".t7", ".json"):
        path = folder / f"{METADATA}{suffix}"
        if path.is_file():
            return path
    raise DataError(f"{folder} has no {METADATA}.t7", "it holds the labels of the images", "put it (or the .json) there")


def _why_unknown(space: CompositionSpace, attr: str, obj: str, split: str) -> str:
    if attr not in space.attributes:
        return f"attribute {attr!r} is in no pair list"
    if obj not in space.objects:
        return f"object {obj!r} is in no pair list"
    return f"'{attr} {obj}' is not a {split} pair"
