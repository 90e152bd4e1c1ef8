"""Bottleneck adapters in the frozen blocks of CLIP's image tower (Troika, CVPR 2024, section 3.2)."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor, nn

from czsl.clip.towers import Towers


class AdapterSettings(Protocol):
    """The settings that decide about adapters."""

    adapter_dim: int
    adapter_dropout: float


class Bottleneck(nn.Module):
    """V -> r -> V with ReLU and dropout, times 0.1; adds nothing at the start."""

    scale = 0.1

    def __init__(self, width: int, rank: int, dropout: float):
        super().__init__()
        self.down_proj, self.up_proj = nn.Linear(width, rank), nn.Linear(rank, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        for parameter in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Addition to the stream, in the shape of ``x``."""
        return self.up_proj(self.dropout(self.down_proj(x).relu())) * self.scale


class BlockAdapters(nn.ModuleList):
    """2n bottlenecks for n blocks: indices 0..n-1 at the attentions, n..2n-1 at the MLPs (an `Adapter` of the tower)."""

    def __init__(self, layers: int, width: int, rank: int, dropout: float):
        super().__init__(Bottleneck(width, rank, dropout) for _ in range(2 * layers))

    def forward(self, index: int, x: Tensor) -> Tensor:
        """Addition of adapter ``index`` to the stream x [B, L, V]."""
        return self[index](x)


def image_adapters(clip: Towers, config: AdapterSettings) -> BlockAdapters | None:
    """Adapters for all blocks of a CLIP's image tower; None if their width is 0, which leaves the tower frozen."""
    tower, rank = clip.visual, config.adapter_dim
    return BlockAdapters(len(tower.blocks), tower.width, rank, config.adapter_dropout) if rank else None
