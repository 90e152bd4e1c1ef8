"""Reading a dataset folder: labels as arrays, image bytes streamed or one at a time.

The folder holds Parquet shards of each split (`train-00000.parquet`, ...; columns id, image, attr, obj, split, sha256),
`space.json`, `dataset.json` (format, name, counts, hash of the data, shards, how to decode) and `import.json` (problems found on import).
`czsl.data.importing.writer` writes it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from czsl.compositions import SPLITS, CompositionSpace
from czsl.data.importing.problems import ImageRow
from czsl.data.importing.writer import FORMAT, SCHEMA, Record, write_dataset
from czsl.data.paths import cache_folder
from czsl.data.photographs import AS_SHOWN, AS_STORED, DecodeOptions
from czsl.errors import DataError, UsageError
from czsl.reading import PathLike, parquet_errors, read_json
from czsl.spaces import load_space

__all__ = ["Dataset", "Record", "Split", "cache_folder", "open_data", "write_dataset"]

_SHARD = re.compile(r"(train|val|test)-\d{5}\.parquet")


class Dataset:
    """A dataset folder, opened by :meth:`open`; only small files are read before the first access to a split.

    Attributes
    ----------
    folder : Path
    name : str
    sha256 : str
        Identity of the data: ids, image hashes, labels, splits and the space, independent of shards and order.
    space : CompositionSpace
    decode : DecodeOptions
        How its images are meant to be decoded; as stored if ``dataset.json`` does not say. A run overrides it with its own
        (:func:`open_data`). The hash does not depend on it.
    """

    def __init__(self, folder: PathLike, content: dict, space: CompositionSpace):
        folder = Path(folder)
        self.folder, self.space = folder, space
        self.name: str = content["name"]
        self.sha256: str = content["sha256"]
        self.counts: dict[str, int] = content["images"]
        self.shards: dict[str, int] = content["shards"]
        self.decode = DecodeOptions(**content.get("decode", AS_STORED.to_json()))
        self._splits: dict[str, Split] = {}

    @classmethod
    def open(cls, folder: PathLike) -> Dataset:
        """Open a dataset folder.

        Raises
        ------
        DataError
            Not a dataset folder, of a newer format, damaged, or a shard is missing.
        """
        folder = Path(folder)
        path = folder / "dataset.json"
        if not path.is_file():
            why = "it has no dataset.json" if folder.is_dir() else "no such folder"
            source, dest = (folder, "DEST") if folder.is_dir() else ("SOURCE", folder)
            raise DataError(f"{folder} is not a dataset folder", why, f"make one with: czsl data import {source} {dest}")
        content = _read_description(path)
        missing = [name for name in content["shards"] if not (folder / name).is_file()]
        if missing:
            raise DataError(f"{folder} lacks {', '.join(missing)}", "the folder is incomplete", "import or copy it again")
        return cls(folder, content, load_space(folder / "space.json"))

    def split(self, name: str) -> Split:
        """The images of ``train``, ``val`` or ``test`` (possibly none); UsageError for another name."""
        if name not in SPLITS:
            raise UsageError(f"no split {name!r}", "the dataset has no such split", f"one of: {', '.join(SPLITS)}")
        if name not in self._splits:
            self._splits[name] = Split(self, name)
        return self._splits[name]

    def shard_paths(self, split: str) -> list[Path]:
        """The shard files of a split, in the order of their rows."""
        return [self.folder / name for name in sorted(self.shards) if name.startswith(f"{split}-")]


class Split:
    """One split of a dataset: N images in a fixed order.

    Attributes
    ----------
    ids : list of str
        Stable names.
    attr, obj : int64 array [N]
        Indices into the space's attributes and objects.
    sha256 : list of str
        SHA-256 of each image's bytes.
    decode : DecodeOptions
        How the images are decoded.
    """

    def __init__(self, dataset: Dataset, name: str):
        self.name, self.space, self.decode = name, dataset.space, dataset.decode
        self.paths = dataset.shard_paths(name)
        tables = [read_labels(path) for path in self.paths]
        table = pa.concat_tables(tables) if tables else SCHEMA.empty_table().drop_columns(["image"])
        expected = sum(dataset.shards[path.name] for path in self.paths)
        if table.num_rows != expected:
            raise damaged(dataset.folder, f"{name} has {table.num_rows} images, dataset.json says {expected}")
        self.ids: list[str] = table["id"].to_pylist()
        self.sha256: list[str] = table["sha256"].to_pylist()
        self.attr = _indices(table["attr"], self.space.attributes, dataset.folder)
        self.obj = _indices(table["obj"], self.space.objects, dataset.folder)
        self._last: tuple[int, list[bytes]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pairs(self) -> np.ndarray:
        """The true pair of each image, int64 [N, 2]."""
        return np.stack([self.attr, self.obj], axis=1)

    def rows(self) -> Iterator[ImageRow]:
        """Ids, hashes and labels by name."""
        names = zip(self.attr.tolist(), self.obj.tolist(), strict=True)
        for identity, digest, (a, o) in zip(self.ids, self.sha256, names, strict=True):
            yield ImageRow(identity, digest, self.space.attributes[a], self.space.objects[o], self.name)

    def iter_images(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Rows ``start`` to ``stop`` with their bytes, in order; holds one row group (at most about 64 MB) at a time."""
        stop = len(self) if stop is None else min(stop, len(self))
        for group in range(len(self.groups)):
            first, after = self.groups[group][0], self.groups[group][1]
            if after <= start or first >= stop:
                continue
            images = self._read_group(group)
            for row in range(max(first, start), min(after, stop)):
                yield row, images[row - first]

    def image_bytes(self, row: int) -> bytes:
        """The bytes of one image as found; reads its row group, and keeps it for the next call."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        group = next(g for g, (first, after, _, _) in enumerate(self.groups) if first <= row < after)
        kept = self._last
        if kept is None or kept[0] != group:
            kept = self._last = (group, self._read_group(group))
        return kept[1][row - self.groups[group][0]]

    @cached_property
    def groups(self) -> list[tuple[int, int, Path, int]]:
        """First row, row after the last, file and number in the file of every row group."""
        groups, first = [], 0
        for path in self.paths:
            metadata = open_shard(path).metadata
            for number in range(metadata.num_row_groups):
                after = first + metadata.row_group(number).num_rows
                groups.append((first, after, path, number))
                first = after
        return groups

    def _read_group(self, group: int) -> list[bytes]:
        _, _, path, number = self.groups[group]
        try:
            with open_shard(path) as shard:
                images = shard.read_row_group(number, columns=["image"], use_threads=False)["image"].to_pylist()
        except parquet_errors() as error:
            raise damaged(path, str(error)) from None
        if None in images:
            raise damaged(path, "an image is missing")
        return images


def open_data(where: PathLike, decode: DecodeOptions | None = None) -> Dataset:
    """Open a dataset folder, or the built-in data: ``toy`` (a folder of that name is ``./toy``).

    Parameters
    ----------
    where : str or path
    decode : DecodeOptions, optional
        Those of a run, whose images are decoded as when it was trained; by default the dataset's own.

    Raises
    ------
    DataError
        ``where`` is neither.
    """
    where = Path(where)
    data = _open_toy() if str(where) == "toy" else Dataset.open(where)
    data.decode = decode or data.decode
    return data


def open_shard(path: PathLike) -> pq.ParquetFile:
    """Open one shard and check its columns; DataError if it is damaged."""
    path = Path(path)
    try:
        shard = pq.ParquetFile(path)
        columns = ", ".join(shard.schema_arrow.names)
    except parquet_errors() as error:
        raise damaged(path, str(error)) from None
    if not shard.schema_arrow.equals(SCHEMA):
        raise damaged(path, f"its columns are {columns}")
    return shard


def read_labels(path: PathLike) -> pa.Table:
    """All columns of a shard but the images."""
    path = Path(path)
    try:
        with open_shard(path) as shard:
            table = shard.read(columns=[name for name in SCHEMA.names if name != "image"], use_threads=False)
            table.validate(full=True)
    except parquet_errors() as error:
        raise damaged(path, str(error)) from None
    if any(column.null_count for column in table.columns):
        raise damaged(path, "it has empty cells")
    return table


def damaged(where: PathLike, why: str) -> DataError:
    """The error of a dataset folder that is not as it was written."""
    where = Path(where)
    why = " ".join(why.split())
    return DataError(f"{where} is damaged", why, "look with: czsl data verify FOLDER; then import or copy it again")


def _read_description(path: Path) -> dict:
    try:
        content = read_json(path)
        version = content["format"]
        if version != FORMAT:
            raise DataError(f"{path} has format {version!r}", f"this czsl reads format {FORMAT}", "import the data again")
        if not isinstance(content["name"], str) or not isinstance(content["sha256"], str):
            raise TypeError("name and sha256 are text")
        if set(content["images"]) != set(SPLITS) or not all(map(_SHARD.fullmatch, content["shards"])):
            raise ValueError("unknown splits or shard names")
        if not all(type(n) is int and n >= 0 for part in ("images", "shards") for n in content[part].values()):
            raise TypeError("counts are numbers")
        DecodeOptions(**content.get("decode", {}))
        return content
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None


def _indices(column: pa.ChunkedArray, names: tuple[str, ...], folder: Path) -> np.ndarray:
    place = {name: i for i, name in enumerate(names)}
    try:
        return np.array([place[name] for name in column.to_pylist()], dtype=np.int64)
    except KeyError as error:
        raise damaged(folder, f"the label {error} is not in space.json") from None


def _open_toy() -> Dataset:
    from czsl.data.toy import dataset as toy

    folder = cache_folder() / f"toy-{_drawing_version()}"
    try:
        kept = Dataset.open(folder)
        for split in map(kept.split, SPLITS):
            if any(hashlib.sha256(png).hexdigest() != split.sha256[row] for row, png in split.iter_images()):
                raise damaged(folder, "a picture was changed")
        return kept
    except DataError:
        if folder.exists():  # damaged: draw it again
            shutil.rmtree(folder)
    records = (Record(name, png, attr, obj, split) for name, attr, obj, split, png in toy.samples())
    try:
        write_dataset(folder, toy.space(), records, "toy", decode=AS_SHOWN)
    except (UsageError, OSError):
        if not (folder / "dataset.json").is_file():  # else another process was faster
            raise
    return Dataset.open(folder)


def _drawing_version() -> str:
    """A hash of the code that draws the toy: changed code never meets pictures drawn before."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parent / "toy").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
