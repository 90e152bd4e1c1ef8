"""Partial labels: for each training image the set of seen pairs among which the true one is, as a sidecar of a dataset.

``candidates-<kind>-<q>-<seed>.parquet`` has the columns ``id`` and ``candidates`` (ascending indices into the space's training
pairs) and names in its metadata the data it was made for. It never contains the true label, and training on it never reads the true labels.
Letters: N images of the training split, C seen pairs, S the largest number of candidate labels.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from czsl.compositions import CompositionSpace
from czsl.data.table import Dataset
from czsl.errors import DataError, UsageError, did_you_mean
from czsl.reading import PathLike, parquet_errors, parse_json, read_text
from czsl.runs.files import write_atomically
from czsl.runs.settings import typed

FORMAT = 1
KEY = b"czsl.partial_labels"
MAX_BYTES = 2 * 2**30
SCHEMA = pa.schema([("id", pa.string()), ("candidates", pa.list_(pa.int32()))])
MAKE = "make it with: czsl data partial DATA"
SHAPE = 'write {"image": ["wet dog", ["dry", "cat"]]}, or a CSV with the columns image, attr, obj (or image, class)'


@dataclass(frozen=True)
class Origin:
    """Origin of candidate sets: how they were drawn, its numbers, and the data they belong to (SHA-256)."""

    kind: str
    q: float | None
    seed: int | None
    data: str
    split: str
    force_one: bool = False
    noise_rate: float = 0.0


@dataclass(frozen=True)
class PartialLabels:
    """Candidate sets of the training images, in the order of the split.

    index : int64 [N, S], ascending, padded with -1
    origin : Origin
    sha256 : of the file; empty before it is written
    """

    index: np.ndarray
    origin: Origin
    sha256: str = ""

    @property
    def sizes(self) -> np.ndarray:
        """|S| of each image, int64 [N]."""
        return (self.index >= 0).sum(1)

    @property
    def file_name(self) -> str:
        """``candidates-<kind>-<q>-<seed>.parquet``; without numbers where it was read from a file."""
        o = self.origin
        numbers = "" if o.q is None else f"-{o.q:g}-{o.seed}"
        return f"candidates-{o.kind}{numbers}{'-noisy' if o.noise_rate else ''}.parquet"


def split_sha256(ids: Iterable[str]) -> str:
    """Identity of a split's images and their order."""
    return hashlib.sha256("".join(f"{identity}\n" for identity in ids).encode()).hexdigest()


def padded(sets: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Sets as the rows of an array, ascending, padded with -1: int64 [N, S]."""
    index_NS = np.full((len(sets), max(map(len, sets), default=0)), -1, np.int64)
    for row, members in zip(index_NS, sets, strict=True):
        row[: len(members)] = sorted(members)
    return index_NS


# -- the sidecar -------------------------------------------------------------------------------------------------------
def write_partial_labels(path: PathLike, labels: PartialLabels, ids: Sequence[str]) -> str:
    """Write the sidecar (all or nothing); returns the SHA-256 of the file."""
    path = Path(path)
    lists = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], labels.sizes.cumsum()]), pa.int32()),
        pa.array(labels.index[labels.index >= 0], pa.int32()),
    )
    about = {KEY: json.dumps({"format": FORMAT, **asdict(labels.origin)}).encode()}
    table = pa.table([pa.array(ids, pa.string()), lists], schema=SCHEMA.with_metadata(about))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_partial_labels(path: PathLike, data: Dataset) -> PartialLabels:
    """The sidecar of a dataset, checked against it.

    Raises
    ------
    DataError
        Not such a file, made for other data, or an image with no candidate labels, with one twice or with one outside the seen pairs.
    """
    path = Path(path)
    path, ids = Path(path), data.split("train").ids
    table, about, sha256 = _read(path)
    for what, there, here in (
        ("data (SHA-256)", about.data, data.sha256),
        ("training images (SHA-256)", about.split, split_sha256(ids)),
    ):
        if there != here:
            raise DataError(f"{path} was made for other {what}", f"{there[:16]} there, {here[:16]} in {data.name}", MAKE)
    if table["id"].to_pylist() != ids:
        raise DataError(f"{path} does not list the training images", f"{table.num_rows:,} rows, {len(ids):,} images", MAKE)
    lists = table["candidates"].combine_chunks()
    sizes_N, flat = np.diff(lists.offsets.to_numpy()), lists.flatten().to_numpy(zero_copy_only=False)
    if lists.null_count or len(flat) != sizes_N.sum() or (sizes_N == 0).any():
        raise _empty(path, [ids[i] for i in np.flatnonzero((sizes_N == 0) | ~np.asarray(lists.is_valid()))])
    index_NS = np.full((len(ids), int(sizes_N.max(initial=0))), -1, np.int64)
    index_NS[np.arange(index_NS.shape[1]) < sizes_N[:, None]] = flat
    limit = len(data.space.train_pairs)
    if lists.flatten().null_count or (outside := (flat < 0) | (flat >= limit)).any():
        image = (
            ids[int(np.repeat(np.arange(len(ids)), sizes_N)[np.argmax(outside)])] if not lists.flatten().null_count else ids[0]
        )
        raise DataError(f"{path}: {image} has a candidate label outside the label space", f"{limit} training pairs", MAKE)
    if ((np.diff(index_NS, axis=1) <= 0) & (index_NS[:, 1:] >= 0)).any():
        raise DataError(f"{path} has candidate labels out of order or twice", "each set must be ascending", MAKE)
    return PartialLabels(index_NS, about, sha256)


def _read(path: Path) -> tuple[pa.Table, Origin, str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is too large for partial labels", f"limit {MAX_BYTES:,} bytes", "is it the right file?")
        content = path.read_bytes()
        file = pq.ParquetFile(io.BytesIO(content))
        if not file.schema_arrow.equals(SCHEMA):
            raise DataError(f"{path} is not a partial-label file", f"columns: {', '.join(file.schema_arrow.names)[:200]}", MAKE)
        about = parse_json((file.schema_arrow.metadata or {}).get(KEY, b"{}"), path)
        if about.pop("format", None) != FORMAT:
            raise DataError(
                f"{path} is not a partial-label file of format {FORMAT}",
                "its metadata key `format` is missing or has another value",
                MAKE,
            )
        return file.read(use_threads=False), Origin(**typed(about, Origin)), hashlib.sha256(content).hexdigest()
    except FileNotFoundError:
        raise DataError(f"no file {path}", "no partial labels there", MAKE) from None
    except (*parquet_errors(), AttributeError, UsageError) as error:  # type: ignore[misc]
        raise DataError(f"{path} cannot be read as partial labels", " ".join(str(error).split())[:200], MAKE) from None


def _empty(source: str | Path, images: Sequence[str]) -> DataError:
    shown = ", ".join(images[:3]) + (", ..." if len(images) > 3 else "")
    return DataError(
        f"{source}: {len(images):,} training images have no candidate labels",
        shown,
        "give each training image at least one seen pair",
    )


# -- files of a user's own ---------------------------------------------------------------------------------------------
def partial_labels_from_file(path: PathLike, data: Dataset) -> PartialLabels:
    """Candidate sets that a user wrote; a label is a seen pair.

    JSON ``{image: [label, ..]}``, or CSV with a line for each candidate label (image, attr, obj, or image, class).

    Raises
    ------
    DataError
        An unknown label or image, a training image without candidate labels, or a file of another form.
    """
    path = Path(path)
    named = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    split, space = data.split("train"), data.space
    if unknown := sorted(set(named) - set(split.ids)):
        near = difflib.get_close_matches(unknown[0], split.ids, n=1)
        raise DataError(
            f"{path}: {len(unknown):,} images that training does not have",
            f"{unknown[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            "name images as `czsl data export` and predictions do, and training images only",
        )
    places = _label_places(space)
    sets = [sorted({_place(label, places, f"{path}: {i}") for label in named.get(i, ())}) for i in split.ids]
    if missing := [i for i, members in zip(split.ids, sets, strict=True) if not members]:
        raise _empty(path, missing)
    return PartialLabels(padded(sets), Origin("file", None, None, data.sha256, split_sha256(split.ids)))


def _label_places(space: CompositionSpace) -> dict[Any, int]:
    """Places of the seen pairs by (attribute, object) and, where only one pair is written so, by ``"attribute object"``."""
    places: dict[Any, int] = {}
    for place, pair in enumerate(space.train_pairs):
        names = space.pair_names(pair)
        text = " ".join(filter(None, names))
        places[names] = place
        places[text] = -1 if text in places else place
    return places


def _place(label: Any, places: Mapping[Any, int], where: str) -> int:
    key = tuple(label) if isinstance(label, list) and all(isinstance(x, str) for x in label) else label
    place = places.get(key) if isinstance(key, str | tuple) else None
    if place == -1:
        raise DataError(
            f"{where}: two seen pairs are written {key!r}",
            "the text does not tell which of them is meant",
            'write ["attribute", "object"]',
        )
    if place is None:
        text = " ".join(key) if isinstance(key, tuple) else str(key)
        hint = did_you_mean(text, [k for k in places if isinstance(k, str)])
        raise DataError(f"{where}: {text[:100]!r} is not a seen pair", hint, "candidate labels are training pairs")
    return place


def _content(path: Path) -> str:
    return read_text(path, max_bytes=MAX_BYTES, fix=SHAPE)


def _read_json(path: Path) -> dict[str, list]:
    content = parse_json(_content(path), path, fix=SHAPE)
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise DataError(f"{path} holds no candidate sets", "a mapping of images to lists of labels is expected", SHAPE)
    return content


def _read_csv(path: Path) -> dict[str, list]:
    named: dict[str, list] = {}
    reader = csv.DictReader(io.StringIO(_content(path)))
    try:
        for row in reader:
            named.setdefault(row["image"], []).append(["", row["class"]] if "class" in row else [row["attr"], row["obj"]])
    except (KeyError, csv.Error) as error:
        columns = ", ".join(reader.fieldnames or [])[:200]
        raise DataError(f"{path} lacks a column or is not CSV", f"{error}; columns: {columns}", SHAPE) from None
    return named
