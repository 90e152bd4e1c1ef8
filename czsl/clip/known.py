"""Towers that are loaded on first use: notes of an earlier command and its cached text features are enough to evaluate images whose
features are cached."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from czsl import __version__
from czsl.clip.towers import Towers
from czsl.data.caches import stamps_of
from czsl.data.kept_features import FeatureStore, Kept, store_file
from czsl.data.paths import cache_folder, photographs_limit
from czsl.data.pixels import Pixels
from czsl.errors import CzslError
from czsl.reading import read_json

MAX_PROMPTS = 20_000  # of one call whose features are kept
FORMAT = 1


class _Numbers:
    """The scalars of a model, under the names that :class:`Towers` reads."""

    def __init__(self, scale: float, bias: float | None):
        self.logit_scale = torch.tensor(scale)
        self.logit_bias = None if bias is None else torch.tensor(bias)


class KnownTowers(Towers):
    """Towers described by notes; their weights are loaded on first use.

    Parameters
    ----------
    name : str
        The name that the user gave.
    notes : dict
        See :func:`_notes`.
    load : callable
        Loads the towers, on the CPU.
    """

    def __init__(self, name: str, notes: dict[str, Any], load: Callable[[], Towers]):
        bias = notes["logit_bias"]
        super().__init__(_Numbers(0.0, bias), name, Pixels(**notes["pixels"]), notes["mean"], notes["std"])
        # The scale itself: a detour through its logarithm would change the last digits.
        self.logit_scale = torch.tensor(notes["logit_scale"])
        self.sha256 = notes["sha256"]
        self._dim, self._architecture = int(notes["dim"]), notes["architecture"]
        self._load: Callable[[], Towers] = load
        self._towers: list[Towers] = []  # in a list, so that their weights are not registered a second time
        self._text = KnownText(self)
        self.eval()

    @property
    def dim(self) -> int:
        """D, the width of the joint space."""
        return self._dim

    @property
    def architecture(self) -> dict[str, Any]:
        """The architecture that a checkpoint must match."""
        return self._architecture

    @property
    def loaded(self) -> bool:
        """True if the weights are in memory."""
        return bool(self._towers)

    @property
    def towers(self) -> Towers:
        """The towers, loaded now if necessary."""
        if not self._towers:
            towers = self._load().to(device=self.device, dtype=self.mean.dtype)
            towers.compute_in(self.precision)
            self._towers.append(towers)
        return self._towers[0]

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.towers.visual

    @property
    def text(self) -> Any:
        """The text tower; it caches the features of prompts."""
        return self._text

    def compute_in(self, precision: str) -> None:
        """See :meth:`Towers.compute_in`."""
        super().compute_in(precision)
        for towers in self._towers:
            towers.compute_in(precision)

    def _apply(self, fn, recurse=True):
        for towers in self._towers:
            towers._apply(fn, recurse)
        return super()._apply(fn, recurse)


class KnownText:
    """The text tower of :class:`KnownTowers`; it keeps the features of prompts in the cache folder."""

    def __init__(self, clip: KnownTowers):
        self._clip = clip

    def encode(self, prompts: Sequence[str], chunk: int = 512, unit: bool = True) -> Tensor:
        """Text features [P, D] of plain prompts: from the cache folder, or computed by the tower and stored there."""
        clip, dtype = self._clip, self._clip.mean.dtype
        if not prompts:
            return torch.zeros(0, clip.dim, device=clip.device, dtype=dtype)
        content = hashlib.sha256(json.dumps([list(prompts), chunk, unit]).encode()).digest()
        store = FeatureStore(self._file(), photographs_limit() if len(prompts) <= MAX_PROMPTS else 0)
        try:
            found = store.find_content(content, None)
            if found is not None and found.shape == (len(prompts), clip.dim):
                return torch.from_numpy(found).to(clip.device, dtype)
            features_PD = clip.towers.text.encode(prompts, chunk, unit)
            store.add([Kept(content, None, features_PD.cpu().numpy())])
        finally:
            store.close()
        return features_PD

    def _file(self) -> Path:
        """Return the cache file for features of the same tower and arithmetic."""
        clip = self._clip
        kind = clip.device.type
        card = torch.cuda.get_device_name(clip.device) if kind == "cuda" else str(torch.get_num_threads())
        return store_file("texts", __version__, torch.__version__, clip.sha256, kind, card, str(clip.mean.dtype), clip.precision)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clip.towers.text, name)


def known_clip(name: str, weights: str | None, load: Callable[[], Towers]) -> KnownTowers:
    """Return the towers for this name. If an earlier command left notes, the weights are loaded only when they are used.

    Parameters
    ----------
    name, weights : str
        As :func:`czsl.clip.loading.load_clip` takes them.
    load : callable
        Loads the towers; called at once if no notes exist, or if a weight file has changed since.
    """
    file = _file_of(name, weights)
    notes = _read(file)
    if notes is not None:
        return KnownTowers(name, notes, load)
    towers = load()
    notes = _notes(towers, name, weights)
    known = KnownTowers(name, notes, load)
    known._towers.append(towers)
    if notes["files"] is not None:
        _write(file, notes)
    return known


def files_behind(name: str, weights: str | None) -> list[Path]:
    """Return the files that a CLIP was loaded from: as notes name them, else as open_clip finds them, which takes two seconds to import."""
    notes = _read(_file_of(name, weights))
    if notes is not None:
        return [Path(str(f[0])) for f in notes["files"]]
    from czsl.clip.weights import files_of

    return files_of(name, weights)


def _file_of(name: str, weights: str | None) -> Path:
    given = {"name": name, "weights": weights, "here": os.getcwd(), "versions": _versions()}  # noqa: PTH109
    return cache_folder() / "towers" / f"{hashlib.blake2b(json.dumps(given).encode(), digest_size=16).hexdigest()}.json"


def _notes(towers: Towers, name: str, weights: str | None) -> dict[str, Any]:
    """Return all facts about towers except the weights, as plain data; ``files`` holds the stamps of the files they were loaded from."""
    from czsl.clip.weights import files_of

    return {
        "format": FORMAT,
        "files": stamps_of(files_of(name, weights)),
        "sha256": towers.sha256,
        "dim": towers.dim,
        "architecture": towers.architecture,
        "pixels": asdict(towers.pixels),
        "mean": towers.mean.tolist(),
        "std": towers.std.tolist(),
        "logit_scale": float(towers.logit_scale),
        "logit_bias": None if towers.logit_bias is None else float(towers.logit_bias),
    }


def _read(file: Path) -> dict[str, Any] | None:
    """Return valid notes, or None if they are incomplete or a file has changed since."""
    if not file.is_file():
        return None
    try:
        notes = read_json(file, max_bytes=2**20)
        if notes["format"] != FORMAT or stamps_of([Path(str(f[0])) for f in notes["files"]]) != notes["files"]:
            return None
        KnownTowers("", notes, lambda: Towers.__new__(Towers))  # raises if an entry is missing
        numbers = [*notes["mean"], *notes["std"], notes["logit_scale"], notes["logit_bias"] or 0.0]
        whole = len(notes["mean"]) == len(notes["std"]) == 3 and isinstance(notes["sha256"], str)
        return notes if whole and np.isfinite(numbers).all() else None
    except (CzslError, KeyError, TypeError, ValueError, IndexError, RuntimeError):
        return None


def _write(file: Path, notes: dict[str, Any]) -> None:
    """Write notes to the cache folder. If it cannot be written to, later commands simply run without notes."""
    from czsl.runs.files import write_atomically

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(notes).encode())
    except OSError:
        return


def _versions() -> list[str]:
    return [__version__, torch.__version__, importlib.metadata.version("open_clip_torch")]
