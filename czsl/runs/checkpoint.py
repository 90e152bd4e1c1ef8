"""Checkpoints: tensors as safetensors, everything else as JSON, each file's SHA-256 in a manifest. Never pickle.

Torch is imported by the functions that read or write tensors, so commands that only look for checkpoints start without it.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from czsl.errors import CzslError, UsageError
from czsl.reading import PathLike, read_json, read_safetensors
from czsl.runs.files import sha256_file, whole_folder, write_json

if TYPE_CHECKING:
    from torch import Tensor

KEEP = 3
FILES = {"method.safetensors", "optimizer.safetensors", "state.json"}  # those that every checkpoint has
# What is read of a state, with its types; all else is only compared.
STATE: dict[str, Any] = {"step": int, "epoch": int, "place": int, "best_auc": (int, float), "waited": int, "space": dict}
log = logging.getLogger("czsl")


@dataclass
class Checkpoint:
    """State of a run, enough to resume its training or to use it.

    method : state of the method (trainable weights, prototypes, batch statistics), never the frozen CLIP
    optimizer : Adam's moments, as ``<moment>.<parameter>``
    state : step, epoch and place in the epoch, hashes, architecture
    labels : label confidences, if training has candidate labels instead of labels
    """

    method: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)


def save(folder: PathLike, checkpoint: Checkpoint, prune: bool = True) -> Path:
    """Write ``folder/step-NNNNNNNN``: to a temporary folder first, synced, then renamed.

    With ``prune`` the checkpoints beyond the newest KEEP and the best are deleted.
    """
    from safetensors.torch import save as as_bytes

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{checkpoint.state['step']:08d}"
    for left in folder.glob(".step-*.tmp"):  # of a process that was killed; a run has one writer
        shutil.rmtree(left, ignore_errors=True)
    with whole_folder(target, replace=True, sync=True) as temporary:  # the same step may be there already, after a resume
        for name in ("method", "optimizer", *(["labels"] if checkpoint.labels else [])):
            tensors = {k: v.detach().cpu().contiguous() for k, v in getattr(checkpoint, name).items()}
            (temporary / f"{name}.safetensors").write_bytes(as_bytes(tensors))  # a full disk is an OSError, which save_file hides
        write_json(temporary / "state.json", checkpoint.state)
        write_json(temporary / "manifest.json", {p.name: sha256_file(p) for p in sorted(temporary.iterdir())})
    if prune:
        _prune(folder)
    return target


def mark_best(folder: PathLike, checkpoint: PathLike, **facts: Any) -> None:
    """Remember which checkpoint is best and why."""
    folder, checkpoint = Path(folder), Path(checkpoint)
    write_json(folder / "best.json", {"checkpoint": checkpoint.name, **facts})


def best(folder: PathLike) -> dict[str, Any]:
    """Return what :func:`mark_best` wrote, or an empty dict."""
    folder = Path(folder)
    file = folder / "best.json"
    if not file.exists():
        return {}
    try:
        content = read_json(file)
        kinds: dict[str, Any] = {"checkpoint": str, "auc": (int, float, type(None)), "epoch": int, "step": int}
        if isinstance(content, dict) and all(isinstance(content[name], kinds[name]) for name in kinds.keys() & content.keys()):
            return content
        why = "it is not a mark of a checkpoint"
    except CzslError as error:
        why = error.why
    log.warning("%s is damaged (%s), the best checkpoint is not known", file, why)
    return {}


def steps(folder: PathLike) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    folder = Path(folder)
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and re.fullmatch(r"step-\d{1,18}", p.name))


def step_of(path: PathLike) -> int:
    """The step in a checkpoint folder's name."""
    path = Path(path)
    return int(path.name.removeprefix("step-"))


def is_valid(path: PathLike) -> bool:
    """Return whether every file of a checkpoint exists and is unchanged."""
    path = Path(path)
    try:
        manifest = read_json(path / "manifest.json")
        if not isinstance(manifest, dict) or not manifest.keys() >= FILES:
            return False
        return all(sha256_file(path / Path(name).name) == sha for name, sha in manifest.items())
    except (OSError, ValueError, CzslError):  # missing, not JSON, an invalid name
        return False


def newest_valid(folder: PathLike) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are passed over with a warning."""
    folder = Path(folder)
    for path in reversed(steps(folder)):
        if is_valid(path):
            return path
        log.warning("checkpoint %s is damaged, using the one before", path.name)
    return None


def find(folder: PathLike, which: str = "best") -> Path:
    """A checkpoint by name: ``best`` (falls back to the newest valid one), ``last``, or ``step-NNNNNNNN`` / a step number.

    Raises
    ------
    UsageError
        If no such checkpoint exists or it is damaged; lists the existing ones.
    """
    folder = Path(folder)
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
    path = folder / (f"step-{int(which):08d}" if re.fullmatch(r"[0-9]{1,18}", which) else Path(which).name)
    if not is_valid(path):
        there = ", ".join(p.name for p in steps(folder)) or "none"
        raise UsageError(f"no usable checkpoint {which!r}", f"there are: {there}", "use best, last or one of these")
    return path


def state_of(path: PathLike) -> dict[str, Any]:
    """The ``state`` of a checkpoint, read without its tensors; an empty dict if it cannot be read."""
    try:
        content = read_json(Path(path) / "state.json")
    except (OSError, CzslError):
        return {}
    return content if isinstance(content, dict) else {}


def load(path: PathLike) -> Checkpoint:
    """Read a checkpoint that verified."""
    path = Path(path)
    error_texts: dict[str, Any] = {
        "error": UsageError,
        "head": f"checkpoint {path} cannot be read",
        "fix": "choose another with --checkpoint",
    }
    state = read_json(path / "state.json", **error_texts)
    there = state if isinstance(state, dict) else {}
    odd = [k for k, kind in STATE.items() if (k in there or k == "step") and (not isinstance(there.get(k), kind))]
    if odd:
        raise UsageError(error_texts["head"], f"state.json has no {', '.join(odd)} as they are written", error_texts["fix"])
    return Checkpoint(
        read_safetensors(path / "method.safetensors", **error_texts),
        read_safetensors(path / "optimizer.safetensors", **error_texts),
        state,
        read_safetensors(labels, **error_texts) if (labels := path / "labels.safetensors").exists() else {},
    )


def _prune(folder: Path) -> None:
    keep = {best(folder).get("checkpoint")}
    for path in steps(folder)[:-KEEP]:
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
