"""Estimate counts, steps and memory of a training from shapes; nothing is written."""

from __future__ import annotations

import logging
from typing import Any

import torch

from cluster.work.labels import make_confidences
from cluster.work.memory import check_room
from cluster.work.placement import Placement
from czsl.data.batches import steps_per_epoch, stratified
from czsl.data.files.partial_labels import PartialLabels
from czsl.data.table import Dataset
from czsl.precision import fitting
from czsl.runs.config import RunConfig
from methods.method import Method

log = logging.getLogger("czsl")

MOMENTS = 2  # numbers that both optimizers keep per trained weight


def estimate(
    config: RunConfig, data: Dataset, method: Method, placement: Placement, labels: PartialLabels | None = None
) -> dict[str, Any]:
    """Counts and bytes of a training, by part; memory is per worker, see :func:`memory_of`."""
    space = data.space
    train = data.split("train")
    images = len(stratified(train.attr, train.obj, config.train_per_pair, config.seed))
    steps = steps_per_epoch(images, config.batch)
    # Only the workers can resolve `auto`; on a GPU it is most probably bfloat16.
    precision = config.precision if config.precision != "auto" else "bfloat16" if placement.gpu else "float32"
    return {
        "train_images": images,
        "train_pairs": len(space.train_pairs),
        "val_images": len(data.split("val")),
        "steps_per_epoch": steps if method.trains else 0,
        "steps": steps * config.epochs if method.trains else 0,
        "trainable_parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "memory_bytes_per_worker": memory_of(config, method, precision, placement.workers, labels),
    }


def memory_of(
    config: RunConfig, method: Method, precision: str, workers: int = 1, labels: PartialLabels | None = None
) -> dict[str, int]:
    """Bytes of a worker in a training step, by part, and their ``total``.

    ``activations`` are those kept for the backward pass (:mod:`cluster.work.kept`). What an operation needs while it runs, the gradients
    of activations and the driver's own memory come on top of them. A method without steps has only weights. Activations are missing if
    a method's steps depend on values, and so cannot be counted from shapes.
    """
    clip, trained = (sum(p.numel() * p.element_size() for p in owner.parameters()) for owner in (method.clip, method))
    if not (method.trains and method.steps):
        return {"clip": clip, "total": clip}
    confidences = None if labels is None else make_confidences(labels, config, method, method.clip.device)
    try:
        from cluster.work.kept import step_bytes  # needs a part of torch that may change between versions

        found = step_bytes(method, config, precision, workers, confidences)
    except Exception as error:
        log.info("the memory of a step of %s cannot be counted from shapes: %s", method.name, error)
        return {"clip": clip, "trained_with_optimizer": trained * (2 + MOMENTS), "total": clip + trained * (2 + MOMENTS)}
    memory = {
        "clip": found.clip,
        "trained": found.trained,
        "gradients": found.trained,
        "optimizer": MOMENTS * found.trained,
        "other_state": found.buffers,
        "batch": found.batch,
        "activations": found.activations,
    }
    return {**memory, "total": sum(memory.values())}


def check_training(
    config: RunConfig, precision: str, device: torch.device, method: Method, workers: int = 1, labels: PartialLabels | None = None
) -> None:
    """Compare what a worker of a training needs with the free memory of its GPU; errors as of :func:`cluster.work.memory.check_room`.

    The method is still on the CPU.
    """
    if device.type == "cuda" and precision != "float64":
        needed = lambda c, p: memory_of(c, method, p, workers, labels)["total"]  # noqa: E731
        check_room(config, precision, device, needed, fitting(device) == "bfloat16")
