"""Writing a dataset folder: Parquet shards, `space.json`, `dataset.json` and the list of problems, all or nothing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from czsl.compositions import SPLITS, CompositionSpace
from czsl.data.importing.problems import ImageRow, Problem
from czsl.data.photographs import DecodeOptions
from czsl.errors import DataError, UsageError
from czsl.reading import PathLike
from czsl.runs.files import whole_folder, write_json

FORMAT = 1
SHARD_BYTES = 256 * 2**20
GROUP_IMAGES = 256
GROUP_BYTES = 64 * 2**20  # bounds the memory of a reader, however large the images are

SCHEMA = pa.schema(
    [("id", pa.string()), ("image", pa.binary())] + [(name, pa.string()) for name in ("attr", "obj", "split", "sha256")]
)


class Record(NamedTuple):
    """One image to write: its stable name, the file's bytes as found, its labels and its split."""

    id: str
    image: bytes
    attr: str
    obj: str
    split: str


def data_sha256(space: CompositionSpace, rows: Iterable[ImageRow]) -> str:
    """Identity of the data: a hash over the rows sorted by id, and the space; shards and file order do not matter."""
    digest = hashlib.sha256()
    for row in sorted(rows):
        digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    digest.update(json.dumps(space.to_json(), ensure_ascii=True, separators=(",", ":"), sort_keys=True).encode())
    return digest.hexdigest()


def write_dataset(
    dest: PathLike,
    space: CompositionSpace,
    records: Iterable[Record],
    name: str,
    problems: Sequence[Problem] = (),
    force: bool = False,
    read_as: Mapping[str, Any] | None = None,
    decode: DecodeOptions | None = None,
) -> dict:
    """Write a dataset folder and return the content of its ``dataset.json``.

    Everything goes to a temporary folder next to ``dest``, which is renamed at the end: an error or an interruption leaves
    no files.

    Parameters
    ----------
    dest : Path
        A folder that is absent or empty; with ``force``, also a dataset folder, which is replaced.
    space : CompositionSpace
        The labels, and the pairs of each split.
    records : iterable of Record
        Consumed once, in any order; the order within a split is that of the written rows.
    name : str
        The dataset's name, for people.
    problems : sequence of Problem
        Written to ``import.json`` after the last record, so ``records`` may still add to it.
    force : bool
        Replace an existing dataset folder.
    read_as : mapping, optional
        What an import took for what, kept in ``dataset.json``.
    decode : DecodeOptions, optional
        How the images are meant to be decoded; remembered in ``dataset.json``. Without it, as stored.

    Raises
    ------
    UsageError
        ``dest`` holds something.
    DataError
        An id occurs twice, a pair is not in the list of its split, or the records are empty.
    """
    dest = Path(dest)
    check_destination(dest, force)
    with whole_folder(dest, replace=force) as temporary:
        content = _write_files(temporary, space, records, name, problems, read_as, decode)
        check_destination(dest, force)  # another process may have been faster
    return content


def check_destination(dest: PathLike, force: bool = False) -> None:
    """Refuse a destination that holds something (UsageError); ``force`` allows a dataset folder, never anything else."""
    dest = Path(dest)
    if not dest.exists() and not dest.is_symlink():
        return
    if not dest.is_dir() or dest.is_symlink():
        raise UsageError(f"{dest} is not a folder", "a dataset is a folder of several files", "give a new folder")
    if not any(dest.iterdir()):
        return
    if not (dest / "dataset.json").is_file():
        raise UsageError(
            f"{dest} is not empty and is not a dataset folder",
            "its files would be mixed with the dataset",
            "give a new or empty folder",
        )
    if not force:
        raise UsageError(f"{dest} already holds a dataset", "it would be replaced", "give a new folder, or --force to replace it")


def _write_files(folder, space, records, name, problems, read_as, decode) -> dict:
    allowed = {
        split: {(space.attributes[a], space.objects[o]) for a, o in getattr(space, f"{split}_pairs").tolist()} for split in SPLITS
    }
    writers = {split: SplitWriter(folder, split) for split in SPLITS}
    rows: dict[str, ImageRow] = {}
    try:
        for record in records:
            row = ImageRow(record.id, hashlib.sha256(record.image).hexdigest(), record.attr, record.obj, record.split)
            if record.id in rows:
                raise DataError(
                    f"the id {record.id!r} occurs twice", "an id names one image", "give every image a name of its own"
                )
            if (record.attr, record.obj) not in allowed.get(record.split, ()):
                raise DataError(
                    f"{record.id}: {row.label!r} is not a {record.split} {space.noun} of the space",
                    "the lists of pairs and the labels of images disagree",
                    "add the pair to the lists, or correct the label",
                )
            rows[record.id] = row
            writers[record.split].add(row, record.image)
        for writer in writers.values():
            writer.close()
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    if not rows:
        raise DataError(
            "the source has no usable image", "every image was refused, or none was found", "is this the right folder?"
        )
    content = {
        "format": FORMAT,
        "name": name,
        "sha256": data_sha256(space, rows.values()),
        "images": {split: Counter(row.split for row in rows.values())[split] for split in SPLITS},
        "shards": {file: count for split in SPLITS for file, count in writers[split].shards.items()},
        **({"read_as": dict(read_as)} if read_as else {}),
    }
    if decode is not None:
        content["decode"] = decode.to_json()
    space.save(folder / "space.json")
    write_json(folder / "import.json", {"problems": [problem.to_json() for problem in problems]})
    write_json(folder / "dataset.json", content)
    return content


class SplitWriter:
    """The shards of one split: row groups of `GROUP_IMAGES`, a new file after `SHARD_BYTES`."""

    def __init__(self, folder: PathLike, split: str):
        folder = Path(folder)
        self.folder, self.split = folder, split
        self.shards: dict[str, int] = {}
        self._file: pq.ParquetWriter | None = None
        self._file_bytes = self._group_bytes = 0
        self._rows: list[tuple[ImageRow, bytes]] = []

    def add(self, row: ImageRow, image: bytes) -> None:
        """Append one image."""
        self._rows.append((row, image))
        self._group_bytes += len(image)
        if len(self._rows) >= GROUP_IMAGES or self._group_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._rows:
            self._flush()
        self._close_file()

    def abandon(self) -> None:
        """Let go of a file that will not be whole; on a full disk closing fails as writing did."""
        with suppress(OSError, pa.ArrowException):
            self._close_file()

    def _flush(self) -> None:
        if self._file is None:
            name = f"{self.split}-{len(self.shards):05d}.parquet"
            self.shards[name] = 0
            self._file = pq.ParquetWriter(
                self.folder / name,
                SCHEMA,
                compression={c: "none" if c == "image" else "zstd" for c in SCHEMA.names},
                use_dictionary=["attr", "obj", "split"],
                write_statistics=False,
            )
        columns = {field: [getattr(row, field) for row, _ in self._rows] for field in ImageRow._fields}
        columns["image"] = [image for _, image in self._rows]
        table = pa.table([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA)
        self._file.write_table(table, row_group_size=len(self._rows))
        self.shards[next(reversed(self.shards))] += len(self._rows)
        self._file_bytes += self._group_bytes
        self._rows, self._group_bytes = [], 0
        if self._file_bytes >= SHARD_BYTES:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file, self._file_bytes = None, 0
