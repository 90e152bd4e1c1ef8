"""Disentanglers: one small MLP a primitive branch on top of the image feature (Troika, CVPR 2024, section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn


class Disentangler(nn.Module):
    """Linear -> batch norm -> ReLU -> dropout, [n, D] -> [n, D].

    In training the rows are those of the whole global batch, so the batch statistics do not depend on the number of workers.
    """

    def __init__(self, dim: int, dropout: float = 0.5):
        super().__init__()
        self.fc1, self.bn1_fc = nn.Linear(dim, dim), nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_nD: Tensor) -> Tensor:
        """Branch features, before the L2 norm."""
        return self.dropout(self.bn1_fc(self.fc1(x_nD)).relu())
