"""What a source says before any image is read: which files, labels and splits, in each of the three layouts.

- ``published`` (MIT-States, UT-Zappos, C-GQA): ``compositional-split-natural/{train,val,test}_pairs.txt``, ``images/``, and
  ``metadata_compositional-split-natural.t7`` (or the same records as `.json`).
- ``tree``: images in folders ``attr obj/``, ``attr_obj/`` or ``attr/obj/``, below ``train/ val/ test/`` or split by pair.
- ``manifest``: a CSV or Parquet file with the columns ``image, attr, obj, split``; paths relative to it.

Trees and manifests may hold plain classes instead: a folder for each class, or the columns ``image, class, split``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from czsl.classes import NO_ATTRIBUTE, ClassSpace
from czsl.compositions import SPLITS, CompositionSpace, index_pairs
from czsl.data.images import is_image_name
from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.foldernames import FolderNames
from czsl.data.importing.problems import Problem
from czsl.data.importing.splitting import split_by_class, split_by_pair
from czsl.data.importing.t7 import read_metadata
from czsl.data.paths import BadPathError, contained, stable_name, walk
from czsl.errors import DataError, UsageError

LAYOUTS = ("published", "tree", "manifest")
COLUMNS = ("image", "attr", "obj", "split")
CLASS_COLUMNS = ("image", "class", "split")
_PAIRS = "compositional-split-natural"
_METADATA = "metadata_compositional-split-natural"

Pair = tuple[str, str]


@dataclass(frozen=True)
class Entry:
    """One labelled image that a source names and that exists; nothing of it has been read."""

    id: str
    path: Path
    attr: str
    obj: str
    split: str


@dataclass
class Source:
    """What a source names: entries, their label space, and what is wrong so far.

    ``unseen``: classes of which no image may be trained on; None where labels are attributes and objects.
    """

    root: Path
    unseen: frozenset[str] | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    space: CompositionSpace | None = None

    def skip(self, kind: str, where: str, detail: str = "") -> None:
        """List an image that cannot be used."""
        self.problems.append(Problem(kind, (where,), "skipped", detail, bad=True))

    def note(self, kind: str, where: str, detail: str = "") -> None:
        """List something that is left out and is no labelled image."""
        self.problems.append(Problem(kind, (where,), "left out", detail))

    def add(self, names: Sequence[str], attr: str, obj: str, split: str) -> None:
        """Add the image under the first of these names (relative to the root) that is a file, or list why not."""
        if split not in SPLITS:
            return self.skip("unknown split", names[0], f"{split!r} is none of {', '.join(SPLITS)}")
        if self.unseen is None and not (attr and obj):
            return self.skip("missing label", names[0], f"attribute {attr!r}, object {obj!r}")
        if not obj:
            return self.skip("missing label", names[0], "no class")
        if self.unseen and split == "train" and obj in self.unseen:
            return self.note("training image of an unseen class", names[0], obj)
        for name in names:
            try:
                path = contained(self.root, name)
            except BadPathError as error:
                return self.skip(error.kind, name, error.why)
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises on some broken names)
                return self._put(Entry(stable_name(name), path, attr, obj, split))
        return self.skip("missing image", names[0], "no such file")

    def _put(self, entry: Entry) -> None:
        name, number = entry.id, 1
        while (known := self.entries.get(name)) is not None:
            if (known.path, known.attr, known.obj, known.split) == (entry.path, entry.attr, entry.obj, entry.split):
                return self.note("repeated record", entry.id, "the same image, labels and split a second time")
            number += 1
            name = f"{entry.id}#{number}"  # one file with two labels or splits: listed as identical images later
        self.entries[name] = Entry(name, entry.path, entry.attr, entry.obj, entry.split)
        return None


def find_layout(source: Path) -> str:
    """Tell the layout of a source from its files; DataError if there is none."""
    if source.is_file():
        if source.suffix.lower() in (".csv", ".parquet"):
            return "manifest"
        raise DataError(f"{source} is no folder", "only a .csv or .parquet manifest can be a file", "give its folder")
    if not source.is_dir():
        raise DataError(f"no file or folder {source}", "", "is the path right?")
    if (source / "dataset.json").is_file():
        raise DataError(f"{source} is a dataset folder already", "it was imported before", "use it as it is")
    if (source / _PAIRS).is_dir():
        return "published"
    return "manifest" if _manifest_in(source) else "tree"


def read_source(source: Path, layout: str, names: FolderNames | ClassNames, seed: int) -> Source:
    """Read a source in one of `LAYOUTS`; ``names`` say what labels are, ``seed`` is for trees."""
    if layout == "published":
        if isinstance(names, ClassNames):
            raise UsageError("the published layout holds pairs, not classes", f"{source} has pair lists", "drop --classes")
        return read_published(source)
    if layout == "tree":
        return read_tree(source, names, seed)
    if layout == "manifest":
        return read_manifest(source, names if isinstance(names, ClassNames) else None)
    raise UsageError(f"no layout {layout!r}", "", f"one of: {', '.join(LAYOUTS)}")


# -- published -----------------------------------------------------------------------------------------------------
def read_published(folder: Path) -> Source:
    """The layout of MIT-States, UT-Zappos and C-GQA.

    Labels are sorted, pairs keep the order of their files. Records with ``NA`` in a label or the split belong to no split, as
    in the public programs. An image is looked up under ``images/`` by its exact name, then with spaces for the ``_`` of its
    folder.
    """
    source = Source(folder.resolve())
    lists = {split: _read_pairs(folder / _PAIRS / f"{split}_pairs.txt") for split in SPLITS}
    source.space = _space(lists)
    allowed = {split: set(pairs) for split, pairs in lists.items()}
    named = set()
    for record in read_metadata(_metadata_file(folder)):
        exact = f"images/{record.image}"
        named.add(exact)
        if "NA" in (record.attr, record.obj, record.set):
            source.note("unlabelled record", exact, f"{record.attr} {record.obj}, split {record.set}")
        elif record.set in SPLITS and (record.attr, record.obj) not in allowed[record.set]:
            source.skip("unknown pair", exact, _why_unknown(source.space, record.attr, record.obj, record.set))
        elif record.image.startswith("/"):
            source.skip("path leaves the root", record.image, "absolute path")
        else:
            head, _, tail = exact.rpartition("/")
            source.add((exact, f"{head.replace('_', ' ')}/{tail}"), record.attr, record.obj, record.set)
    found = walk(folder / "images")
    taken = named | {entry.path.relative_to(source.root).as_posix() for entry in source.entries.values()}
    for name in found.files:
        if f"images/{name}" not in taken:
            source.note("file without a record", f"images/{name}")
    return source


def _metadata_file(folder: Path) -> Path:
    for suffix in (".t7", ".json"):
        path = folder / f"{_METADATA}{suffix}"
        if path.is_file():
            return path
    raise DataError(f"{folder} has no {_METADATA}.t7", "it holds the labels of the images", "put it (or the .json) there")


def _read_pairs(path: Path) -> list[Pair]:
    pairs = []
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if len(words) != 2:
            raise DataError(f"{path}, line {number}: {line!r}", "expected: attribute object", "use _ inside a name")
        pairs.append((words[0], words[1]))
    return pairs


def _why_unknown(space: CompositionSpace, attr: str, obj: str, split: str) -> str:
    if attr not in space.attributes:
        return f"attribute {attr!r} is in no pair list"
    if obj not in space.objects:
        return f"object {obj!r} is in no pair list"
    return f"'{attr} {obj}' is no {split} pair"


# -- tree ----------------------------------------------------------------------------------------------------------
def read_tree(folder: Path, names: FolderNames | ClassNames, seed: int = 0) -> Source:
    """Images sorted into folders that name their pair or class, below ``train/ val/ test/`` or, without these, split by it.

    Most images decide whether one folder (``attr obj``, ``attr_obj``) or two (``attr/obj``) name the pair; others are listed. A
    class is named by one folder.
    """
    source = Source(folder.resolve())
    usable, has_splits = _labelled(source, folder, names)
    if isinstance(names, ClassNames):
        source.unseen = names.unseen_among(obj for _, _, obj in usable)
    if has_splits or not usable:
        splits = [name.split("/", 1)[0] for name, _, _ in usable]
    else:
        splits = split_by_pair(usable, seed) if source.unseen is None else split_by_class(usable, source.unseen, seed)
    for (name, attr, obj), split in zip(usable, splits, strict=True):
        source.add((name,), attr, obj, split)
    source.space = _space_of(source)
    return source


def read_labelled_tree(folder: Path, names: FolderNames) -> Source:
    """Images sorted into folders that name their pair, all of them for training; DataError where folders are splits."""
    source = Source(folder.resolve())
    usable, has_splits = _labelled(source, folder, names)
    if has_splits and usable:
        why = "images of all of them would be trained on"
        raise DataError(f"{folder} has folders train/, val/ or test/", why, f"give one of them, e.g. {folder / 'train'}")
    for name, attr, obj in usable:
        source.add((name,), attr, obj, "train")
    source.space = _space_of(source)
    return source


def _labelled(source: Source, folder: Path, names: FolderNames | ClassNames) -> tuple[list[tuple[str, str, str]], bool]:
    """Images of a tree with attribute and object, and whether they lie below folders of splits; lists those that cannot be used."""
    classes = isinstance(names, ClassNames)
    found = walk(folder)
    for name, (kind, why) in found.refused.items():
        source.skip(kind, name, why)
    images = []
    for name in found.files:
        if any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
            source.note("hidden file", name, "of a program, not of the data")
        elif not is_image_name(name):
            source.note("not an image file", name, "its suffix is that of no image format")
        else:
            images.append(name)
    tops = {name.split("/", 1)[0] for name in images}
    # A folder `train` that holds images itself is a class: the vehicle.
    has_splits = "train" in tops or tops <= set(SPLITS)
    has_splits &= not classes or any(name.count("/") > 1 for name in images if name.split("/", 1)[0] in SPLITS)
    offset = 1 if has_splits else 0
    depths = [name.count("/") - offset for name in images]
    depth = 2 if not classes and 2 * sum(d == 2 for d in depths) > sum(d in (1, 2) for d in depths) else 1
    expected = "one folder that names the class" if classes else "attr/obj" if depth == 2 else "one folder that names the pair"
    labelled = []
    for name, levels in zip(images, depths, strict=True):
        parts = PurePosixPath(name).parts[offset:-1]
        if has_splits and name.split("/", 1)[0] not in SPLITS:
            source.skip("unknown split", name, f"outside {', '.join(SPLITS)}")
        elif levels != depth:
            source.skip("no class" if classes else "no pair", name, f"expected {expected}")
        else:
            labelled.append((name, parts))
    pair_of = names.resolve({parts for _, parts in labelled})
    usable = []
    for name, parts in labelled:
        pair = pair_of[parts]
        if pair is None:
            source.skip("unknown pair", name, f"{'/'.join(parts)!r} is no listed attribute and object")
        else:
            usable.append((name, *pair))
    return usable, has_splits


# -- manifest ------------------------------------------------------------------------------------------------------
def read_manifest(path: Path, classes: ClassNames | None = None) -> Source:
    """A table with the columns `COLUMNS` or `CLASS_COLUMNS` (others are ignored); images relative to its folder.

    Attributes and objects are read where a table has both and ``classes`` is None.
    """
    if path.is_dir():
        found = _manifest_in(path)
        if found is None:
            raise DataError(f"{path} has no manifest.csv or manifest.parquet", "", "give the manifest's own path")
        path = found
    source, wanted = Source(path.parent.resolve()), classes is not None
    read = _csv_rows if path.suffix.lower() == ".csv" else _parquet_rows
    rows = [{name: cell.strip() for name, cell in row.items()} for row in read(path, wanted)]
    if rows and "class" in rows[0]:
        source.unseen = (classes or ClassNames()).unseen_among(row["class"] for row in rows if row["class"])
    for row in rows:
        source.add((row["image"],), row.get("attr", NO_ATTRIBUTE), row.get("obj", row.get("class", "")), row["split"])
    source.space = _space_of(source)
    return source


def _manifest_in(folder: Path) -> Path | None:
    return next((p for p in (folder / "manifest.csv", folder / "manifest.parquet") if p.is_file()), None)


def _csv_rows(path: Path, classes: bool) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = _columns(path, reader.fieldnames or (), classes)
            for row in reader:
                yield {name: row[name] or "" for name in columns}
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", str(error), "save it as CSV in UTF-8") from None


def _parquet_rows(path: Path, classes: bool) -> Iterator[dict[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names, classes)
            for batch in file.iter_batches(columns=list(columns)):
                values = [batch.column(name).cast(pa.string()).to_pylist() for name in columns]
                for row in zip(*values, strict=True):
                    yield {name: value or "" for name, value in zip(columns, row, strict=True)}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path}", str(error).splitlines()[0], "is it a Parquet table?") from None


def _columns(path: Path, found: Sequence[str], classes: bool) -> tuple[str, ...]:
    """Those of `COLUMNS` or `CLASS_COLUMNS` that hold the labels; DataError where some are missing."""
    columns = CLASS_COLUMNS if classes or ("class" in found and not {"attr", "obj"} <= set(found)) else COLUMNS
    missing = [name for name in columns if name not in found]
    if missing:
        why = f"it has: {', '.join(found) or 'nothing'}"
        fix = f"name its columns {', '.join(columns)}" + ("" if columns == CLASS_COLUMNS else ", or image, class, split")
        raise DataError(f"{path} lacks the columns {', '.join(missing)}", why, fix)
    return columns


# -- shared --------------------------------------------------------------------------------------------------------
def _space_of(source: Source) -> CompositionSpace | None:
    """The space of a source's images: names and pairs sorted. None without images."""
    lists: dict[str, set[Pair]] = {split: set() for split in SPLITS}
    for entry in source.entries.values():
        lists[entry.split].add((entry.attr, entry.obj))
    if not any(lists.values()):
        return None
    if source.unseen is not None:
        train, val, test = (sorted(obj for _, obj in lists[split]) for split in SPLITS)
        return ClassSpace.of(sorted({*train, *val, *test}), train, val, test)
    return _space({split: sorted(pairs) for split, pairs in lists.items()})


def _space(lists: dict[str, list[Pair]]) -> CompositionSpace:
    pairs = [pair for part in lists.values() for pair in part]
    attributes, objects = sorted({a for a, _ in pairs}), sorted({o for _, o in pairs})
    indexed = {f"{split}_pairs": index_pairs(part, attributes, objects) for split, part in lists.items()}
    return CompositionSpace(tuple(attributes), tuple(objects), **indexed)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", str(error), "is the folder complete?") from None
