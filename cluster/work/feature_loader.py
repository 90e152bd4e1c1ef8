"""The images of a split in the form that a method needs: pixels, or cached features of a frozen tower."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.work.comm import Group
from cluster.work.progress import Progress, quiet
from czsl.data.augment import VERSION
from czsl.data.batches import (
    FeatureParts,
    FeatureWriter,
    PixelCache,
    evaluation_batches,
    feature_file,
    load_features,
    prepared_batch,
)
from czsl.data.streaming import StreamedPixels, is_streamed, pixels_of
from czsl.data.table import Dataset
from methods.method import Method

ROUND = 16  # batches that a worker encodes before all exchange theirs


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context with matrix products in bfloat16 if that is the run's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def arithmetic(device: torch.device, precision: str) -> str:
    """Return a key for everything that affects the last bits of a matrix product, e.g. CPU threads: they determine its blocks."""
    if device.type == "cpu":
        return f"{precision}-cpu{torch.get_num_threads()}"
    return f"{precision}-{device.type}{'-tf32' if torch.backends.cuda.matmul.allow_tf32 else ''}"


class FeatureLoader:
    """One split of a dataset for one method.

    Parameters
    ----------
    method : Method
        Decides between pixels and features (``frozen_images``) and how an image is prepared.
    data : Dataset
    name : str
        ``train``, ``val`` or ``test``.
    comm : Group
        All workers together compute the features that are not cached yet, in whole batches.
    eval_batch : int
        Images per batch while features are computed.
    precision : str
        Precision of the run; features in bfloat16 are cached separately from others.
    keep : bool, default True
        Cache the features of a frozen tower. If False, the tower encodes the (augmented) images of each batch.
    rows : int array, optional
        The only images that will be requested; by default all of the split. Features of the others are not computed.
    pixels : str, default "auto"
        ``kept``, ``streamed``, or ``auto``: by size (see `czsl.data.streaming`). The batches are the same in each case.
    """

    def __init__(
        self,
        method: Method,
        data: Dataset,
        name: str,
        comm: Group,
        eval_batch: int,
        progress: Progress = quiet,
        precision: str = "float32",
        keep: bool = True,
        rows: np.ndarray | None = None,
        pixels: str = "auto",
    ):
        self.method, self.comm, self.split, self.precision = method, comm, data.split(name), precision
        self._progress = progress
        self.features: Tensor | None = None  # [n, D] of the n rows in use
        self.copies: list[Tensor] = []  # the same of augmented images
        self._held_ND: Tensor | None = None
        self._pixels: PixelCache | StreamedPixels | None = None
        self._pixel_setting = pixels
        self._rows_n = np.arange(len(self.split)) if rows is None else rows
        self._place_N = np.full(len(self.split), -1)
        self._place_N[self._rows_n] = np.arange(len(self._rows_n))
        if method.frozen_images and keep:
            self.features = self._whole() if rows is not None else None
            if self.features is None:
                self.features = self._kept(eval_batch)

    def _file(self, key: str) -> Path:
        clip = self.method.clip
        return feature_file(self.split, clip.sha256, arithmetic(clip.device, self.precision), key)

    def _whole(self) -> Tensor | None:
        """Features of the rows in use, taken from those of all images; None unless every node has these cached."""
        whole = load_features(self._file(self.method.cache_key), len(self.split))
        there = all(self.comm.gather_objects(whole is not None))
        return whole[torch.from_numpy(self._rows_n)] if there and whole is not None else None

    def _kept(self, eval_batch: int, augmentation: tuple[int, int] | None = None) -> Tensor:
        """Features [n, D] of the rows in use from the cache folder, or computed now and stored there."""
        key, what = self.method.cache_key, ""
        if len(self._rows_n) < len(self.split):
            key += f"|rows {hashlib.blake2b(self._rows_n.astype('<i8').tobytes(), digest_size=8).hexdigest()}"
        if augmentation is not None:  # with the names of the images, this determines their draws
            key += f"|augment {VERSION}, seed {augmentation[0]}, copy {augmentation[1]}"
            what = f", augmented copy {augmentation[1] + 1}"
        path = self._file(key)
        features = load_features(path, len(self._rows_n))
        if not all(self.comm.gather_objects(features is not None)):  # on every node, or all compute
            if not len(self._rows_n):
                return torch.zeros(0, self.method.clip.dim)
            with FeatureWriter(path, len(self._rows_n)) as writer:
                self._encode_each(self._rows_n, eval_batch, writer.write, FeatureParts(path), augmentation, what)
            features = load_features(path, len(self._rows_n))
        assert features is not None
        return features

    def keep_copies(self, seed: int, copies: int, eval_batch: int) -> None:
        """Cache features of ``copies`` augmentations: copy c has the draws of epoch c and is used in the epochs c, c + copies, ..."""
        self.copies = [self._kept(eval_batch, (seed, copy)) for copy in range(copies)]

    def hold(self, eval_batch: int) -> None:
        """Encode all images now and keep what the tower gives in memory, for a split that is scored many times with the same weights."""
        if self.features is None:
            self._held_ND = self.encode(np.arange(len(self.split)), eval_batch)

    @property
    def pixels(self) -> PixelCache | StreamedPixels:
        """The decoded images: from the cache, decoded into it now, or decoded for each batch."""
        if self._pixels is None:
            total, clip, setting = len(self.split), self.method.clip, self._pixel_setting
            what = "finding" if is_streamed(self.split, clip.image_size, clip.pixels.key, setting) else "decoding"
            self._pixels = pixels_of(
                self.split,
                clip.image_size,
                self.method.prepare,
                lambda done: self._progress(f"{what} {self.split.name} images", done, total),
                clip.pixels.key,
                setting,
            )
        return self._pixels

    @torch.inference_mode()
    def encode(self, rows_N: np.ndarray, eval_batch: int) -> Tensor:
        """Image features [N, D] of these rows: whole batches are distributed over the workers, the results gathered on every worker."""
        if self._held_ND is not None:
            return self._held_ND[torch.from_numpy(rows_N)]
        features_ND: list[Tensor] = []

        def write(first: int, features_BD: np.ndarray) -> None:
            if not features_ND:
                features_ND.append(torch.empty(len(rows_N), features_BD.shape[1], dtype=torch.from_numpy(features_BD).dtype))
            features_ND[0][first : first + len(features_BD)] = torch.from_numpy(features_BD)

        self._encode_each(rows_N, eval_batch, write)
        return features_ND[0] if features_ND else torch.zeros(0, self.method.clip.dim)

    @torch.inference_mode()
    def _encode_each(
        self,
        rows_N: np.ndarray,
        eval_batch: int,
        write: Callable[[int, np.ndarray], None],
        kept: FeatureParts | None = None,
        augmentation: tuple[int, int] | None = None,
        what: str = "",
    ) -> None:
        """Call ``write(first, features [B, D])`` for all batches on every worker; a worker holds those of one round.

        With ``kept``, results of an interrupted pass on this machine are not computed again.
        """
        batches = evaluation_batches(len(rows_N), eval_batch)
        done = kept.load(eval_batch) if kept else {}
        for start in range(0, len(batches), self.comm.world * ROUND):
            own: dict[int, np.ndarray] = {}
            for i in range(start + self.comm.rank, min(start + self.comm.world * ROUND, len(batches)), self.comm.world):
                if i in done:
                    own[i] = np.asarray(done[i])
                    continue
                own[i] = self.image_features(rows_N[batches[i]], augmentation).cpu().numpy()
                if kept:
                    kept.add(i, own[i])
                place = min((i + 1) * eval_batch, len(rows_N))
                self._progress(f"encoding {self.split.name} images{what}", place, len(rows_N))
            for share in self.comm.gather_objects(own):
                for i, features_BD in share.items():
                    write(i * eval_batch, features_BD[: len(rows_N) - i * eval_batch])

    def image_features(self, rows_B: np.ndarray, augmentation: tuple[int, int] | None = None) -> Tensor:
        """Features [B, D] of these rows as the method uses them; the tower computes in the run's precision."""
        if self._held_ND is not None and augmentation is None:
            return self._held_ND[torch.from_numpy(rows_B)].to(self.method.clip.device, self.method.clip.mean.dtype)
        with autocast(self.method.clip.device, self.precision):
            return self.method.image_features(self.batch(rows_B, augmentation))

    def batch(self, rows_B: np.ndarray, augmentation: tuple[int, int] | None = None) -> dict[str, Any]:
        """A prepared batch of these rows: ``ids``, and ``features`` or the method's inputs (``images`` by default).

        ``augmentation`` is (seed, epoch); it selects one of the cached copies if any exist. Only images of CLIP's own pipeline are
        augmented.
        """
        out: dict[str, Any] = {"ids": [self.split.ids[r] for r in rows_B]}
        place_B = torch.from_numpy(self._place_N[rows_B])
        if self.copies and augmentation is not None:
            out["features"] = self.copies[augmentation[1] % len(self.copies)][place_B]
        elif self.features is not None:
            out["features"] = self.features[place_B]
        elif self.method.cache_key:
            out |= prepared_batch(self.split, rows_B, self.method.prepare)
        else:
            out["images"] = self.pixels.batch(rows_B, augmentation, self.method.clip.device)
        return out
