"""From a split to batches: sample order, stratified parts, and caches of what does not change.

Decoding and resizing happen once: the pixels of a split are kept as bytes in a memory-mapped file of the user's cache folder, next
to the image features of frozen towers. What is left for a training step is a copy and the augmentation.
Letters: N images of a split, B images of a batch, S image side, D joint width.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from czsl.data.augment import augment, id_keys
from czsl.data.images import decode
from czsl.data.paths import cache_folder
from czsl.data.table import Split
from czsl.errors import DataError
from czsl.gpus import onto
from czsl.reading import PathLike, read_array
from czsl.runs.files import whole_file

DECODE_CHUNK = 256
log = logging.getLogger("czsl")


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch, a permutation of 0..count-1: a function of (seed, epoch) and nothing else."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def epoch_batches(seed: int, epoch: int, count: int, batch: int) -> list[np.ndarray]:
    """Global batches of an epoch; a last batch of one image joins the one before it, for batch statistics need two."""
    if not count:
        return []
    parts = np.split(epoch_order(seed, epoch, count), range(batch, count, batch))
    if len(parts) > 1 and len(parts[-1]) == 1 < batch:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def steps_per_epoch(count: int, batch: int) -> int:
    """Number of batches that :func:`epoch_batches` makes."""
    full, rest = divmod(count, batch)
    return full + (rest > 1 or (rest == 1 and full == 0))


def stratified(attr_N: np.ndarray, obj_N: np.ndarray, per_pair: int, seed: int) -> np.ndarray:
    """Rows with at most ``per_pair`` images of each pair, in ascending order; 0 takes all."""
    if not per_pair:
        return np.arange(len(attr_N))
    shuffled = np.random.Generator(np.random.Philox(key=[seed, 0x57A7])).permutation(len(attr_N))
    keys = np.stack([attr_N, obj_N], axis=1)[shuffled]
    _, group = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    starts = np.searchsorted(group.reshape(-1)[order], np.arange(group.max(initial=-1) + 1))
    rank = np.arange(len(order)) - starts[group.reshape(-1)[order]]
    return np.sort(shuffled[order[rank < per_pair]])


STEP = 16  # rows: a product's last digits are the same for every multiple of it, see the predictor


def evaluation_batches(count: int, size: int) -> list[np.ndarray]:
    """Batches of ``size`` rows, cut once, whatever the number of workers.

    The last batch repeats its last row up to a multiple of 16 rows, or up to ``size`` if that is less: few images cost little.
    """
    if not count:
        return []
    whole = count // size * size
    last = min(-(-(count - whole) // STEP) * STEP, size)
    rows = np.arange(whole + last).clip(max=count - 1)
    return np.split(rows, range(size, len(rows), size))


class PixelCache:
    """Decoded, resized and cropped images of a split, uint8 [N, 3, S, S], memory-mapped.

    Parameters
    ----------
    split : Split
    size : int
        Image side S.
    prepare : callable
        PIL image and id -> ``{"images": uint8 [3, S, S]}``.
    progress : callable, optional
        Called with the number of images done while the cache is built.
    kind : str, optional
        Names what ``prepare`` does where that is not CLIP's own pipeline.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        prepare: Callable[[Image.Image, str], dict[str, Tensor]],
        progress: Callable[[int], None] = lambda done: None,
        kind: str = "",
    ):
        self.split, self.size = split, size
        self.keys = id_keys(split.ids)
        path = pixel_file(split, size, kind)
        shape = (len(split), 3, size, size)
        pixels = kept_array(path, np.uint8, shape)
        if pixels is None:
            self._build(path, shape, prepare, progress)
            pixels = read_array(path, mapped=True)
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.split)

    def _build(self, path: Path, shape: tuple[int, ...], prepare: Callable, progress: Callable[[int], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)

            def fill(item: tuple[int, bytes]) -> None:
                row, content = item
                image = decode(content, options=self.split.decode)
                pixels[row] = prepare(image, self.split.ids[row])["images"].numpy()

            images = self.split.iter_images()
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes outside the interpreter lock
                while chunk := list(islice(images, DECODE_CHUNK)):
                    list(pool.map(fill, chunk))
                    progress(chunk[-1][0] + 1)
            pixels.flush()

    def batch(
        self, rows_B: np.ndarray, augmentation: tuple[int, int] | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """uint8 images [B, 3, S, S] on a device; ``augmentation`` is (seed, epoch)."""
        images = onto(torch.from_numpy(np.ascontiguousarray(self.pixels[rows_B])), device)
        return images if augmentation is None else augment(images, self.keys[rows_B], *augmentation)


def prepared_batch(
    split: Split, rows_B: np.ndarray, prepare: Callable[[Image.Image, str], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Prepare these rows and stack the results by key [B, ...]; nothing is cached, a repeated row is prepared once."""
    contents = {row: split.image_bytes(row) for row in sorted(set(rows_B.tolist()))}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = pool.map(lambda r: prepare(decode(contents[r], options=split.decode), split.ids[r]), contents)
        prepared = dict(zip(contents, images, strict=True))
    rows = [prepared[row] for row in rows_B.tolist()]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def pixel_file(split: Split, size: int, kind: str = "") -> Path:
    """Path of the kept pixels of a split; ``kind`` names their preprocessing, if it is not CLIP's own pipeline."""
    return cache_folder() / "pixels" / f"{'-'.join(filter(None, (split_key(split), str(size), kind)))}.npy"


def split_key(split: Split) -> str:
    """Names the images of a split in their order and how they are decoded; caches of rows are kept under it."""
    digest = hashlib.blake2b(digest_size=10)
    for name, sha256 in zip(split.ids, split.sha256, strict=True):
        digest.update(f"{name}\n{sha256}\n".encode())
    if split.decode.key:
        digest.update(split.decode.key.encode())
    return f"{split.name}-{digest.hexdigest()}"


def feature_file(split: Split, clip_sha256: str, arithmetic: str = "float32-cpu1", cache_key: str = "") -> Path:
    """Return the cache file of the frozen tower's image features [N, D] of a split.

    ``arithmetic`` names all that their last bits follow from: precision, kind of device, number of CPU threads. ``cache_key`` names
    how images are prepared.
    """
    kind = f"-{hashlib.blake2b(cache_key.encode(), digest_size=8).hexdigest()}" if cache_key else ""
    return cache_folder() / "features" / f"{split_key(split)}-{clip_sha256[:20]}-{arithmetic}{kind}.npy"


def load_features(path: PathLike, count: int) -> Tensor | None:
    """Cached features [N, D]; None if no such file exists, it belongs to another split, or it is damaged.

    They stay in the file, which all processes of a node map; a write to the tensor does not reach it.
    """
    path = Path(path)
    features = kept_array(path, np.float32, (count, None))
    if features is None:
        return None
    if isinstance(features, np.memmap) and features.flags.c_contiguous:
        return torch.from_numpy(np.memmap(path, features.dtype, "c", features.offset, features.shape))
    return torch.from_numpy(np.array(features))


def kept_array(path: PathLike, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray | None:
    """A mapped array of a cache; None if it is missing, damaged or of another form. None in ``shape``: any size."""
    path = Path(path)
    if not path.exists():
        return None
    try:
        array = read_array(path, mapped=True)
    except DataError as error:
        log.warning("the cache %s is damaged (%s) and made again", path, error.why)
        return None
    fits = len(array.shape) == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    return array if fits and array.dtype == dtype else None


def save_features(path: PathLike, features_ND: Tensor) -> None:
    """Keep features; several processes may do so at once. The parts of an unfinished pass go."""
    path = Path(path)
    save_array(path, features_ND.float().cpu().numpy())
    shutil.rmtree(FeatureParts(path).folder, ignore_errors=True)


class FeatureWriter:
    """A feature file that is written batch by batch, so that no process holds all features; it appears when it is whole.

    Parameters
    ----------
    path : Path
        As :func:`feature_file` names it.
    count : int
        Number of images N.
    """

    def __init__(self, path: PathLike, count: int):
        self.path, self.count = Path(path), count
        self._file = ExitStack()
        self._rows_ND: np.memmap | None = None

    def __enter__(self) -> FeatureWriter:
        return self

    def write(self, first: int, features_BD: np.ndarray) -> None:
        """Write the features of the images ``first``, ``first + 1``, ..."""
        if self._rows_ND is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.enter_context(whole_file(self.path))
            shape = (self.count, features_BD.shape[1])
            self._rows_ND = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        self._rows_ND[first : first + len(features_BD)] = features_BD

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        rows, self._rows_ND = self._rows_ND, None
        if rows is not None:
            rows.flush()
        self._file.__exit__(kind, error, trace)
        if kind is None and rows is not None:
            shutil.rmtree(FeatureParts(self.path).folder, ignore_errors=True)


def save_array(path: PathLike, array: np.ndarray) -> None:
    """Write an array of a cache; the file appears when it is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


class FeatureParts:
    """Batches of features that are done, so that a pass of hours survives an interruption.

    Parameters
    ----------
    path : Path
        The file that the whole pass will write; the parts lie in a folder next to it.
    """

    every = 16  # batches a part

    def __init__(self, path: PathLike):
        path = Path(path)
        self.folder = path.with_suffix(".parts")
        self._waiting: dict[int, np.ndarray] = {}

    def add(self, place: int, features_BD: np.ndarray) -> None:
        """Keep the features of a batch; every few batches they reach the disk.

        The last batch of a pass may be smaller than the others; its last row is then repeated, as it is in the batch itself.
        """
        self._waiting[place] = features_BD
        if len(self._waiting) == self.every:
            places, rows = sorted(self._waiting), max(map(len, self._waiting.values()))
            whole = [self._waiting[p][np.arange(rows).clip(max=len(self._waiting[p]) - 1)] for p in places]
            save_array(self.folder / ("-".join(map(str, places)) + ".npy"), np.stack(whole))
            self._waiting = {}

    def load(self, batch: int) -> dict[int, np.ndarray]:
        """Features [batch, D] by place of the batch, cut as now; damaged or differently cut parts are left out."""
        found: dict[int, np.ndarray] = {}
        for file in sorted(self.folder.glob("*.npy")):
            features = kept_array(file, np.float32, (None, batch, None))
            places = [int(p) for p in file.stem.split("-") if p.isdecimal()]
            if features is not None and len(features) == len(places):
                found |= dict(zip(places, features, strict=True))
        return found
