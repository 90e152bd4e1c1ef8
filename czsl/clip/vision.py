"""CLIP's image tower with what methods need: adapters parallel to its blocks, and the tokens of its last layers.

Letters: B images, L visual tokens (class token first), V visual width, D joint width, S image side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from czsl.clip.captured import replayed, replaying
from czsl.clip.compiled import compilable
from czsl.clip.lean import use_lean_activations
from czsl.clip.towers import own_precision
from czsl.recompute import recomputed

# (index, stream [B, L, V], sum [B, L, V]) -> sum + addition; indices 0..n-1 are parallel to the attentions, n..2n-1 to the MLPs.
Adapter = Callable[[int, Tensor, Tensor], Tensor]
T = TypeVar("T")

# A replay gives the gradients of its weights at its end: in parts those of the last blocks can be sent while the first ones are computed.
REPLAYED_PARTS = 6


class Adapters(Protocol):
    """Trained additions parallel to a tower's blocks."""

    def for_pass(self, blocks: range) -> Adapter:
        """Return the additions to some blocks for one pass; what these blocks share is computed here, once."""
        ...

    def trained(self, blocks: range) -> Sequence[nn.Parameter]:
        """The weights of these additions. They depend on them and on the stream, and on nothing else that changes."""
        ...


def attention(attn: nn.MultiheadAttention, q_BQW: Tensor, kv_BTW: Tensor, causal: bool = False) -> Tensor:
    """Scaled dot-product attention with the weights of a torch module, [B, Q, W]; queries and keys may differ in length.

    If queries and keys come from the same tensor, one product computes queries, keys and values.
    """
    width, heads = attn.embed_dim, attn.num_heads
    if q_BQW is kv_BTW:
        q, k, v = F.linear(kv_BTW, attn.in_proj_weight, attn.in_proj_bias).unflatten(-1, (3, heads, -1)).unbind(-3)
    else:
        w_q, w_kv = attn.in_proj_weight[:width], attn.in_proj_weight[width:]
        b_q, b_kv = attn.in_proj_bias[:width], attn.in_proj_bias[width:]
        q = F.linear(q_BQW, w_q, b_q).unflatten(-1, (heads, -1))
        k, v = F.linear(kv_BTW, w_kv, b_kv).unflatten(-1, (2, heads, -1)).unbind(-3)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attn.out_proj(out.transpose(1, 2).flatten(2))


@compilable
def attended(block: Any, x_BLV: Tensor, first_B1V: Tensor | None = None, causal: bool = False) -> Tensor:
    """The first half of a block: the stream [B, L, V] plus its attention; with the stream's first token, the same for this token only."""
    kv = block.ln_1(x_BLV)
    if first_B1V is not None:
        return first_B1V + block.ls_1(attention(block.attn, kv[:, :1], kv))
    return x_BLV + block.ls_1(attention(block.attn, kv, kv, causal))


@compilable
def fed_forward(block: Any, x_BLV: Tensor) -> Tensor:
    """The second half of a block: the stream plus its MLP, in the shape of the stream."""
    return x_BLV + block.ls_2(block.mlp(block.ln_2(x_BLV)))


def in_own_precision(method: Callable[..., T]) -> Callable[..., T]:
    """Run a method of a tower under autocast if the tower's ``precision`` is bfloat16."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **options: Any) -> T:
        device = next(self.parameters()).device
        with own_precision(device, self.precision):
            return method(self, *args, **options)

    return run


class VisionTower(nn.Module):
    """An open_clip ``VisionTransformer`` with a class token.

    Parameters
    ----------
    vit : nn.Module
        The tower as open_clip builds it; its weights are frozen here.

    Attributes
    ----------
    image_size : int
        Side S of the square input, in pixels.
    checkpointing : bool
        Recompute each block in the backward pass instead of keeping its activations: one more forward pass, a fraction of the memory.
    """

    def __init__(self, vit: Any):
        super().__init__()
        self.vit: Any = vit.requires_grad_(False)
        self.image_size = int(vit.image_size[0])
        self.width = vit.conv1.out_channels
        self.blocks: Any = vit.transformer.resblocks
        use_lean_activations(self.blocks)
        self.heads = self.blocks[0].attn.num_heads
        self.checkpointing = False
        self.precision = "float32"

    def embed(self, images_B3SS: Tensor) -> Tensor:
        """Patch, class and position embeddings, normalised: [B, L, V]."""
        vit = self.vit
        patches_BLV = vit.conv1(images_B3SS).flatten(2).transpose(1, 2)
        class_B1V = vit.class_embedding.to(patches_BLV.dtype).expand(len(patches_BLV), 1, -1)
        return vit.ln_pre(torch.cat([class_B1V, patches_BLV], dim=1) + vit.positional_embedding.to(patches_BLV.dtype))

    def block(self, i: int, x_BLV: Tensor, adapter: Adapter | None, class_only: bool = False) -> Tensor:
        """Block i; adapters run parallel to both sub-layers, on the un-normalised stream. ``class_only``: only the class token."""
        blk, n = self.blocks[i], len(self.blocks)
        first_B1V = x_BLV[:, :1] if class_only else None
        y = attended(blk, x_BLV, first_B1V)
        if adapter is not None:
            y = adapter(i, x_BLV if first_B1V is None else first_B1V, y)
        out = fed_forward(blk, y)
        if adapter is not None:
            out = adapter(n + i, y, out)
        return out

    @in_own_precision
    def project(self, x_BLV: Tensor) -> Tensor:
        """Final norm and projection to the joint space, [B, L, D]."""
        return self.vit.ln_post(x_BLV) @ self.vit.proj

    @in_own_precision
    def forward(self, images_B3SS: Tensor, adapters: Adapters | None = None, tokens: bool = False) -> Tensor:
        """Image features before the L2 norm.

        Parameters
        ----------
        images_B3SS : float tensor
            Normalised images.
        adapters : Adapters, optional
            Additions parallel to each block's two sub-layers.
        tokens : bool, default False
            False: the class token's feature, [B, D] (the last block then computes no other token). True: all tokens, [B, L, D].
        """
        last = len(self.blocks) - 1
        x = self._after(images_B3SS, {last}, adapters, not tokens)[last]
        return x if tokens else x[:, 0]

    @in_own_precision
    def unprojected(self, images_B3SS: Tensor) -> Tensor:
        """All tokens [B, L, V] after the last block, before the final norm and projection."""
        x_BLV = self.embed(images_B3SS)
        for i in range(len(self.blocks)):
            x_BLV = self.block(i, x_BLV, None)
        return x_BLV

    @in_own_precision
    def tapped(self, images_B3SS: Tensor, blocks: Collection[int], adapters: Adapters | None = None) -> dict[int, Tensor]:
        """All tokens after some blocks, in the joint space: [B, L, D] by the block's index.

        The final norm and projection are applied to each of these blocks.
        """
        return self._after(images_B3SS, blocks, adapters)

    @in_own_precision
    def dense(self, images_B3SS: Tensor, residual_ffn: bool = False) -> tuple[Tensor, Tensor]:
        """The image feature [B, D], as :meth:`forward` returns it, and a feature of every patch [B, L - 1, D], row by row.

        In the last block a patch keeps its own value instead of attending (MaskCLIP, ECCV 2022), so its feature describes mainly that
        place.

        Parameters
        ----------
        images_B3SS : float tensor
            Normalised images.
        residual_ffn : bool, default False
            Keep the last block's residual and MLP for patches, as MaskCLIP did; later work drops both.
        """
        last = len(self.blocks) - 1
        x_BLV = self.embed(images_B3SS)
        for i in range(last):
            x_BLV = self.block(i, x_BLV, None)
        blk, width = self.blocks[last], self.width
        weight, bias = blk.attn.in_proj_weight[2 * width :], blk.attn.in_proj_bias[2 * width :]
        patches_BLV = blk.ls_1(blk.attn.out_proj(F.linear(blk.ln_1(x_BLV[:, 1:]), weight, bias)))
        if residual_ffn:
            patches_BLV = x_BLV[:, 1:] + patches_BLV
            patches_BLV = patches_BLV + blk.ls_2(blk.mlp(blk.ln_2(patches_BLV)))
        return self._output(self.block(last, x_BLV, None, class_only=True))[:, 0], self._output(patches_BLV)

    def _after(
        self, images_B3SS: Tensor, wanted: Collection[int], adapters: Adapters | None, class_only: bool = False
    ) -> dict[int, Tensor]:
        """Tokens after some blocks, projected; ``class_only``: the last block computes only the class token."""
        count, out, x = len(self.blocks), dict[int, Tensor](), images_B3SS
        faster = replaying()
        parts = min(REPLAYED_PARTS, count) if faster else 1
        for blocks in (range(count * p // parts, count * (p + 1) // parts) for p in range(parts)):
            part = partial(self._part, blocks, frozenset(wanted), adapters, class_only)
            weights = adapters.trained(blocks) if adapters is not None and faster else ()
            found, ends = replayed((self, adapters, blocks, frozenset(wanted), class_only), part, [x], weights)
            out |= found
            if ends:
                (x,) = ends
        return out

    def _part(
        self, blocks: range, wanted: Collection[int], adapters: Adapters | None, class_only: bool, x: Tensor
    ) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Some blocks, the first ones from images, the others from the stream: projected tokens, and the stream if blocks follow."""
        if not blocks.start:
            x = self.embed(x)
        out, adapter, last = {}, None if adapters is None else adapters.for_pass(blocks), len(self.blocks) - 1
        for i in blocks:
            alone = class_only and i == last
            if self.checkpointing and torch.is_grad_enabled():
                x = recomputed(self.block, i, x, adapter, alone)
            else:
                x = self.block(i, x, adapter, alone)
            if i in wanted:
                out[i] = self._output(x)
        return out, [x] if last not in blocks else []

    def _output(self, x_BLV: Tensor) -> Tensor:
        """Projected tokens in the tower's own precision: autocast ends here, since cosines need their digits."""
        return self.project(x_BLV).to(self.vit.ln_post.weight.dtype)
