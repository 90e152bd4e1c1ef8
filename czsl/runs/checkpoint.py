"""Checkpoints: tensors as safetensors, everything else as JSON, each file's SHA-256 in a manifest. Never pickle.

Torch is imported where tensors are read or written: commands that only look for checkpoints start without it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from czsl.errors import UsageError
from czsl.runs.files import sha256_file, sync_folder, write_json

if TYPE_CHECKING:
    from torch import Tensor

KEEP = 3
log = logging.getLogger("czsl")


@dataclass
class Checkpoint:
    """What a run needs to go on, or to be used.

    method : state of the method (trainable weights, prototypes, batch statistics), never the frozen CLIP
    optimizer : Adam's moments, as ``<moment>.<parameter>``
    state : step, epoch and place in the epoch, hashes, architecture
    labels : weights of candidate labels, where training has these instead of labels
    """

    method: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint, prune: bool = True) -> Path:
    """Write ``folder/step-NNNNNNNN``: to a temporary folder first, synced, then renamed.

    With ``prune`` the checkpoints beyond the newest KEEP and the best are deleted.
    """
    from safetensors.torch import save as as_bytes

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{checkpoint.state['step']:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    for left in folder.glob(".step-*.tmp"):  # of a process that was killed; a run has one writer
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir()
    try:
        for name in ("method", "optimizer", *(["labels"] if checkpoint.labels else [])):
            tensors = {k: v.detach().cpu().contiguous() for k, v in getattr(checkpoint, name).items()}
            (temporary / f"{name}.safetensors").write_bytes(as_bytes(tensors))  # a full disk is an OSError, which save_file hides
        write_json(temporary / "state.json", checkpoint.state)
        files = sorted(temporary.iterdir())
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_json(temporary / "manifest.json", {p.name: sha256_file(p) for p in files})
        sync_folder(temporary)
        if target.exists():  # the same step again, after a resume
            shutil.rmtree(target)
        temporary.rename(target)
        sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if prune:
        _prune(folder)
    return target


def mark_best(folder: Path, checkpoint: Path, **facts: Any) -> None:
    """Remember which checkpoint is best and why."""
    write_json(folder / "best.json", {"checkpoint": checkpoint.name, **facts})


def best(folder: Path) -> dict[str, Any]:
    """What :func:`mark_best` wrote, or an empty dict."""
    file = folder / "best.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s is damaged (%s), the best checkpoint is not known", file, error)
        return {}
    return content if isinstance(content, dict) else {}


def steps(folder: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(path.name.removeprefix("step-"))


def is_valid(path: Path) -> bool:
    """Whether every file of a checkpoint is there and unchanged."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return bool(manifest) and all(sha256_file(path / Path(name).name) == sha for name, sha in manifest.items())
    except (OSError, ValueError, AttributeError):  # missing, not UTF-8, not JSON, not a mapping
        return False


def newest_valid(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are passed over with a warning."""
    for path in reversed(steps(folder)):
        if is_valid(path):
            return path
        log.warning("checkpoint %s is damaged, using the one before", path.name)
    return None


def find(folder: Path, which: str = "best") -> Path:
    """A checkpoint by name: ``best`` (falls back to the newest valid one), ``last``, or ``step-NNNNNNNN`` / a step number.

    Raises
    ------
    UsageError
        If there is none, or the one asked for is damaged; lists those there are.
    """
    if which == "best":
        name = best(folder).get("checkpoint")
        if name and is_valid(folder / Path(name).name):
            return folder / Path(name).name
        if name:
            log.warning("the best checkpoint %s is damaged or missing, using the newest valid one", name)
    if which in ("best", "last"):
        path = newest_valid(folder)
        if path:
            return path
        raise UsageError(
            f"{folder.parent} has no usable checkpoint", "training did not get that far", "train first, or --resume the run"
        )
    path = folder / (f"step-{int(which):08d}" if which.isdecimal() else Path(which).name)
    if not is_valid(path):
        there = ", ".join(p.name for p in steps(folder)) or "none"
        raise UsageError(f"no usable checkpoint {which!r}", f"there are: {there}", "use best, last or one of these")
    return path


def state_of(path: Path) -> dict[str, Any]:
    """The ``state`` of a checkpoint, read without its tensors; an empty dict where it cannot be read."""
    try:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that verified."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return Checkpoint(
            load_file(path / "method.safetensors"),
            load_file(path / "optimizer.safetensors"),
            json.loads((path / "state.json").read_text(encoding="utf-8")),
            load_file(labels) if (labels := path / "labels.safetensors").exists() else {},
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"checkpoint {path} cannot be read", str(error), "choose another with --checkpoint") from None


def _prune(folder: Path) -> None:
    keep = {best(folder).get("checkpoint")}
    for path in steps(folder)[:-KEEP]:
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
