"""Adapters inside the layers of a CLIP tower, one set for each concept, and the layers they sit in.

Letters: B sequences, L tokens, V width, r width of an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from czsl.clip.lean import under_autocast
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


# Weights of adapters for one pass: of layer, sub-layer and concept down [r, V], its bias [r], up [V, r], its bias [V].
Weights = dict[tuple[int, str, str], tuple[Tensor, Tensor, Tensor, Tensor]]


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

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that are trained."""
        return [p for p in self.parameters() if p.requires_grad]

    def for_pass(self, *concepts: str) -> Weights:
        """Return the weights of concepts for one pass; under autocast all are converted here, together."""
        wanted = {*concepts, *(MIXED if MIXTURE in concepts else ())}
        found = {
            (i, after, concept): cast(TransformerAdapter, adapter)
            for i, layer in enumerate(self.layers)
            for after in AFTER
            for concept, adapter in cast(nn.ModuleDict, cast(nn.ModuleDict, layer)[after]).items()
            if concept in wanted
        }
        flat = under_autocast(*(w for a in found.values() for w in (a.down.weight, a.down.bias, a.up.weight, a.up.bias)))
        return {key: cast(Any, flat[4 * n : 4 * n + 4]) for n, key in enumerate(found)}

    def addition(self, i: int, after: str, concept: str, h: Tensor, weights: Weights) -> Tensor:
        """Return the addition of layer i to the output h of one of its sub-layers.

        For a mixture, the latents of three adapters are averaged before the mixture's way up, and its result with theirs.
        """
        adapters = cast(nn.ModuleDict, cast(nn.ModuleDict, self.layers[i])[after])

        def latent(name: str) -> Tensor:
            down, bias, _, _ = weights[i, after, name]
            return cast(TransformerAdapter, adapters[name]).activation(F.linear(h, down, bias))

        def up(name: str, z: Tensor) -> Tensor:
            return F.linear(z, *weights[i, after, name][2:])

        if concept != MIXTURE:
            return up(concept, latent(concept))
        latents = [latent(c) for c in MIXED]
        mixed = up(MIXTURE, torch.stack([latent(MIXTURE), *latents]).mean(0))
        return torch.stack([mixed, *(up(c, z) for c, z in zip(MIXED, latents, strict=True))]).mean(0)

    def run(
        self,
        blocks: Any,
        layers: range,
        concept: str,
        x_BLV: Tensor,
        weights: Weights,
        causal: bool = False,
        recompute: bool = False,
    ) -> Tensor:
        """Tokens [B, L, V] after some layers; ``recompute`` keeps no activations for the backward pass."""
        for i in layers:
            if recompute and torch.is_grad_enabled():
                x_BLV = recomputed(self.layer, blocks[i], i, concept, x_BLV, weights, causal)
            else:
                x_BLV = self.layer(blocks[i], i, concept, x_BLV, weights, causal)
        return x_BLV

    def layer(self, block: Any, i: int, concept: str, x_BLV: Tensor, weights: Weights, causal: bool) -> Tensor:
        """One layer: each sub-layer's output passes its adapter and joins the stream with what the adapter adds.

        ``weights``: what :meth:`for_pass` returned for the concept.
        """
        kv = block.ln_1(x_BLV)
        h = block.ls_1(attention(block.attn, kv, kv, causal=causal))
        x_BLV = x_BLV + h + self.addition(i, "attention", concept, h, weights)
        h = block.ls_2(block.mlp(block.ln_2(x_BLV)))
        return x_BLV + h + self.addition(i, "mlp", concept, h, weights)
