"""A run's metrics in TensorBoard, MLflow or Weights & Biases: written from ``metrics.jsonl``, never by a worker.

``metrics.jsonl`` is the only truth. What lies on this machine and belongs to one run is written from scratch at each start, so a
resumed run has each point once. A store that is shared or remote is first queried for what it has.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from czsl.errors import SetupError
from czsl.reading import PathLike
from czsl.runs.run import Run
from czsl.runs.tracker_names import PACKAGES

LEFT_OUT = ("event", "time", "step")
PROJECT = "czsl"
MAX_SETTING_LENGTH = 500  # characters; MLflow takes no more
MAX_START_S = 120.0  # for the process of Weights & Biases; its own 30 s are short on a busy machine
MAX_CLOSE_S = 10.0  # for files of an earlier process


class Tracker(Protocol):
    """A place to which numbers of a run are written."""

    def write(self, numbers: dict[str, float], step: int, time: float) -> None:
        """Write numbers of one step; ``time`` in seconds since 1970."""

    def close(self) -> None:
        """Write what is left."""


def check_installed(names: list[str]) -> None:
    """Check that the packages of trackers are there.

    Raises
    ------
    SetupError
        Names the extra that has them.
    """
    for name in names:
        for package in PACKAGES[name]:
            if importlib.util.find_spec(package) is None:
                raise SetupError(f"log={name} needs the package {package}", "it is not installed", f"pip install 'czsl[{name}]'")


def place_of(name: str, path: PathLike) -> str:
    """Return where a tracker writes a run, with the command that shows it."""
    path = Path(path)
    if name == "tensorboard":
        return f"{path / name}; show it with: tensorboard --logdir {path.parent}"
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE") or "offline"
        return f"{path / name}; send it with: wandb sync {path / name}/offline-run-*" if mode == "offline" else f"wandb ({mode})"
    uri = _mlflow_store(path)
    return f"{uri}; show it with: mlflow ui --backend-store-uri {uri}"


def settings_of(run: Run) -> dict[str, Any]:
    """Return the settings of a run and its method by name, long texts cut."""
    settings = {key: value for key, value in run.config.to_dict().items() if key != "model"}
    plain = (int, float, bool, type(None))
    return {
        key: v if isinstance(v, plain) else str(v)[:MAX_SETTING_LENGTH] for key, v in {**settings, **run.config.model}.items()
    }


def numbers_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics under their names in a tracker: ``train/loss``, ``val/auc``; empty for other events."""
    group = {"step": "train", "epoch": "val"}.get(record.get("event", ""))
    if group is None:
        return {}
    return {
        f"{group}/{key}": float(value)
        for key, value in record.items()
        if key not in LEFT_OUT and isinstance(value, int | float) and not isinstance(value, bool)
    }


class TensorBoard:
    """Event files in ``RUN/tensorboard``."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        folder = path / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def write(self, numbers: dict[str, float], step: int, time: float) -> None:
        """Write numbers of one step."""
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step, walltime=time)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class MLflow:
    """A run of the experiment ``czsl``, in ``mlflow.db`` next to the run folder or in the store to which ``MLFLOW_TRACKING_URI`` points."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        uri = _mlflow_store(path)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._client = client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(PROJECT)
        place = {} if os.environ.get("MLFLOW_TRACKING_URI") else {"artifact_location": (path.parent / "mlartifacts").as_uri()}
        number = experiment.experiment_id if experiment else client.create_experiment(PROJECT, **place)
        found = client.search_runs([number], f"tags.`czsl.run` = '{_quoted(str(path))}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
        else:
            self._run = client.create_run(number, tags={"czsl.run": str(path)}, run_name=path.name).info.run_id
            params = [Param(key, str(value)) for key, value in settings.items()]
            for first in range(0, len(params), 100):
                client.log_batch(self._run, params=params[first : first + 100])
        client.set_terminated(self._run, "RUNNING")
        self._last: dict[str, int] = {}
        self._waiting: list[Any] = []

    def write(self, numbers: dict[str, float], step: int, time: float) -> None:
        """Write numbers of one step that the store does not have."""
        from mlflow.entities import Metric

        for key, value in numbers.items():
            if key not in self._last:
                self._last[key] = max((m.step for m in self._client.get_metric_history(self._run, key)), default=-1)
            if step > self._last[key]:
                self._last[key] = step
                self._waiting.append(Metric(key, value, int(time * 1000), step))
        if len(self._waiting) > 500:
            self._send()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for first in range(0, len(waiting), 500):
            self._client.log_batch(self._run, metrics=waiting[first : first + 500])

    def close(self) -> None:
        """Write what is left."""
        self._send()
        self._client.set_terminated(self._run)


class Wandb:
    """A run of the project ``czsl``: offline in ``RUN/wandb`` unless ``WANDB_MODE`` is set."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        if mode == "offline":
            _remove(path / "wandb")
        name = re.sub(r"[^\w.-]", "-", path.name)[:64]
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True, x_service_wait=MAX_START_S)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=name,
            name=path.name,
            dir=str(path),
            mode=mode,
            resume="allow",
            config=settings,
            settings=quiet,
        )
        self._done = self._run.step if mode == "online" else 0

    def write(self, numbers: dict[str, float], step: int, time: float) -> None:
        """Write numbers of one step, unless the run has them."""
        if step >= self._done:
            self._run.log({**numbers, "time": time}, step=step)

    def close(self) -> None:
        """Hand over what is left; the package's own process writes the last of it a little later."""
        self._run.finish()


def _remove(folder: Path) -> None:
    """Remove a folder in which the process of an earlier tracker may still be closing its files."""
    end = time.monotonic() + MAX_CLOSE_S
    while folder.exists() and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            time.sleep(0.1)


_MAKERS: dict[str, Callable[[Path, dict[str, Any]], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": Wandb}


class Trackers:
    """The trackers of a run; one that fails is warned about once and left out, and training continues.

    Parameters
    ----------
    names : list of str
    path : Path
        The run folder.
    settings : dict
        The run's settings, flat.
    on_warning : callable
        Called with a text.
    """

    def __init__(self, names: list[str], path: Path, settings: dict[str, Any], on_warning: Callable[[str], None]):
        self._on_warning = on_warning
        self._last: dict[str, int] = {}
        self.open: dict[str, Tracker] = {}
        for name in names:
            try:
                self.open[name] = _MAKERS[name](path, settings)
            except Exception as error:
                self._failed(name, error)

    def write(self, record: dict[str, Any]) -> bool:
        """Write a line of the run's metrics; returns whether it has numbers that were not written before."""
        numbers, event = numbers_of(record), record.get("event", "")
        if not numbers or record["step"] <= self._last.get(event, -1):  # steps are repeated after workers died
            return False
        self._last[event] = record["step"]
        for name in list(self.open):
            try:
                self.open[name].write(numbers, record["step"], record.get("time", 0.0))
            except Exception as error:
                self._failed(name, error)
        return True

    def close(self) -> None:
        """Close all of them."""
        for name in list(self.open):
            try:
                self.open.pop(name).close()
            except Exception as error:
                self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        self.open.pop(name, None)
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        self._on_warning(
            f"log={name} failed and is left out from here on ({text}); czsl runs log RUN --to {name} writes it later"
        )


def _mlflow_store(path: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path.parent / 'mlflow.db'}"


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")
