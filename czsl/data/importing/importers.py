"""From a source to a dataset folder: every image is read, decoded once and hashed; every problem is listed."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from czsl.classes import ClassSpace
from czsl.compositions import SPLITS
from czsl.data.images import MAX_PIXELS, BadImage, decode
from czsl.data.importing.adding import add_to
from czsl.data.importing.boxes import cut, place
from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.detect import describe, find_layout
from czsl.data.importing.entries import Entry, ImportSource, Reading
from czsl.data.importing.foldernames import FolderNames
from czsl.data.importing.layouts import read_source
from czsl.data.importing.problems import ImageRow, Problem, count_duplicates, count_kinds, duplicate_problems, space_problems
from czsl.data.importing.writer import Record, check_destination, write_dataset
from czsl.data.photographs import AS_SHOWN, AS_STORED, DecodeOptions
from czsl.data.table import Dataset, damaged, open_data
from czsl.errors import DataError, UsageError
from czsl.reading import PathLike
from czsl.threads import ordered_map

MAX_BAD = 0.01

Progress = Callable[[int, int], None]


@dataclass
class ImportReport:
    """Result of an import.

    ``folder`` and ``sha256`` are None if it was stopped. ``named``: images that the source names; ``bad``: those of them that
    cannot be used. ``read_as``: the layout, and what was taken for what. ``decode``: how the images are to be decoded.
    ``attributes``, ``objects`` and ``pairs`` (of each split) count labels; of plain classes it is ``classes``: all of them, those
    ``seen``, and those of each split. ``review`` counts the labels of a review file, see
    :class:`czsl.data.importing.entries.ImportSource`; ``added_to`` is the dataset folder whose images the new one also holds.
    """

    source: str
    layout: str
    folder: str | None = None
    name: str = ""
    sha256: str | None = None
    named: int = 0
    bad: int = 0
    read_as: dict[str, Any] = field(default_factory=dict)
    decode: dict[str, str] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    attributes: int = 0
    objects: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    review: dict[str, int] | None = None
    added_to: str | None = None

    def to_json(self) -> dict:
        """The report as plain data; ``kinds`` counts the problems by kind."""
        problems = [problem.to_json() for problem in self.problems]
        other = ("attributes", "objects", "pairs") if self.classes else ("classes",)
        facts = {key: value for key, value in self.__dict__.items() if key not in other}
        return {**facts, "kinds": count_kinds(self.problems), "problems": problems}


class TooManyBadError(DataError):
    """More images are bad than ``max_bad`` allows; ``report`` lists them."""

    def __init__(self, what: str, why: str, fix: str, report: ImportReport):
        super().__init__(what, why, fix)
        self.report = report


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import.

    Parameters
    ----------
    layout : str
        ``auto``, or one of `czsl.data.importing.layouts.LAYOUTS`.
    name : str, optional
        The dataset's name; default: that of the source's folder.
    names : FolderNames or ClassNames
        Attributes and objects of a tree whose folder names are unclear; or that labels are plain classes, and which are unseen.
    seed : int
        Seed of the split by pair or class, for trees without ``train/ val/ test/``.
    max_bad : float
        Share of bad images above which the import stops.
    max_pixels : int
        Images with more are not decoded and count as bad.
    drop_duplicates : bool
        Leave out images of val and test whose bytes occur in training.
    force : bool
        Replace an existing dataset folder.
    add_to : str or Path, optional
        A dataset folder (or ``toy``) whose images the new dataset also holds.
    orientation, background : str, optional
        How the images are to be decoded (:class:`czsl.data.photographs.DecodeOptions`), which the dataset remembers. By default
        published benchmarks are taken as stored, and all else as a viewer shows it.
    all_files : bool
        Folder trees: try files that neither their suffix nor their content shows to be images.
    workers : int
        Threads that decode; 0: one for each CPU, at most 8.
    columns, root, follow_links, margin, several, separator
        How to read tables, annotations and links, see :class:`czsl.data.importing.entries.Reading`; with ``follow_links`` every
        symbolic link is followed.
    """

    layout: str = "auto"
    name: str | None = None
    names: FolderNames | ClassNames = field(default_factory=FolderNames)
    seed: int = 0
    max_bad: float = MAX_BAD
    max_pixels: int = MAX_PIXELS
    drop_duplicates: bool = False
    force: bool = False
    add_to: str | Path | None = None
    orientation: str | None = None
    background: str | None = None
    all_files: bool = False
    workers: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    follow_links: bool = False
    margin: float = 0.0
    several: str | None = None
    separator: str | None = None

    @property
    def reading(self) -> Reading:
        """The part that the readers of layouts need."""
        links = "all" if self.follow_links else "top"
        return Reading(
            self.names, self.seed, self.columns, self.root, links, self.margin, self.several, self.separator, self.all_files
        )

    def decode(self, layout: str, base: Dataset | None = None) -> DecodeOptions:
        """Return how images of a layout are decoded; images added to a dataset follow that dataset."""
        usual = base.decode if base is not None else AS_STORED if layout in ("published", "vaw") else AS_SHOWN
        return usual.changed(self.orientation, self.background)


def import_dataset(
    source: PathLike, dest: PathLike, options: ImportOptions | None = None, progress: Progress | None = None
) -> ImportReport:
    """Import a source into the dataset folder ``dest``.

    Within a split, rows are sorted by id, so the result does not depend on how the source lists its images.

    Parameters
    ----------
    source, dest : Path
    options : ImportOptions
    progress : callable (done, total), optional
        Called after each image.

    Raises
    ------
    TooManyBadError
        With the list of problems; nothing is written.
    DataError
        The source cannot be understood.
    UsageError
        The destination holds something, or lies in the source.
    """
    source, dest = Path(source), Path(dest)
    options = options or ImportOptions()
    source, dest = Path(source), Path(dest)
    layout = find_layout(source) if options.layout == "auto" else options.layout
    check_destination(dest, options.force)
    _check_apart(source, dest, layout)
    base = _base(options, dest)
    content = _read(source, layout, options)
    name = options.name or (base.name if base else _name_of(source))
    report = ImportReport(str(source), layout, name=name, problems=content.problems, review=content.review)
    report.read_as = {"layout": layout, **content.taken}
    decode_options = options.decode(layout, base)
    report.decode = decode_options.to_json()
    report.named = len(content.entries) + sum(problem.bad for problem in content.problems)
    if content.space is None or not content.entries:
        _stop(report, options.max_bad)
        if content.review and content.review["empty"]:
            raise DataError(f"{source} holds no label", "it is a review file and its labels are empty", "fill in the labels")
        raise DataError(f"{source} holds no labelled image", f"read as: {layout}", "is this the right folder or --layout?")
    if base is not None:
        add_to(base, content)
        report.added_to = str(base.folder)
    counts = {split: len(getattr(content.space, f"{split}_pairs")) for split in SPLITS}
    if isinstance(content.space, ClassSpace):
        report.classes = {"all": content.space.num_objects, "seen": counts["train"], **counts}
    else:
        report.attributes, report.objects, report.pairs = content.space.num_attributes, content.space.num_objects, counts
    records = _records(content, options, report, progress, base)
    written = write_dataset(
        dest, content.space, records, report.name, report.problems, options.force, report.read_as, decode_options
    )
    report.folder, report.sha256, report.images = str(dest), written["sha256"], written["images"]
    return report


def _read(source: Path, layout: str, options: ImportOptions) -> ImportSource:
    """Read a source. If a folder was read as a tree only because no other layout fits, the error describes the folder."""
    guessed = options.layout == "auto" and layout == "tree"
    try:
        content = read_source(source, layout, options.reading)
    except DataError as error:
        if guessed and (seen := describe(source)):
            raise DataError(f"{source} fits no layout", f"it looks like {seen[0]}; as folders: {error.what}", seen[1]) from None
        raise
    if guessed and not content.entries and (seen := describe(source)):
        raise DataError(f"{source} fits no layout", f"it looks like {seen[0]}", seen[1])
    return content


def _records(
    source: ImportSource, options: ImportOptions, report: ImportReport, progress: Progress | None, base: Dataset | None
) -> Iterator[Record]:
    """Training first: by then the hashes are known that val and test may repeat. In each split rows of ``base`` first, in their order."""
    items: list[Entry | _Known] = [*source.entries.values(), *(_known_rows(base) if base else ())]
    items.sort(key=lambda item: (SPLITS.index(item.split), item.place if isinstance(item, _Known) else math.inf, item.id))
    rows: list[ImageRow] = []
    dropped: set[str] = set()
    training: set[str] = set()
    new: set[str] = set()
    how = options.decode(report.layout, base)
    # Boxes of COCO and VAW are in pixels as stored, those of annotation tools in the image that was shown.
    boxed = how.changed("ignore", None) if report.layout in ("coco", "vaw") else how

    def check(item: Entry | _Known) -> tuple[bytes, str, bool] | BadImage:
        if isinstance(item, _Known):  # decoded when it was imported
            data = item.read()
            return data, hashlib.sha256(data).hexdigest(), False
        over = False
        try:
            data = item.image.read()
            image = decode(data, options.max_pixels, how if item.box is None else boxed)
            if item.box is not None:
                crop, over = place(item.box, options.margin, *image.size)
                data = data if crop == (0, 0, *image.size) else cut(image, crop)
            return data, hashlib.sha256(data).hexdigest(), over
        except BadImage as error:
            return error

    results = ordered_map(check, items, options.workers)
    for done, (item, result) in enumerate(zip(items, results, strict=True), 1):
        if progress:
            progress(done, len(items))
        if isinstance(result, BadImage):
            source.skip(result.kind, item.id, result.reason)
            continue
        data, digest, over = result
        if over:
            source.problems.append(Problem("box over the edge", (item.id,), "cut at the edge of the image"))
        if isinstance(item, _Known):
            item.check(digest)
        else:
            new.add(digest)
        rows.append(ImageRow(item.id, digest, item.attr, item.obj, item.split))
        if item.split == "train":
            training.add(digest)
        elif options.drop_duplicates and digest in training:
            dropped.add(item.id)
            continue
        yield Record(item.id, data, item.attr, item.obj, item.split)
    source.problems += duplicate_problems([row for row in rows if row.sha256 in new], frozenset(dropped))
    assert source.space is not None
    source.problems += space_problems(source.space, [row for row in rows if row.id not in dropped])
    report.duplicates = count_duplicates(rows)
    _stop(report, options.max_bad)


@dataclass(frozen=True)
class _Known:
    """An image of the dataset folder that others are added to."""

    row: ImageRow
    place: int
    base: Dataset

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def attr(self) -> str:
        return self.row.attr

    @property
    def obj(self) -> str:
        return self.row.obj

    @property
    def split(self) -> str:
        return self.row.split

    def read(self) -> bytes:
        return self.base.split(self.split).image_bytes(self.place)

    def check(self, digest: str) -> None:
        if digest != self.row.sha256:
            raise damaged(self.base.folder, f"the bytes of {self.id} changed")


def _known_rows(base: Dataset) -> Iterator[_Known]:
    for split in SPLITS:
        for i, row in enumerate(base.split(split).rows()):
            yield _Known(row, i, base)


def _base(options: ImportOptions, dest: Path) -> Dataset | None:
    """The dataset that the source's images are added to."""
    if options.add_to is None:
        return None
    base = open_data(options.add_to)
    if base.folder.resolve() == dest.resolve():
        raise UsageError(
            f"{dest} is the dataset to add to", "runs that were trained on it refer to it as it is", "give a new folder as DEST"
        )
    return base


def _stop(report: ImportReport, max_bad: float) -> None:
    report.bad = sum(problem.bad for problem in report.problems)
    if report.bad > max_bad * report.named:
        accepted = min(1.0, -(-report.bad * 1000 // report.named) / 1000)  # rounded up, so that it is enough
        fix = f"mend them, or accept it with --max-bad {accepted:g}"
        if report.bad == report.named:
            fix = f"is this the right folder? it was read as: --layout {report.layout}"
        kinds = Counter(problem.kind for problem in report.problems if problem.bad)
        raise TooManyBadError(
            f"{report.bad} of {report.named} images cannot be used ({report.bad / report.named:.1%}, limit {max_bad:.1%})",
            ", ".join(f"{number} {kind}" for kind, number in kinds.most_common()),
            fix,
            report,
        )


def _check_apart(source: Path, dest: Path, layout: str) -> None:
    folder, target = source.resolve(), dest.resolve()
    whole = layout not in ("published", "manifest") and source.is_dir()  # other files than those of the layout are read too
    if folder.is_relative_to(target) or (whole and target.is_relative_to(folder)):
        raise UsageError(f"{dest} and {source} overlap", "the import would read what it writes", "give another DEST")


def _name_of(source: Path) -> str:
    path = source.resolve()
    return path.stem if path.is_file() and path.stem != "manifest" else (path.parent if path.is_file() else path).name
