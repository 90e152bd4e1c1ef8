"""A run folder: configuration, metrics, checkpoints, reports and the environment that produced them."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from czsl.gpus import tell_once
from czsl.precision import emulated, fitting
from czsl.reading import PathLike, json_records, read_json, read_yaml
from czsl.runs import checkpoint
from czsl.runs.checkpoint import Checkpoint
from czsl.runs.config import PRECISIONS, RunConfig
from czsl.runs.files import write_atomically, write_json
from czsl.runs.settings import check_known, typed
from czsl.spaces import load_space, space_from_json

if TYPE_CHECKING:
    import torch

MAX_CONFIG = 2**30  # bytes: a method's settings hold the content of the files that it was given
MAX_THREADS = 4096
# Fields of every line of an event in addition to its numbers.
RECORDS = {
    "progress": ("what", "done", "total"),
    "start": ("steps", "images", "batch", "step"),
    "step": ("loss", "epoch", "images_per_s", "time", "step"),
    "epoch": ("epoch", "time", "step"),
    "end": ("status", "step"),
    "found": ("settings", "how"),
    "note": ("note",),
}
TEXTS = ("event", "what", "status", "reason", "how", "for", "note", "checkpoint", "precision")
PACKAGES = ("czsl", "torch", "open_clip_torch", "ray", "numpy", "pyarrow", "faiss-gpu", "faiss-cpu", "safetensors")


class Run:
    """A folder ``runs/<method>-<data>-<time>/``.

    Parameters
    ----------
    path : Path
        An existing run folder.

    Attributes
    ----------
    history : list of dict
        Changes of settings since the run was made (:mod:`czsl.runs.going_on`), oldest first.

    Raises
    ------
    UsageError
        If the folder holds no ``config.yaml`` or one that cannot be read.
    """

    def __init__(self, path: PathLike):
        self.path = Path(path).resolve()
        file = self.path / "config.yaml"
        if not file.is_file():
            meant = Path("runs", path)
            fix = (
                f"did you mean {meant}?"
                if (meant / "config.yaml").is_file()
                else "give a folder that czsl train wrote, e.g. runs/<name>"
            )
            raise UsageError(f"{path} is not a run folder", "it has no config.yaml", fix)
        error_texts: dict[str, Any] = {
            "head": f"{file} cannot be read",
            "fix": "was it edited by hand, or written by another version?",
        }
        self.settings: dict[str, Any] = read_yaml(file, error=UsageError, max_bytes=MAX_CONFIG, **error_texts)
        if not isinstance(self.settings, dict):
            raise UsageError(error_texts["head"], f"it holds a {type(self.settings).__name__}, not settings", error_texts["fix"])
        self.history: list[dict[str, Any]] = _history(self.settings.pop("history", []), error_texts)
        try:
            check_known(self.settings, [*RunConfig.field_names(), "model"], "NAME")
            self.config = RunConfig.from_file(typed(self.settings, RunConfig))
        except UsageError as error:
            raise UsageError(error_texts["head"], f"{error.what} {error.why}".strip(), error_texts["fix"]) from None

    @classmethod
    def create(
        cls,
        config: RunConfig,
        space: CompositionSpace,
        out: PathLike = "runs",
        name: str | None = None,
        start: Checkpoint | None = None,
    ) -> Run:
        """Make the folder and write ``config.yaml`` and ``space.json``; an existing run is never overwritten.

        ``start`` is what it begins with instead of initial weights. The run keeps a copy, so that it depends on no other run.
        """
        out = Path(out)
        data = Path(config.data).name or "data"
        stem = name or f"{config.method}-{data}-{time.strftime('%Y%m%d-%H%M%S')}"
        for attempt in itertools.count(1):
            path = Path(out) / (stem if attempt == 1 else f"{stem}-{attempt}")  # two runs may start within one second
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                if name:
                    raise UsageError(
                        f"{path} exists", "a run is never overwritten", "choose another --name, or --resume it"
                    ) from None
        if start is not None:
            checkpoint.save(path / "start", start)  # before config.yaml, without which the folder is not a run
        text = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
        write_atomically(path / "config.yaml", text.encode())
        space.save(path / "space.json")
        return cls(path)

    @property
    def space(self) -> CompositionSpace:
        """The label space of the best checkpoint; prediction needs no other part of the run's data."""
        return self.space_of(self._best_state())

    @property
    def has_grown(self) -> bool:
        """True if images were added to the run (`czsl add`): its labels are more than those of its data."""
        return "grown" in self._best_state()

    def _best_state(self) -> dict[str, Any]:
        name = checkpoint.best(self.checkpoints).get("checkpoint")
        return checkpoint.state_of(self.checkpoints / Path(name).name) if name else {}

    def space_of(self, state: dict[str, Any]) -> CompositionSpace:
        """The label space of a checkpoint by its state: that of the run's data, or a larger one after images were added (`czsl add`)."""
        if "grown" in state:
            return space_from_json(state["grown"], f"{self.path.name}: state.json")
        return load_space(self.path / "space.json")

    # -- files -----------------------------------------------------------------------------------------------------
    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def start(self) -> Path:
        """Folder of the checkpoint that the run started from; absent if it started from initial weights."""
        return self.path / "start"

    @property
    def metrics_file(self) -> Path:
        """``metrics.jsonl``: a JSON object a line, each with its ``step``."""
        return self.path / "metrics.jsonl"

    @property
    def stop_file(self) -> Path:
        """While this file exists, the workers stop at the next step on which all agree."""
        return self.path / "STOP"

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self, event: str | None = None) -> Iterator[dict[str, Any]]:
        """Lines of ``metrics.jsonl``, of one event if asked; half-written and damaged ones are left out."""
        for record in json_records(self.metrics_file):
            if well_formed(record) and (event is None or record["event"] == event):
                yield record

    def cut_metrics(self, step: int) -> None:
        """Drop what was logged after a step, so that a resumed run has each step once."""
        kept = [json.dumps(r) for r in self.metrics() if r.get("step", 0) <= step and r.get("event") != "end"]
        write_atomically(self.metrics_file, "".join(line + "\n" for line in kept).encode())

    @property
    def writable(self) -> bool:
        """Return whether files can be created in the run folder."""
        return os.access(self.path, os.W_OK)

    def write_report(self, name: str, report: dict[str, Any]) -> Path:
        """Write ``<name>.json`` and return its path."""
        path = self.path / f"{name}.json"
        write_json(path, report)
        return path

    def write_environment(self, **facts: Any) -> None:
        """Write ``environment.json``: versions, machine, git hash of the source tree, and the given facts (hashes, seeds)."""
        write_json(self.path / "environment.json", {**environment(), **facts})

    def environment(self) -> dict[str, Any]:
        """The content of ``environment.json``; empty before the first worker wrote it.

        Raises
        ------
        UsageError
            It is damaged.
        """
        file = self.path / "environment.json"
        if not file.exists():
            return {}
        error_texts: dict[str, Any] = {
            "head": f"{file} is damaged",
            "fix": "take it from a copy; without it the run works, its record is lost",
        }
        content = read_json(file, error=UsageError, **error_texts)
        threads = content.get("threads", 0) if isinstance(content, dict) else None
        precision = content.get("precision", "float32") if isinstance(content, dict) else None
        if type(threads) is not int or not 0 <= threads <= MAX_THREADS or precision not in PRECISIONS[1:]:
            raise UsageError(error_texts["head"], "it is not a record of a run", error_texts["fix"])
        return content

    @property
    def threads(self) -> int:
        """CPU threads of a worker: those of the settings, else those that its training used; 0 if none was chosen yet.

        The last bits of a matrix product change with their number, so what follows from a run is computed with these everywhere.
        """
        return self.config.threads or self.environment().get("threads", 0)

    @property
    def precision(self) -> str:
        """The format of its products: that of the settings, or with ``auto`` the one that it began with; empty if nothing has begun."""
        return self.environment().get("precision", "") if self.config.precision == "auto" else self.config.precision

    def precision_on(self, device: torch.device) -> str:
        """The format of its products: :attr:`precision`, or what fits the device if nothing has begun."""
        tell_once(emulated(self.precision, device))
        return self.precision or fitting(device)


def _history(content: Any, error_texts: dict[str, Any]) -> list[dict[str, Any]]:
    """Check the changes of settings that ``config.yaml`` lists: the step of each, and what changed from which to which value."""
    entries: list[Any] = content if isinstance(content, list) else [None]
    for entry in entries:
        if not isinstance(entry, dict) or type(entry.get("step")) is not int or not isinstance(entry.get("changed"), dict):
            raise UsageError(
                error_texts["head"], "its history is not a list of changes with step and changed", error_texts["fix"]
            )
    return entries


def well_formed(record: dict[str, Any], whole: bool = False) -> bool:
    """Return whether the values of a metrics line have the right types and are finite; ``whole``: and none is missing."""
    if not isinstance(record.get("event"), str):
        return False
    for name, value in record.items():
        if isinstance(value, str) != (name in TEXTS):
            return False
        if isinstance(value, int | float) and (isinstance(value, bool) or not abs(value) < 1e15):
            return False
    if whole and any(record.get(name) is None for name in RECORDS.get(record["event"], ())):
        return False
    return all(type(record.get(name, 0)) is int for name in ("step", "epoch", "steps", "images", "batch", "done", "total"))


def latest_run(out: PathLike = "runs") -> Run | None:
    """The newest run folder, or None."""
    out = Path(out)
    found = sorted(Path(out).glob("*/config.yaml"), key=lambda p: p.stat().st_mtime)
    return Run(found[-1].parent) if found else None


def environment() -> dict[str, Any]:
    """Versions, Python, machine and, in a source checkout, the git hash."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts: dict[str, Any] = {"versions": versions, "python": platform.python_version(), "machine": platform.platform()}
    source = Path(__file__).resolve().parents[2]
    if (source / ".git").exists():
        command = ["git", "rev-parse", "HEAD"]
        try:
            facts["git"] = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False).stdout.strip() or None
        except OSError:  # a checkout on a machine without git
            facts["git"] = None
    return facts
