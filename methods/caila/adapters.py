"""Adapters inside the layers of a CLIP tower, one set for each concept, and the layers they sit in.

Letters: B sequences, L tokens, V width, r width of an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from czsl.clip.vision import attention
from czsl.recompute import recomputed

AFTER = ("attention", "mlp")  # the two sub-layers of a layer
MIXTURE = "mixture"
MIXED = ("object", "attribute")  # concepts whose adapters take part in a mixture


class TransformerAdapter(nn.Module):
    """V -> r -> V with the tower's own activation; adds nothing at the start."""

    def __init__(self, width: int, rank: int, activation: type[nn.Module]):
        super().__init__()
        self.down, self.up, self.activation = nn.Linear(width, rank), nn.Linear(rank, width), activation()
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def latent(self, x: Tensor) -> Tensor:
        """[..., V] -> [..., r]."""
        return self.activation(self.down(x))

    def forward(self, x: Tensor) -> Tensor:
        """Addition to a sub-layer's output, in the shape of ``x``."""
        return self.up(self.latent(x))


class TowerAdapters(nn.Module):
    """Adapters of all layers of one tower.

    Parameters
    ----------
    blocks : sequence of nn.Module
        The frozen layers, as open_clip builds them.
    width : int
        V.
    rank : int
        r.
    concepts : sequence of str
        Each gets adapters of its own in every layer.
    mixture_from : int, optional
        First layer that also has adapters of the mixture; default: none has.
    """

    def __init__(self, blocks: Any, width: int, rank: int, concepts: Sequence[str], mixture_from: int | None = None):
        super().__init__()
        self.layers = nn.ModuleList()
        for i, block in enumerate(blocks):
            here = [*concepts] + ([MIXTURE] if mixture_from is not None and i >= mixture_from else [])
            activation = type(block.mlp.gelu)
            sets = {after: nn.ModuleDict({c: TransformerAdapter(width, rank, activation) for c in here}) for after in AFTER}
            self.layers.append(nn.ModuleDict(sets))

    def addition(self, i: int, after: str, concept: str, h: Tensor) -> Tensor:
        """Return the addition of layer i to the output h of one of its sub-layers.

        For a mixture, the latents of three adapters are averaged before the mixture's way up, and its result with theirs.
        """
        adapters = cast(nn.ModuleDict, cast(nn.ModuleDict, self.layers[i])[after])
        if concept != MIXTURE:
            return adapters[concept](h)
        mixture = cast(TransformerAdapter, adapters[MIXTURE])
        others = [cast(TransformerAdapter, adapters[c]) for c in MIXED]
        latents = [adapter.latent(h) for adapter in others]
        up = mixture.up(torch.stack([mixture.latent(h), *latents]).mean(0))
        return torch.stack([up, *(adapter.up(z) for adapter, z in zip(others, latents, strict=True))]).mean(0)

    def run(
        self, blocks: Any, start: int, stop: int, concept: str, x_BLV: Tensor, causal: bool = False, recompute=False
    ) -> Tensor:
        """Tokens [B, L, V] after layers start..stop-1; ``recompute`` keeps no activations for the backward pass."""
        for i in range(start, stop):
            if recompute and torch.is_grad_enabled():
                x_BLV = recomputed(self.layer, blocks[i], i, concept, x_BLV, causal)
            else:
                x_BLV = self.layer(blocks[i], i, concept, x_BLV, causal)
        return x_BLV

    def layer(self, block: Any, i: int, concept: str, x_BLV: Tensor, causal: bool) -> Tensor:
        """One layer: each sub-layer's output passes its adapter and joins the stream with what the adapter adds."""
        kv = block.ln_1(x_BLV)
        h = block.ls_1(attention(block.attn, kv, kv, causal=causal))
        x_BLV = x_BLV + h + self.addition(i, "attention", concept, h)
        h = block.ls_2(block.mlp(block.ln_2(x_BLV)))
        return x_BLV + h + self.addition(i, "mlp", concept, h)
