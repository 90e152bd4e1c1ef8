"""Label confidences: weights of candidate labels, which replace the labels of training images that only have candidate sets.

Each visit moves the confidences of an image's candidate labels towards the method's own probabilities (PRODEN, Lv et al., ICML 2020, with
a momentum); any loss that takes probabilities for targets can be trained with them.
Letters: N training images, B of a batch, S candidate labels at most, C seen pairs, A attributes, O objects, D joint width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from methods.features import Targets

CLIP_TEMPERATURE = 0.05
CHUNK = 4096  # images at a time where all are looked at


class LabelConfidences:
    """Confidences [N, S] of padded lists of candidate labels, the same on every worker.

    Parameters
    ----------
    index_NS : int64 array
        Candidate labels as indices of seen pairs, padded with -1.
    pairs_C2 : int64 array
        The seen pairs (attribute, object).
    num_attributes, num_objects : int
    momentum : float, default 0.1
        m of ``w <- (1 - m) w + m w_new``; 1 is PRODEN, 0 keeps the initial confidences.
    temperature : float, default 1
        t of ``w_new ~ p^(1/t) * relevance^eta`` on the candidate labels, normalised.
    relevance : float, default 1
        eta.
    rescue : float, default 0
        r of ``w_new <- (1 - r) w_new + r p`` over all seen pairs. Above 0 all of them are kept for each image, [N, C].
    device, dtype
        Device and type of the confidences.

    Notes
    -----
    Confidences start uniform. ``weight_NS`` is the only state: candidate labels come from their file.
    """

    def __init__(
        self,
        index_NS: np.ndarray,
        pairs_C2: np.ndarray,
        num_attributes: int,
        num_objects: int,
        *,
        momentum: float = 0.1,
        temperature: float = 1.0,
        relevance: float = 1.0,
        rescue: float = 0.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.num_attributes, self.num_objects = num_attributes, num_objects
        self.momentum, self.temperature, self.relevance, self.rescue = momentum, temperature, relevance, rescue
        self.frozen = False
        if rescue:
            inside_NC = np.zeros((len(index_NS), len(pairs_C2) + 1), bool)
            np.put_along_axis(inside_NC, index_NS, True, axis=1)  # padding goes to the last column
            inside_NC[:, -1] = False
            inside_NS, index_NS = inside_NC[:, :-1], np.tile(np.arange(len(pairs_C2)), (len(index_NS), 1))
        else:
            inside_NS, index_NS = index_NS >= 0, index_NS.clip(0)
        self.inside_NS, self.index_NS, self.pairs_C2 = (torch.tensor(x, device=device) for x in (inside_NS, index_NS, pairs_C2))
        self.weight_NS = self.inside_NS.to(dtype) / self.inside_NS.sum(1, keepdim=True)

    def __len__(self) -> int:
        return len(self.index_NS)

    # -- initial values ----------------------------------------------------------------------------------------------
    def start_multihot(self) -> None:
        """Set 1 for each candidate label: the first visit counts an image once for each of them (KMT-PLL)."""
        self.weight_NS.copy_(self.inside_NS)

    @torch.no_grad()
    def start_from(self, images_ND: Tensor, texts_CD: Tensor) -> None:
        """Set the softmax over the candidate labels of (cosine - the label's mean cosine over all images) / 0.05.

        The mean takes away that some labels are near to everything; taken per image it would cancel in the softmax.
        """
        texts_CD = texts_CD.to(self.weight_NS)
        total_D = texts_CD.new_zeros(texts_CD.shape[1])
        for rows in torch.arange(len(self)).split(CHUNK):
            total_D += normalize(images_ND[rows].to(texts_CD), dim=-1).sum(0)
        mean_C = texts_CD @ total_D / len(self)
        for rows in torch.arange(len(self)).split(CHUNK):
            scores_nC = normalize(images_ND[rows].to(texts_CD), dim=-1) @ texts_CD.T - mean_C
            rows = rows.to(self.weight_NS.device)
            scores_nS = scores_nC.gather(1, self.index_NS[rows]) / CLIP_TEMPERATURE
            self.weight_NS[rows] = scores_nS.masked_fill(~self.inside_NS[rows], -torch.inf).softmax(1)

    # -- what a step takes and leaves ----------------------------------------------------------------------------------
    def dense(self, rows_B: Tensor) -> Tensor:
        """Confidences over all seen pairs, [B, C]."""
        return self._spread(self.weight_NS[rows_B], rows_B)

    def candidates(self, rows_B: Tensor) -> Tensor:
        """Return which seen pairs are candidate labels, bool [B, C]."""
        return self._spread(self.inside_NS[rows_B].to(self.weight_NS.dtype), rows_B) > 0

    def _spread(self, values_BS: Tensor, rows_B: Tensor) -> Tensor:
        out_BC = values_BS.new_zeros(len(rows_B), len(self.pairs_C2))
        return out_BC.scatter_add_(1, self.index_NS[rows_B], values_BS)  # padding adds 0 to the first

    def top1(self, rows_B: Tensor) -> Tensor:
        """The candidate label of the largest confidence, int64 [B]; the first of equals."""
        place_B1 = self.weight_NS[rows_B].argmax(1, keepdim=True)
        return self.index_NS[rows_B].gather(1, place_B1)[:, 0]

    def targets(self, rows_B: Tensor) -> Targets:
        """The labels of images as probabilities: of pairs, and their marginals over attributes and objects."""
        pair_BC, pairs_C2 = self.dense(rows_B), self.pairs_C2
        attribute_BA = pair_BC.new_zeros(len(rows_B), self.num_attributes).index_add_(1, pairs_C2[:, 0], pair_BC)
        object_BO = pair_BC.new_zeros(len(rows_B), self.num_objects).index_add_(1, pairs_C2[:, 1], pair_BC)
        hard_B2 = pairs_C2[self.top1(rows_B)]
        return Targets(attribute_BA, object_BO, pair_BC, (hard_B2[:, 0], hard_B2[:, 1]), self.candidates(rows_B))

    @torch.no_grad()
    def update(self, rows_B: Tensor, logits_BC: Tensor, relevance_BC: Tensor | None = None) -> None:
        """Move the confidences of images towards the method's own probabilities of their candidate labels.

        Parameters
        ----------
        rows_B : int64 tensor
            Indices of the images in the training split, each once; on every worker those of the whole global batch.
        logits_BC : float tensor
            Their logits over the seen pairs.
        relevance_BC : float tensor, optional
            Non-negative relevance of images to labels.
        """
        if self.frozen or not self.momentum:
            return
        index_BS, inside_BS = self.index_NS[rows_B], self.inside_NS[rows_B]
        logp_BC = logits_BC.to(self.weight_NS).log_softmax(1)
        # In logarithms: if all candidate labels are improbable, their powers would vanish.
        new_BS = logp_BC.gather(1, index_BS) / self.temperature
        if relevance_BC is not None and self.relevance:
            new_BS = new_BS + self.relevance * relevance_BC.to(new_BS).gather(1, index_BS).clamp_min(1e-6).log()
        new_BS = new_BS.masked_fill(~inside_BS, -torch.inf).softmax(1)
        if self.rescue:
            new_BS = torch.lerp(new_BS, logp_BC.gather(1, index_BS).exp(), self.rescue)
        self.weight_NS[rows_B] = torch.lerp(self.weight_NS[rows_B], new_BS, self.momentum)
