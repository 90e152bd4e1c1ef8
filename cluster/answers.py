"""Predictions that an earlier command made of the same images with the same settings. Needs no torch."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import czsl
from cluster.machines.nodes import NodeRequest
from cluster.work.profile import Profile
from cluster.work.request import PredictConfig
from czsl.data import kept_features
from czsl.data.inputs import ImageSource
from czsl.data.kept_answers import KeptAnswer
from czsl.data.paths import photographs_limit
from czsl.gpus import gpus
from czsl.runs.run import Run

MAX_IMAGES = 20_000
PACKAGES = ("torch", "open_clip_torch", "numpy", "pillow", "faiss-cpu")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")  # variables that decide about the last digits
FLOORS = ("czsl", "methods", "cluster")


class Answers:
    """The answers to one question: those of an earlier command, or those that pass by, to be kept.

    A question whose images are still changing, that is of one stream (an adaptation), or that several machines answer has none.

    Parameters
    ----------
    config : PredictConfig
    source, names : ImageSource, list of str
        The images.
    keep : bool
        Whether the user wants anything kept.
    where : dict
        Arguments of :meth:`cluster.machines.nodes.NodeRequest.of`.
    """

    def __init__(self, config: PredictConfig, source: ImageSource, names: list[str], keep: bool, where: dict[str, Any]):
        self.config, self._kept = config, None
        if not keep or config.adapt or len(names) > MAX_IMAGES or not NodeRequest.of(**where).local or not photographs_limit():
            return
        stamps = [source.version(name) for name in names]
        now = time.time_ns()
        if all(stamp is not None and now - max(stamp[2:]) > kept_features.FRESH_NS for stamp in stamps):
            images = hashlib.sha256(repr(stamps).encode()).hexdigest()
            here = {
                "folder": str(Path.cwd()),
                "code": _code(),
                "packages": [_version(name) for name in PACKAGES],
                "machine": _machine(),
            }
            self._kept = KeptAnswer({"images": images, **here, **question(config)}, names)

    def find(self, profile: Profile | None = None) -> list[dict[str, Any]] | None:
        """The records of an earlier command, or None."""
        records = None if self._kept is None else self._kept.find()
        if records is not None and profile is not None:
            profile.started()
            profile.count("answers", len(records))
        return records

    def kept(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Hand records on; they are kept once all are there, unless an image could not be read."""
        if self._kept is None:
            yield from records
            return
        lines: list[str] | None = []
        for record in records:
            if record["error"]:
                lines = None
            if lines is not None:
                lines.append(json.dumps(record))
            yield record
        if lines is not None:
            from czsl.clip.known import files_behind

            settings = self.config if self.config.run is None else Run(self.config.run).config
            self._kept.keep(lines, files_behind(settings.clip, settings.clip_weights))


def question(config: PredictConfig) -> dict[str, Any]:
    """Everything that answers follow from, except images, weight files of CLIP and the machine, as plain data."""
    index = Path(config.index) / "index.json" if config.index else None
    facts: dict[str, Any] = {"request": asdict(config), "index": index.read_text(encoding="utf-8") if index else None}
    if config.run is not None:
        from methods.fingerprint import fingerprint  # with points come tables, which take a tenth of a second to import
        from methods.points import point_for

        run = Run(config.run)
        point = point_for(run, config.checkpoint, config.open_world, config.bias)
        facts["run"] = [fingerprint(run, config.checkpoint), run.space.to_json(), run.precision, run.threads, point.to_json()]
    return facts


@functools.cache
def _code() -> str:
    """A hash of places, sizes and times of our own modules: another version may answer otherwise, also one that is being changed."""
    root, found = Path(czsl.__file__).parents[1], []
    for floor in FLOORS:
        for folder, _, names in os.walk(root / floor):
            for name in names:
                if name.endswith(".py"):
                    status = os.stat(file := os.path.join(folder, name))  # noqa: PTH116, PTH118
                    found.append((file, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _machine() -> list[Any]:
    """Facts that decide about the last digits: the device, and of a CPU its instructions and the threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = [platform.node(), platform.machine(), cores, *(os.environ.get(name) for name in THREADS)]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        facts += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    except OSError:
        facts.append(platform.processor())
    if gpus():
        import torch

        facts.append(torch.cuda.get_device_name())
    return facts
