"""Gallery of a trained ClusPro's prototypes: their nearest training images, their sizes and their health.

Letters: C primitives (attributes first), K prototypes, N images, D width, n nearest images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from czsl.retrieval.clusters import balanced_kmeans, silhouette
from methods.clus_pro.model import ClusPro
from methods.clus_pro.prototypes import effective_count, health, mean_cosine, prototype_cosines

MIN_IMAGES = 20  # of a primitive whose number of clusters is judged


@dataclass(frozen=True)
class PrimitiveGallery:
    """Prototypes of one primitive.

    name : the attribute or object; ``kind``: ``attribute`` or ``object``
    images : training images that show it
    sizes : how many of them are nearest to each prototype, [K]
    nearest : for each prototype, indices of its nearest images among those given, best first
    cosines : their cosines to it
    effective_k, cosine : health, see :mod:`methods.clus_pro.prototypes`
    """

    name: str
    kind: str
    images: int
    sizes: list[int]
    nearest: list[list[int]]
    cosines: list[list[float]]
    effective_k: float
    cosine: float


@torch.inference_mode()
def gallery(
    method: ClusPro, features_ND: Tensor, attr_N: np.ndarray, obj_N: np.ndarray, shown: int = 8
) -> tuple[list[PrimitiveGallery], dict[str, float]]:
    """The prototypes of every primitive that training images show, and the health of all.

    Parameters
    ----------
    method : ClusPro
        In evaluation mode.
    features_ND : float tensor
        Image features of training images, without augmentation.
    attr_N, obj_N : int array
        Their labels.
    shown : int
        Nearest images to name for each prototype.
    """
    hidden_2ND = method.clustered_features(features_ND)
    bank, A = method.prototypes.bank, method.space.num_attributes
    entries = []
    for kind, labels_N, first, names, hidden_ND in (
        ("attribute", attr_N, 0, method.space.attributes, hidden_2ND[0]),
        ("object", obj_N, A, method.space.objects, hidden_2ND[1]),
    ):
        for c in np.unique(labels_N).tolist():
            rows_n = np.flatnonzero(labels_N == c)
            near_nK = prototype_cosines(hidden_ND[rows_n], bank[first + c])
            sizes = torch.bincount(near_nK.argmax(1), minlength=near_nK.shape[1]).tolist()
            best_sK, place_sK = near_nK.sort(dim=0, descending=True, stable=True)
            nearest = rows_n[place_sK[:shown].T.cpu().numpy()].tolist()
            one = bank[first + c][None]
            entries.append(
                PrimitiveGallery(
                    names[c], kind, len(rows_n), sizes, nearest, best_sK[:shown].T.tolist(),
                    float(effective_count(one)), float(mean_cosine(one)),
                )
            )  # fmt: skip
    labels_2N = torch.from_numpy(np.concatenate([attr_N, A + obj_N]))
    return entries, health(bank, hidden_2ND.flatten(0, 1), labels_2N.to(bank.device))


@torch.inference_mode()
def count_scores(
    method: ClusPro, features_ND: Tensor, attr_N: np.ndarray, obj_N: np.ndarray, counts: Sequence[int], seed: int = 0
) -> dict[int, float]:
    """Mean silhouette of balanced spherical k-means for each number of clusters, over primitives with enough images.

    The number with the highest is where these features fall apart most clearly.
    """
    hidden_2ND = method.clustered_features(features_ND).cpu().numpy()
    scores: dict[int, list[float]] = {k: [] for k in counts}
    for labels_N, hidden_ND in ((attr_N, hidden_2ND[0]), (obj_N, hidden_2ND[1])):
        for c in np.unique(labels_N):
            own_nD = hidden_ND[labels_N == c]
            if len(own_nD) < max(MIN_IMAGES, 2 * max(counts)):
                continue
            for k in counts:
                scores[k].append(silhouette(own_nD, balanced_kmeans(own_nD, k, seed)[0]))
    return {k: float(np.mean(values)) for k, values in scores.items() if values}
