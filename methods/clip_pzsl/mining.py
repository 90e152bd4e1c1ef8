"""The semantic mining block: K-means cross-attention in which labels are the cluster centres and images the points.

kMaX-DeepLab's rule (Yu et al., ECCV 2022) in our reading: each point belongs to one centre, a centre moves by what its points say.
Letters: B images, C labels, D joint width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.clip_pzsl.config import ClipPzslConfig

GUMBEL_TAU = 0.1


def assignment(logits_BC: Tensor, allowed_BC: Tensor | None, kind: str) -> Tensor:
    """Assignment of each point to centres, [B, C]; rows sum to 1.

    Parameters
    ----------
    logits_BC : float tensor
    allowed_BC : bool tensor, optional
        Centres that a point may have; each row has one at least.
    kind : str
        One-hot of the largest logit with the softmax's gradient (``argmax``), the softmax itself (``soft``), one-hot with Gumbel noise
        on logits / tau (``gumbel_logits``) or on probabilities (``gumbel_probs``: from some 50 centres on no better than chance).
    """
    if allowed_BC is not None:
        logits_BC = logits_BC.masked_fill(~allowed_BC, -torch.inf)
    soft_BC = logits_BC.softmax(1)
    if kind == "soft":
        return soft_BC
    chosen_by = logits_BC
    if kind != "argmax":
        noise_BC = -torch.empty_like(logits_BC).exponential_().log()
        noisy = soft_BC if kind == "gumbel_probs" else logits_BC
        chosen_by = (noisy + noise_BC) / GUMBEL_TAU
        if allowed_BC is not None:
            chosen_by = chosen_by.masked_fill(~allowed_BC, -torch.inf)
        soft_BC = chosen_by.softmax(1)
    hard_BC = F.one_hot(chosen_by.argmax(1), logits_BC.shape[1]).to(soft_BC.dtype)
    return hard_BC + (soft_BC - soft_BC.detach())


def gathered(assignment_BC: Tensor, points_BD: Tensor, reduce: str) -> Tensor:
    """Aggregate of the points of each centre, [C, D]: their sum, or their mean with a count that has no gradient; 0 without points."""
    sums_CD = assignment_BC.T @ points_BD
    if reduce == "sum":
        return sums_CD
    return sums_CD / assignment_BC.detach().sum(0).clamp_min(1)[:, None]


class Mining(nn.Module):
    """One layer of the block: ``C + rho W_o gather(A, W_v x)``, then ``C + FFN(LN(C))``.

    Queries, keys and values start as the identity, so that the first assignment is near to CLIP's own; W_o and the last layer of the FFN
    start at zero, so that the block changes nothing at first.
    """

    def __init__(self, dim: int, config: ClipPzslConfig):
        super().__init__()
        self.rho, self.assign, self.reduce = config.rho, config.assign, config.reduce
        self.norm_points, self.norm_centres, self.norm_ffn = (nn.LayerNorm(dim) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        width = max(1, round(config.ffn_ratio * dim))
        self.ffn = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim))
        for linear in (self.query, self.key, self.value):
            nn.init.eye_(linear.weight)
        last = self.ffn[2]
        assert isinstance(last, nn.Linear)
        for parameter in (self.out.weight, last.weight, last.bias):
            nn.init.zeros_(parameter)

    def forward(self, centres_CD: Tensor, points_BD: Tensor, allowed_BC: Tensor | None) -> Tensor:
        """Centres [C, D] that looked at the points [B, D]."""
        queries_BD, keys_CD = self.query(self.norm_points(points_BD)), self.key(self.norm_centres(centres_CD))
        logits_BC = queries_BD @ keys_CD.T / keys_CD.shape[1] ** 0.5
        assigned_BC = assignment(logits_BC, allowed_BC, self.assign)
        moved_CD = centres_CD + self.rho * self.out(gathered(assigned_BC, self.value(points_BD), self.reduce))
        return self.alone(moved_CD)

    def alone(self, centres_CD: Tensor) -> Tensor:
        """Centres that have no points."""
        return centres_CD + self.ffn(self.norm_ffn(centres_CD))
