"""The images of a split as a method wants them: pixels, or the kept features of a frozen tower."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.work.comm import Group
from cluster.work.progress import Progress, quiet
from czsl.data.batches import (
    FeatureParts,
    PixelCache,
    evaluation_batches,
    feature_file,
    load_features,
    prepared_batch,
    save_features,
)
from czsl.data.table import Dataset
from methods.method import Method


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in bfloat16 where the run says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def arithmetic(device: torch.device, precision: str) -> str:
    """What the last bits of a matrix product follow from: a product's blocks are cut by the number of CPU threads."""
    return f"{precision}-{device.type}{torch.get_num_threads() if device.type == 'cpu' else ''}"


class Source:
    """One split of a dataset for one method.

    Parameters
    ----------
    method : Method
        Decides between pixels and features (``frozen_images``) and how an image is prepared.
    data : Dataset
    name : str
        ``train``, ``val`` or ``test``.
    comm : Group
        Features that are not kept yet are computed by all workers together, in whole batches.
    eval_batch : int
        Images a batch while features are computed.
    precision : str
        That of the run; features in bfloat16 are kept apart from others.
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
    ):
        self.method, self.comm, self.split, self.precision = method, comm, data.split(name), precision
        self._progress = progress
        self.features: Tensor | None = None
        self._pixels: PixelCache | None = None
        if method.frozen_images:
            path = feature_file(self.split, method.clip.sha256, arithmetic(method.clip.device, precision), method.prepare_key)
            features = load_features(path, len(self.split))
            if not all(comm.gather_objects(features is not None)):  # on every node, or all compute
                features = self.encode(np.arange(len(self.split)), eval_batch, FeatureParts(path)).float().cpu()
                save_features(path, features)
            self.features = features

    @property
    def pixels(self) -> PixelCache:
        """The decoded images, from the cache or decoded now."""
        if self._pixels is None:
            total = len(self.split)
            self._pixels = PixelCache(
                self.split,
                self.method.clip.image_size,
                self.method.prepare,
                lambda done: self._progress(f"decoding {self.split.name} images", done, total),
                self.method.clip.pixels.key,
            )
        return self._pixels

    @torch.inference_mode()
    def encode(self, rows_N: np.ndarray, eval_batch: int, kept: FeatureParts | None = None) -> Tensor:
        """Image features [N, D] of these rows, without augmentation: batches cut once, dealt out whole, gathered on every worker.

        With ``kept``, what an interrupted pass had computed on this machine is not computed again.
        """
        batches = evaluation_batches(len(rows_N), eval_batch)
        mine = range(self.comm.rank, len(batches), self.comm.world)
        own = {i: x for i, x in (kept.load(eval_batch) if kept else {}).items() if i in mine}
        for i in mine:
            if i in own:
                continue
            own[i] = self.image_features(rows_N[batches[i]]).cpu().numpy()
            if kept:
                kept.add(i, own[i])
            self._progress(f"encoding {self.split.name} images", min((i + 1) * eval_batch, len(rows_N)), len(rows_N))
        parts: dict[int, np.ndarray] = {}
        for share in self.comm.gather_objects(own):
            parts.update(share)
        if not parts:
            return torch.zeros(0, self.method.clip.dim)
        return torch.from_numpy(np.concatenate([parts[i] for i in range(len(batches))])[: len(rows_N)])

    def image_features(self, rows_B: np.ndarray) -> Tensor:
        """Features [B, D] of these rows as the method sees them, the tower in the run's precision."""
        with autocast(self.method.clip.device, self.precision):
            return self.method.image_features(self.batch(rows_B))

    def batch(self, rows_B: np.ndarray, augmentation: tuple[int, int] | None = None) -> dict[str, Any]:
        """A prepared batch of these rows: ``features``, or ``images`` and what else the method prepares; ``ids``, ``index``.

        Only what CLIP's own pipeline makes is augmented.
        """
        out: dict[str, Any] = {"ids": [self.split.ids[r] for r in rows_B], "index": torch.from_numpy(rows_B)}
        if self.features is not None:
            out["features"] = self.features[torch.from_numpy(rows_B)]
        elif self.method.prepare_key:
            out |= prepared_batch(self.split, rows_B, self.method.prepare)
        else:
            out["images"] = self.pixels.batch(rows_B, augmentation, self.method.clip.device)
        return out
