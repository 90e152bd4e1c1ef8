"""Cross-attention of text features to an image's tokens (Troika's traction, MSCI's stages).

Letters: B images, b images of this worker, n texts (pairs or primitives), L visual tokens, D joint width, d head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from czsl.clip.lean import QuickGELU
from czsl.recompute import recomputed

HEAD_WIDTH = 64
# Numbers in one tile of image-dependent texts [B, n, D]; a layer needs about ten such tiles at a time.
TILE_ELEMENTS = 1 << 23

Memory = list[tuple[Tensor, Tensor]]  # keys and values of the layers, each [B, heads, L, d]


class CrossAttention(nn.Module):
    """Multi-head attention of queries to an image's tokens; projections without bias but the last."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj, self.dropout = nn.Linear(dim, dim), nn.Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        """[..., n, D] -> [..., heads, n, d]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def memory(self, tokens_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of an image, to be used for any number of queries."""
        return self.split(self.k_proj(tokens_BLD)), self.split(self.v_proj(tokens_BLD))

    def forward(self, q: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """Queries [B, n, D], or [n, D] if they are the same for all images (then projected once); [B, n, D]."""
        k, v = memory
        q = self.split(self.q_proj(q))
        if q.ndim == 3:
            q = q.expand(len(k), -1, -1, -1)
        return self.dropout(self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))

    def weights(self, q: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """Attention of queries [B, n, D] or [n, D] to each token, mean over heads: [B, n, L], rows of sum 1."""
        k, _ = memory
        scores = self.split(self.q_proj(q)) @ k.mT * k.shape[-1] ** -0.5
        return scores.softmax(-1).mean(-3)


class CrossAttentionLayer(nn.Module):
    """q + attention(q, tokens), then q + MLP(LN(q)) with four times the width; no norm before the attention."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.cross_attn, self.norm = CrossAttention(dim, heads, dropout), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), QuickGELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, q: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """Queries [B, n, D] or [n, D] -> [B, n, D]."""
        q = q + self.cross_attn(q, memory)
        return q + self.dropout(self.mlp(self.norm(q)))


class CrossAttentionLayers(nn.ModuleList):
    """A stack of cross-attention layers over the same tokens.

    Parameters
    ----------
    dim : int
        D.
    layers : int
    heads : int
        0 takes heads of width 64, as the public programs have them.
    dropout : float
        After the attention, inside and after the MLP.
    """

    def __init__(self, dim: int, layers: int, heads: int = 0, dropout: float = 0.0):
        heads = heads or max(1, dim // HEAD_WIDTH)
        super().__init__(CrossAttentionLayer(dim, heads, dropout) for _ in range(layers))

    def memory(self, tokens_BLD: Tensor) -> Memory:
        """Keys and values of all layers, computed once an image."""
        return [cast(CrossAttentionLayer, layer).cross_attn.memory(tokens_BLD) for layer in self]

    def forward(self, text_nD: Tensor, memory: Memory) -> Tensor:
        """Attended texts [B, n, D] of texts [n, D] (or [B, n, D]), the texts themselves included."""
        q = text_nD
        for layer, own in zip(self, memory, strict=True):
            q = layer(q, own)
        return q

    def attention(self, text_nD: Tensor, memory: Memory) -> Tensor:
        """Attention of texts [n, D] (or [B, n, D]) to each token, mean over layers and heads: [B, n, L], rows of sum 1."""
        q, found = text_nD, []
        for layer, own in zip(self, memory, strict=True):
            found.append(cast(CrossAttentionLayer, layer).cross_attn.weights(q, own))
            q = layer(q, own)
        return torch.stack(found).mean(0)


def moved_cosines(images_BD: Tensor, text_nD: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Cosines [B, n] of unit image features with texts that each image moves, a tile of texts at a time.

    Parameters
    ----------
    images_BD : float tensor
    text_nD : float tensor
    move : callable
        Texts [m, D] -> what the B images make of them [B, m, D], of any length. Where a gradient is wanted and there are
        several tiles, a tile is computed again in the backward pass, so that [B, n, D] never exists as a whole.
    """
    return branch_cosines([images_BD], [text_nD], move)[0]


def branch_cosines(images: Sequence[Tensor], texts: Sequence[Tensor], move: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The same for several branches that move their texts in the same way: all texts make up one set of queries.

    Parameters
    ----------
    images : sequence of float tensor [B, D]
        Unit image features of each branch.
    texts : sequence of float tensor [n, D]
        Texts of each branch.
    move : callable
        As for :func:`moved_cosines`.

    Returns
    -------
    list of float tensor [B, n]
    """

    def cosines(text_mD: Tensor, counts: list[int]) -> Tensor:
        moved_BmD = move(text_mD)
        with torch.autocast(text_mD.device.type, enabled=False):  # cosines need their digits
            parts = moved_BmD.to(images[0].dtype).split(counts, dim=1)
            dots = [(part @ image_BD[:, :, None])[..., 0] for part, image_BD in zip(parts, images, strict=True)]
            norms = [torch.linalg.vector_norm(part, dim=-1).clamp_min(1e-12) for part in parts]
            return torch.cat(dots, dim=1) / torch.cat(norms, dim=1)

    text_nD = torch.cat(list(texts)) if len(texts) > 1 else texts[0]
    lengths = [len(text) for text in texts]
    ends = list(itertools.accumulate(lengths))
    width = max(16, TILE_ELEMENTS // max(1, images[0].numel()))
    again = torch.is_grad_enabled() and len(text_nD) > width
    out = []
    for start in range(0, max(1, len(text_nD)), width):
        counts = [max(0, min(end, start + width) - max(end - n, start)) for end, n in zip(ends, lengths, strict=True)]
        tile = text_nD[start : start + width]
        out.append(recomputed(cosines, tile, counts) if again else cosines(tile, counts))
    return list(torch.cat(out, dim=1).split(lengths, dim=1))
