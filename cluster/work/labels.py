"""Partial labels in a training: label confidences from their file to their initial values, and their diagnostics.

Nothing here but :func:`disambiguation` looks at the true labels of training images, and it only reports.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.progress import Progress
from czsl.data.files.partial_labels import PartialLabels, read_partial_labels
from czsl.data.table import Dataset
from czsl.errors import DataError
from czsl.runs.config import RunConfig
from czsl.runs.run import Run
from methods.building import build
from methods.method import Method
from methods.parts.label_confidences import LabelConfidences

CALIBRATION_BINS = 10


def read_labels(run: Run, data: Dataset, comm: Group) -> PartialLabels | None:
    """The candidate labels of a run, if it has any: the file that it began with.

    Raises
    ------
    DataError
        The file is of other data, damaged, another one than at the run's start, or not the same on all nodes.
    """
    if run.config.partial_labels is None:
        return None
    labels = read_partial_labels(run.config.partial_labels, data)
    began_with = run.environment().get("partial_labels_sha256") or labels.sha256
    if began_with != labels.sha256:
        raise DataError(
            f"{run.config.partial_labels} is another file than at the start of {run.path.name}",
            f"SHA-256 {began_with[:16]} then, {labels.sha256[:16]} now",
            "put the old file back, or start a new run",
        )
    if len(found := set(comm.gather_objects(labels.sha256))) > 1:
        seen = ", ".join(sorted(sha[:16] for sha in found))
        raise DataError(f"{run.config.partial_labels} differs between nodes", f"SHA-256 {seen}", "copy one file to all nodes")
    return labels


def make_confidences(labels: PartialLabels, config: RunConfig, method: Method, device: torch.device) -> LabelConfidences:
    """Label confidences by the run's settings, still uniform."""
    space = method.space
    return LabelConfidences(
        labels.index, space.train_pairs, space.num_attributes, space.num_objects, momentum=config.label_momentum,
        temperature=config.label_temperature, relevance=config.label_relevance, rescue=config.label_rescue, device=device,
        dtype=method.clip.mean.dtype,
    )  # fmt: skip


@torch.inference_mode()
def start_confidences(
    confidences: LabelConfidences, config: RunConfig, method: Method, data: Dataset, comm: Group, progress: Progress
) -> None:
    """Set the initial confidences. ``label_init=clip`` needs the frozen features of all training images, which are cached."""
    if config.label_init == "multihot":
        confidences.start_multihot()
    elif config.label_init == "clip":
        frozen = build("zero-shot", data.space, method.clip, {"names": method.config.names})
        images_ND = FeatureLoader(frozen, data, "train", comm, config.eval_batch, progress, method.clip.precision).features
        assert images_ND is not None
        texts = frozen.encode_compositions(torch.from_numpy(data.space.train_pairs.copy()).to(method.clip.device))
        confidences.start_from(images_ND.to(method.clip.device), texts.pair)
        comm.copy_from_first([confidences.weight_NS])


def hard_labels(confidences: LabelConfidences, rows_N: np.ndarray) -> tuple[Tensor, Tensor]:
    """Attribute and object of the top-1 candidate label of training images, int64 [N] each."""
    pairs_N2 = confidences.pairs_C2[confidences.top1(torch.from_numpy(rows_N).to(confidences.pairs_C2.device))]
    return pairs_N2[:, 0], pairs_N2[:, 1]


def disambiguation(confidences: LabelConfidences, data: Dataset) -> dict[str, Any]:
    """Rate at which the top-1 candidate label is the hidden true label, and calibration of the label confidences.

    A diagnostic: it needs the labels that training does not have.

    Returns
    -------
    dict
        ``disambiguation``: share of training images; ``label_calibration``: expected calibration error of the largest confidence, in ten
        bins.
    """
    space = data.space
    true_N = space.locate(data.split("train").pairs, space.train_pairs)
    rows_N = torch.arange(len(confidences), device=confidences.weight_NS.device)
    right_N = confidences.top1(rows_N).cpu().numpy() == true_N
    if not len(right_N):
        return {}
    sure_N = confidences.weight_NS.amax(1).cpu().numpy().astype(np.float64)
    bins_N = np.minimum((sure_N * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [abs((right_N[bins_N == b] - sure_N[bins_N == b]).sum()) for b in range(CALIBRATION_BINS)]
    return {"disambiguation": float(right_N.mean()), "label_calibration": float(sum(gaps) / len(right_N))}
