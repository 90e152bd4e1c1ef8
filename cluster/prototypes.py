"""The prototypes of a run with the training images nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.progress import Progress, quiet
from czsl.data.batches import stratified
from czsl.data.table import Split, open_data
from czsl.errors import DataError, UsageError
from czsl.gpus import own_device
from czsl.runs.run import Run
from methods.clus_pro.gallery import PrimitiveGallery, count_scores, gallery
from methods.clus_pro.model import ClusPro
from methods.loading import load


@dataclass(frozen=True)
class Inspection:
    """Result of :func:`inspect_prototypes`.

    split : the training images; ``rows`` [N]: those looked at, to which the places in ``primitives`` refer
    primitives : one entry for each attribute and object that they show
    health : see :func:`methods.clus_pro.prototypes.health`
    counts : mean silhouette for each requested number of clusters
    """

    split: Split
    rows: np.ndarray
    primitives: list[PrimitiveGallery]
    health: dict[str, float]
    counts: dict[int, float]


def inspect_prototypes(
    run: Run,
    checkpoint: str = "best",
    *,
    per_pair: int = 0,
    shown: int = 8,
    counts: Sequence[int] = (),
    progress: Progress = quiet,
) -> Inspection:
    """Compare a run's prototypes with its training images, in this process.

    Parameters
    ----------
    run : Run
    checkpoint : str
        ``best``, ``last`` or a step.
    per_pair : int
        Number of images per pair to look at; 0: all. Adapted towers encode them again, features of frozen towers are cached.
    shown : int
        Nearest images of each prototype.
    counts : sequence of int
        Numbers of clusters to judge on these features.

    Raises
    ------
    UsageError
        A run of a method without prototypes.
    DataError
        The run's dataset is gone or holds no training images.
    """
    config = run.config
    if run.threads:
        torch.set_num_threads(run.threads)
    method = load(run, checkpoint).to(own_device())
    if not isinstance(method, ClusPro):
        raise UsageError(f"{config.method} has no prototypes", "only ClusPro learns prototypes", "give a run of clusPro")
    data = open_data(config.data, config.decode)
    loader = FeatureLoader(method, data, "train", Group(), config.eval_batch, progress, method.clip.precision)
    split = loader.split
    rows = stratified(split.attr, split.obj, per_pair, config.seed)
    if not len(rows):
        raise DataError(
            f"{data.folder} has no training images",
            "prototypes are shown with their nearest training images",
            "is it the run's dataset?",
        )
    features = loader.encode(rows, config.eval_batch).to(method.clip.device)
    labels = split.attr[rows], split.obj[rows]
    primitives, found = gallery(method, features, *labels, shown=shown)
    judged = count_scores(method, features, *labels, counts, config.seed) if counts else {}
    return Inspection(split, rows, primitives, found, judged)
