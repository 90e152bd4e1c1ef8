"""The partial zero-shot loss: images and label embeddings, aligned by the label confidences.

Letters: B images, C labels, D joint width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def relevance(images_BD: Tensor, labels_CD: Tensor) -> Tensor:
    """0.5 + 0.5 cosine of unit features, [B, C]."""
    return 0.5 + 0.5 * images_BD @ labels_CD.T


def classification(logits_BC: Tensor, weight_BC: Tensor, relevance_BC: Tensor | None = None) -> Tensor:
    """-mean_i sum_j w_ij [rel_ij] log p_ij: cross-entropy where weights are one-hot (PRODEN; with relevance KMT-PLL's)."""
    if relevance_BC is not None:
        weight_BC = weight_BC * relevance_BC
    return -(weight_BC * logits_BC.log_softmax(1)).sum(1).mean()


def alignment(images_BD: Tensor, weight_BC: Tensor, labels_CD: Tensor) -> Tensor:
    """mean_i (1 - cosine of the image and its weighted label embedding)."""
    return (1 - (images_BD * normalize(weight_BC @ labels_CD, dim=-1)).sum(1)).mean()


def outside(logits_BC: Tensor, candidates_BC: Tensor) -> Tensor:
    """-mean_i log(probability of all candidate labels together), which contain the true one by definition."""
    inside_B = logits_BC.masked_fill(~candidates_BC, -torch.inf).logsumexp(1)
    return (logits_BC.logsumexp(1) - inside_B).mean()


def anchor(moved_ND: Tensor, frozen_ND: Tensor) -> Tensor:
    """mean (1 - cosine) of unit features to what they were."""
    return (1 - (moved_ND * frozen_ND).sum(1)).mean()
