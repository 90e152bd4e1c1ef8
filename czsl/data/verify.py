"""Checking a dataset folder: every image is hashed and decoded again, every label and count compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from czsl.compositions import SPLITS
from czsl.data.images import MAX_PIXELS, BadImage, decode
from czsl.data.importing.problems import ImageRow, Problem, count_duplicates, count_kinds, duplicate_problems, space_problems
from czsl.data.importing.writer import data_sha256
from czsl.data.table import Dataset, open_data, open_shard
from czsl.errors import DataError
from czsl.reading import PathLike, parquet_errors
from czsl.threads import ordered_map


class Stored(NamedTuple):
    """One row as it stands in a shard of ``split``."""

    row: ImageRow
    image: bytes
    split: str


@dataclass
class VerifyReport:
    """Result of :func:`verify`; ``bad`` counts the problems that make the data unusable."""

    folder: str
    name: str
    sha256: str
    images: dict[str, int]
    duplicates: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Count the problems that make the data unusable."""
        return sum(problem.bad for problem in self.problems)

    def to_json(self) -> dict:
        """The report as plain data; ``kinds`` counts the problems by kind."""
        problems = [problem.to_json() for problem in self.problems]
        return {**self.__dict__, "bad": self.bad, "kinds": count_kinds(self.problems), "problems": problems}


def verify(
    folder: PathLike,
    max_pixels: int = MAX_PIXELS,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check a dataset folder (or ``toy``) completely.

    Unusable are: an unreadable shard, an image that does not decode or is not the one that was imported, a repeated id, a
    label outside the lists of its split, and counts or a data hash that differ. Listed without harm are identical images,
    conflicting labels, pairs (or classes) without images, and held-out pairs with an attribute or object that is never trained.

    Parameters
    ----------
    folder : path
    max_pixels : int
        As on import.
    workers : int
        Threads; 0: one for each CPU, at most 8.
    progress : callable (done, total), optional

    Raises
    ------
    DataError
        The folder is not a dataset folder, or its small files are damaged.
    """
    folder = Path(folder)
    dataset = open_data(folder)
    report = VerifyReport(str(dataset.folder), dataset.name, dataset.sha256, dict.fromkeys(SPLITS, 0))
    allowed = _allowed(dataset)
    rows: dict[str, ImageRow] = {}
    total = sum(dataset.counts.values())

    def check(stored: Stored) -> tuple[Stored, list[Problem]]:
        return stored, list(_image_problems(stored, max_pixels))

    results = ordered_map(check, _stored(dataset, report.problems), workers)
    for done, (stored, problems) in enumerate(results, 1):
        row = stored.row
        report.problems += problems
        report.images[stored.split] += 1
        if row.id in rows:
            report.problems.append(_bad("repeated id", row.id))
        if row.split != stored.split or (row.attr, row.obj) not in allowed[stored.split]:
            report.problems.append(_bad("wrong label", row.id, f"'{row.label}' is not a {stored.split} {dataset.space.noun}"))
        rows[row.id] = row
        if progress:
            progress(done, total)
    report.problems += duplicate_problems(rows.values()) + space_problems(dataset.space, list(rows.values()))
    report.duplicates = count_duplicates(rows.values())
    report.problems += _total_problems(dataset, report.images, rows)
    return report


def _stored(dataset: Dataset, problems: list[Problem]) -> Iterator[Stored]:
    for split in SPLITS:
        for path in dataset.shard_paths(split):
            try:
                with open_shard(path) as shard:
                    for group in range(shard.num_row_groups):
                        for item in shard.read_row_group(group, use_threads=False).to_pylist():
                            if None in item.values():
                                problems.append(_bad("empty cell", str(item["id"]), path.name))
                                continue
                            yield Stored(ImageRow(**{name: item[name] for name in ImageRow._fields}), item["image"], split)
            except parquet_errors() as error:
                problems.append(_bad("unreadable shard", path.name, " ".join(str(error).split())))
            except DataError as error:
                problems.append(_bad("unreadable shard", path.name, error.why))


def _image_problems(stored: Stored, max_pixels: int) -> Iterator[Problem]:
    if hashlib.sha256(stored.image).hexdigest() != stored.row.sha256:
        yield _bad("changed image", stored.row.id, "its bytes have another hash than on import")
    try:
        decode(stored.image, max_pixels)
    except BadImage as error:
        yield _bad(error.kind, stored.row.id, error.reason)


def _total_problems(dataset: Dataset, images: dict[str, int], rows: dict[str, ImageRow]) -> Iterator[Problem]:
    for split in SPLITS:
        if images[split] != dataset.counts[split]:
            yield _bad("wrong number of images", split, f"{images[split]}, dataset.json says {dataset.counts[split]}")
    if data_sha256(dataset.space, rows.values()) != dataset.sha256:
        yield _bad("changed data", dataset.folder.name, "ids, hashes, labels or space differ from the import")
    for path in sorted(dataset.folder.glob("*.parquet")):
        if path.name not in dataset.shards and not path.name.startswith(
            "candidates-"
        ):  # partial labels, checked where they are used
            yield Problem("unlisted file", (path.name,), "found", "dataset.json does not name it")


def _allowed(dataset: Dataset) -> dict[str, set[tuple[str, str]]]:
    space = dataset.space
    return {split: {space.pair_names(pair) for pair in getattr(space, f"{split}_pairs")} for split in SPLITS}


def _bad(kind: str, where: str, detail: str = "") -> Problem:
    return Problem(kind, (where,), "found", detail, bad=True)
