"""From a source to a dataset folder: every image is read, decoded once and hashed; every problem is listed."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from czsl.classes import ClassSpace
from czsl.compositions import SPLITS
from czsl.data.images import MAX_PIXELS, BadImage, decode, read_image_file
from czsl.data.importing.classnames import ClassNames
from czsl.data.importing.foldernames import FolderNames
from czsl.data.importing.layouts import Entry, Source, find_layout, read_source
from czsl.data.importing.problems import Problem, Row, count_duplicates, count_kinds, duplicate_problems, space_problems
from czsl.data.importing.writer import Record, check_destination, write_dataset
from czsl.errors import DataError, UsageError
from czsl.reading import PathLike

MAX_BAD = 0.01

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]


@dataclass
class ImportReport:
    """What an import found and wrote.

    ``folder`` and ``sha256`` are None where it was stopped. ``named``: images that the source names; ``bad``: those of them that
    cannot be used. ``attributes``, ``objects`` and ``pairs`` (of each split) count labels; of plain classes it is ``classes``: all of
    them, those ``seen``, and those of each split.
    """

    source: str
    layout: str
    folder: str | None = None
    name: str = ""
    sha256: str | None = None
    named: int = 0
    bad: int = 0
    images: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    attributes: int = 0
    objects: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

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
    """How to import.

    Parameters
    ----------
    layout : str
        ``auto``, or one of `czsl.data.importing.layouts.LAYOUTS`.
    name : str, optional
        The dataset's name; default: that of the source's folder.
    names : FolderNames or ClassNames
        Attributes and objects of a tree whose folder names are unclear; or that labels are plain classes, and which are unseen.
    seed : int
        Of the split by pair or class, for trees without ``train/ val/ test/``.
    max_bad : float
        Share of bad images above which the import stops.
    max_pixels : int
        Images with more are not decoded and count as bad.
    drop_duplicates : bool
        Leave out images of val and test whose bytes occur in training.
    force : bool
        Replace an existing dataset folder.
    workers : int
        Threads that decode; 0: one for each CPU, at most 8.
    """

    layout: str = "auto"
    name: str | None = None
    names: FolderNames | ClassNames = field(default_factory=FolderNames)
    seed: int = 0
    max_bad: float = MAX_BAD
    max_pixels: int = MAX_PIXELS
    drop_duplicates: bool = False
    force: bool = False
    workers: int = 0


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
    content = read_source(source, layout, options.names, options.seed)
    report = ImportReport(str(source), layout, name=options.name or _name_of(source), problems=content.problems)
    report.named = len(content.entries) + sum(problem.bad for problem in content.problems)
    if content.space is None or not content.entries:
        _stop(report, options.max_bad)
        raise DataError(f"{source} holds no labelled image", f"read as: {layout}", "is this the right folder or --layout?")
    counts = {split: len(getattr(content.space, f"{split}_pairs")) for split in SPLITS}
    if isinstance(content.space, ClassSpace):
        report.classes = {"all": content.space.num_objects, "seen": counts["train"], **counts}
    else:
        report.attributes, report.objects, report.pairs = content.space.num_attributes, content.space.num_objects, counts
    records = _records(content, options, report, progress)
    written = write_dataset(dest, content.space, records, report.name, report.problems, options.force)
    report.folder, report.sha256, report.images = str(dest), written["sha256"], written["images"]
    return report


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int = 0) -> Iterator[R]:
    """``map`` over threads, in order, with a bounded number of results in memory.

    Threads, because Pillow and hashlib release the interpreter lock while they work, and forking beside other libraries hangs.
    """
    workers = workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _records(source: Source, options: ImportOptions, report: ImportReport, progress: Progress | None) -> Iterator[Record]:
    """Training first: by then the hashes are known that val and test may repeat."""
    entries = sorted(source.entries.values(), key=lambda e: (SPLITS.index(e.split), e.id))
    rows: list[Row] = []
    dropped: set[str] = set()
    training: set[str] = set()

    def check(entry: Entry) -> tuple[bytes, str] | BadImage:
        try:
            data = read_image_file(entry.path)
            decode(data, options.max_pixels)
            return data, hashlib.sha256(data).hexdigest()
        except BadImage as error:
            return error

    results = ordered_map(check, entries, options.workers)
    for done, (entry, result) in enumerate(zip(entries, results, strict=True), 1):
        if progress:
            progress(done, len(entries))
        if isinstance(result, BadImage):
            source.skip(result.kind, entry.id, result.reason)
            continue
        data, digest = result
        rows.append(Row(entry.id, digest, entry.attr, entry.obj, entry.split))
        if entry.split == "train":
            training.add(digest)
        elif options.drop_duplicates and digest in training:
            dropped.add(entry.id)
            continue
        yield Record(entry.id, data, entry.attr, entry.obj, entry.split)
    source.problems += duplicate_problems(rows, frozenset(dropped))
    assert source.space is not None
    source.problems += space_problems(source.space, [row for row in rows if row.id not in dropped])
    report.duplicates = count_duplicates(rows)
    _stop(report, options.max_bad)


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
    if folder.is_relative_to(target) or (layout == "tree" and target.is_relative_to(folder)):
        raise UsageError(f"{dest} and {source} overlap", "the import would read what it writes", "give another DEST")


def _name_of(source: Path) -> str:
    path = source.resolve()
    return path.stem if path.is_file() and path.stem != "manifest" else (path.parent if path.is_file() else path).name
