"""Disentanglers: one small MLP a primitive branch on top of the image feature (Troika, CVPR 2024, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Disentangler(nn.Module):
    """Linear -> batch norm -> ReLU -> dropout, [n, D] -> [n, D].

    In training the rows are those of the whole global batch, so the batch statistics do not depend on the number of workers. A
    single row has no statistics: it is normalised with the running ones, which stay unchanged.
    """

    def __init__(self, dim: int, dropout: float = 0.5):
        super().__init__()
        self.fc1, self.bn1_fc = nn.Linear(dim, dim), nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_nD: Tensor) -> Tensor:
        """Branch features, before the L2 norm."""
        return self.dropout(self.activate(x_nD))

    def activate(self, x_nD: Tensor, track: bool = True) -> Tensor:
        """Everything but dropout. ``track``: whether the running statistics follow these rows."""
        bn = self.bn1_fc
        x_nD = self.fc1(x_nD)
        if not bn.training or len(x_nD) == 1:
            return F.batch_norm(x_nD, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps).relu()
        if track:
            return bn(x_nD).relu()
        return F.batch_norm(x_nD, None, None, bn.weight, bn.bias, training=True, eps=bn.eps).relu()

    @torch.no_grad()
    def follow(self, x_nD: Tensor, copies: int = 1) -> None:
        """Let the running statistics follow rows as if each occurred ``copies`` times, without computing their features."""
        bn = self.bn1_fc
        assert bn.running_mean is not None and bn.running_var is not None and bn.num_batches_tracked is not None
        momentum = bn.momentum or 0.0
        x_nD = self.fc1(x_nD)
        n = len(x_nD) * copies
        # New tensors, not in place: the backward pass of this step still holds the old ones.
        bn.running_mean = bn.running_mean.lerp(x_nD.mean(0), momentum)
        bn.running_var = bn.running_var.lerp(x_nD.var(0, correction=0) * (n / max(n - 1, 1)), momentum)
        bn.num_batches_tracked += 1
