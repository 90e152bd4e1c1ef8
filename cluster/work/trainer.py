"""The state of one worker's training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.gradients import GradientAverage
from cluster.work.progress import Progress
from czsl.clip.captured import Graphs
from czsl.data.batches import steps_per_epoch
from czsl.data.files.partial_labels import PartialLabels
from czsl.data.table import Dataset
from czsl.runs.config import RunConfig
from czsl.runs.run import Run
from methods.method import Method


@dataclass
class Trainer:
    """Everything of one worker's training; made by :func:`cluster.work.training.prepare`."""

    run: Run
    config: RunConfig
    comm: Group
    device: torch.device
    data: Dataset
    method: Method
    optimizer: torch.optim.Optimizer
    average: GradientAverage
    train: FeatureLoader
    val: FeatureLoader
    rows: Any  # int64 [n], training images in use
    val_rows: Any
    labels: PartialLabels | None  # candidate labels, which training has instead of labels
    progress: Progress
    precision: str  # float32, bfloat16 or float64
    compiled: bool = False  # repeated parts of the towers run as torch.compile makes them
    graphs: Graphs | None = None  # passes through the towers that are replayed
    step: int = 0
    epoch: int = 0
    place: int = 0  # batches done in this epoch
    best_auc: float = -1.0  # the largest figure that `selection` goes by
    waited: int = 0  # epochs in a row without a better one

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in fixed order."""
        return {n: p for n, p in self.method.named_parameters() if p.requires_grad}

    @property
    def epochs(self) -> int:
        """Passes of gradient steps; 0 if the initialisation is the whole training."""
        return self.config.epochs if self.method.steps else 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * steps_per_epoch(len(self.rows), self.config.batch)

    @property
    def waited_enough(self) -> bool:
        """True if ``stop_after`` ends training: that number of epochs in a row were no better than the best one."""
        return bool(self.config.stop_after) and self.waited >= self.config.stop_after

    def log(self, **record: Any) -> None:
        """Append to the run's metrics, once for all workers."""
        if self.comm.rank == 0:
            self.run.log({**record, "step": self.step, "time": round(time.time(), 3)})
