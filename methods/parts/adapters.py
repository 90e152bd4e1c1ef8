"""Bottleneck adapters in the frozen blocks of CLIP's image tower (Troika, CVPR 2024, section 3.2)."""

from __future__ import annotations

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from czsl.clip.compiled import compilable
from czsl.clip.lean import under_autocast
from czsl.clip.towers import Towers
from czsl.clip.vision import Adapter


class AdapterSettings(Protocol):
    """The settings that decide about adapters."""

    adapter_dim: int
    adapter_dropout: float


SCALE = 0.1  # of what an adapter adds


class Bottleneck(nn.Module):
    """V -> r -> V with ReLU and dropout, times ``SCALE``; adds nothing at the start."""

    def __init__(self, width: int, rank: int, dropout: float):
        super().__init__()
        self.down_proj, self.up_proj = nn.Linear(width, rank), nn.Linear(rank, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        for parameter in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
            nn.init.zeros_(parameter)


@compilable
def added(x: Tensor, onto: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, dropout: nn.Module) -> Tensor:
    """``onto`` [..., V] plus what a bottleneck makes of x [..., V], with its weights down [r, V] and up [V, r]."""
    hidden = dropout(F.linear(x, down, down_bias).relu())
    return torch.add(onto, F.linear(hidden, up, up_bias), alpha=SCALE)


class BlockAdapters(nn.ModuleList):
    """2n bottlenecks for n blocks: indices 0..n-1 at the attentions, n..2n-1 at the MLPs (`Adapters` of the tower)."""

    def __init__(self, layers: int, width: int, rank: int, dropout: float):
        super().__init__(Bottleneck(width, rank, dropout) for _ in range(2 * layers))

    def for_pass(self, blocks: range) -> Adapter:
        """Return the additions to some blocks for one pass; under autocast all their weights are converted here, together."""
        weights = under_autocast(*self.trained(blocks))
        places = {index: place for place, index in enumerate(self._indices(blocks))}
        dropouts = [cast(Bottleneck, bottleneck).dropout for bottleneck in self]

        def add(index: int, x: Tensor, onto: Tensor) -> Tensor:
            start = 4 * places[index]
            down, down_bias, up, up_bias = weights[start : start + 4]
            return added(x, onto, down, down_bias, up, up_bias, dropouts[index])

        return add

    def trained(self, blocks: range) -> list[nn.Parameter]:
        """The weights of the additions to some blocks, bottleneck by bottleneck."""
        return [weight for index in self._indices(blocks) for weight in self[index].parameters()]

    def _indices(self, blocks: range) -> list[int]:
        n = len(self) // 2
        return [*blocks, *(n + i for i in blocks)]


def image_adapters(clip: Towers, config: AdapterSettings) -> BlockAdapters | None:
    """Adapters for all blocks of a CLIP's image tower; None if their width is 0, which leaves the tower frozen."""
    tower, rank = clip.visual, config.adapter_dim
    return BlockAdapters(len(tower.blocks), tower.width, rank, config.adapter_dropout) if rank else None
