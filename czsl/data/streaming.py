"""Pixels of a split that is too large to be kept: read and decoded for each batch, with the same result as kept pixels.

Kept pixels take 150 KB per image at 224 px on every node, 150 GB for a million images. A streamed batch reads the bytes of its own images
out of the Parquet shards. A row group holds up to 64 MB, so a list of places is made once and kept: where in which shard the
bytes of each image lie, 24 bytes per image.
Letters: N images of a split, B images of a batch, S image side.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from czsl.data.augment import augment, id_keys
from czsl.data.batches import PixelCache, kept_array, pixel_file, save_array, split_key
from czsl.data.images import decode
from czsl.data.paths import cache_folder
from czsl.data.table import Split, open_shard
from czsl.gpus import onto

KEPT_BYTES = 64 * 2**30  # of a split's pixels; more is streamed
Prepare = Callable[[Image.Image, str], dict[str, Tensor]]


def is_streamed(split: Split, size: int, kind: str = "", setting: str = "auto") -> bool:
    """Return whether the pixels of a split are streamed.

    Parameters
    ----------
    split : Split
    size : int
        Image side S.
    kind : str
        As :class:`PixelCache` takes it.
    setting : str
        ``kept``, ``streamed`` or ``auto``: kept if they are there already, or if they take at most 64 GiB and at most half of the free
        space of the disk that holds the cache folder.
    """
    if setting != "auto" or pixel_file(split, size, kind).exists():
        return setting == "streamed"
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return len(split) * 3 * size * size > min(KEPT_BYTES, shutil.disk_usage(folder).free // 2)


def pixels_of(
    split: Split,
    size: int,
    prepare: Prepare,
    progress: Callable[[int], None] = lambda done: None,
    kind: str = "",
    setting: str = "auto",
) -> PixelCache | StreamedPixels:
    """Kept or streamed pixels of a split, by its size or by the setting (see :func:`is_streamed`); their batches are equal."""
    if is_streamed(split, size, kind, setting):
        return StreamedPixels(split, size, prepare, progress)
    return PixelCache(split, size, prepare, progress, kind)


class StreamedPixels:
    """Decoded, resized and cropped images of a split, made for each batch; holds nothing but one key and one place per image.

    Parameters
    ----------
    split, size, prepare, progress
        As :class:`PixelCache` takes them; ``progress`` counts the images whose places were found.
    """

    def __init__(self, split: Split, size: int, prepare: Prepare, progress: Callable[[int], None] = lambda done: None):
        self.split, self.size, self.prepare = split, size, prepare
        self.keys = id_keys(split.ids)
        self.read = ImageReader(split, progress)

    def __len__(self) -> int:
        return len(self.split)

    def batch(
        self, rows_B: np.ndarray, augmentation: tuple[int, int] | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """uint8 images [B, 3, S, S] on a device; ``augmentation`` is (seed, epoch)."""
        out = np.empty((len(rows_B), 3, self.size, self.size), np.uint8)

        def fill(place: int) -> None:
            row = int(rows_B[place])
            image = decode(self.read(row), options=self.split.decode)
            out[place] = self.prepare(image, self.split.ids[row])["images"].numpy()

        rows, first, back = np.unique(rows_B, return_index=True, return_inverse=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(fill, first.tolist()))
        if len(rows) < len(rows_B):  # the last batch of an evaluation repeats its last image
            out[:] = out[first[back.reshape(-1)]]
        images = onto(torch.from_numpy(out), device)
        return images if augmentation is None else augment(images, self.keys[rows_B], *augmentation)


class ImageReader:
    """Reads the bytes of single images of a split, from any thread, without reading their row group.

    Bytes that do not have the recorded hash are read again through Parquet: a list of places can never lead to other images.

    Parameters
    ----------
    split : Split
    progress : callable, optional
        Called with the number of images whose places were found.
    """

    def __init__(self, split: Split, progress: Callable[[int], None] = lambda done: None):
        self.split = split
        self._lock = threading.Lock()
        path = places_file(split)
        places = kept_array(path, np.int64, (len(split), 3))
        if places is None:
            save_array(path, find_places(split, progress))
            places = kept_array(path, np.int64, (len(split), 3))
        assert places is not None
        self.places_N3 = places

    def __call__(self, row: int) -> bytes:
        """The bytes of an image as found, the same as ``split.image_bytes(row)``."""
        shard, offset, length = self.places_N3[row].tolist()
        if offset >= 0:
            with self.split.paths[shard].open("rb") as file:
                file.seek(offset)
                content = file.read(length)
            if hashlib.sha256(content).hexdigest() == self.split.sha256[row]:
                return content
        with self._lock:
            return self.split.image_bytes(row)


def places_file(split: Split) -> Path:
    """Return the path of a split's list of image places, named by the images and by the shards as they are now."""
    digest = hashlib.blake2b(digest_size=8)
    for path in split.paths:
        status = path.stat()
        digest.update(f"{path.absolute()}\n{status.st_size}\n{status.st_mtime_ns}\n".encode())
    return cache_folder() / "pixels" / f"{split_key(split)}-places-{digest.hexdigest()}.npy"


def find_places(split: Split, progress: Callable[[int], None] = lambda done: None) -> np.ndarray:
    """Number of the shard, offset and length in bytes of each image, int64 [N, 3]; offset -1 if the bytes do not lie there as found.

    Reads the split once, one row group at a time. czsl writes images without compression; shards of other programs may be compressed.
    """
    places_N3 = np.full((len(split), 3), -1, np.int64)
    shard_of = {path: number for number, path in enumerate(split.paths)}
    for first, after, path, number in split.groups:
        with open_shard(path) as shard:
            column = shard.metadata.row_group(number).column(shard.schema_arrow.names.index("image"))
        start = min(o for o in (column.data_page_offset, column.dictionary_page_offset) if o is not None)
        with path.open("rb") as file:
            file.seek(start)
            raw = file.read(column.total_compressed_size)
        at = 0
        for row, content in split.iter_images(first, after):
            found = raw.find(len(content).to_bytes(4, "little") + content, at)  # plain encoding: length, bytes
            places_N3[row] = shard_of[path], found + 4 + start if found >= 0 else -1, len(content)
            at = found + 4 + len(content) if found >= 0 else at
        progress(after)
    return places_N3
