"""CLIP's text tower; it takes token embeddings, so that prompts can contain learned vectors.

Letters: P prompts, T text tokens, W text width, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from czsl.clip.captured import replayed
from czsl.clip.compiled import compilable
from czsl.clip.lean import use_lean_activations
from czsl.clip.prompt_tree import Pass, PromptTree
from czsl.clip.vision import attended, fed_forward, in_own_precision
from czsl.errors import DataError

START, END = "<start_of_text>", "<end_of_text>"


@compilable
def before_attention(block: Any, x_NW: Tensor) -> Tensor:
    """Queries, keys and values [N, 3 W] of a block's tokens [N, W]."""
    return F.linear(block.ln_1(x_NW), block.attn.in_proj_weight, block.attn.in_proj_bias)


@compilable
def rest_of_block(block: Any, x_NW: Tensor, mixed_NW: Tensor) -> Tensor:
    """The stream [N, W] after a block, from what its tokens attended to."""
    x_NW = x_NW + block.ls_1(block.attn.out_proj(mixed_NW))
    return x_NW + block.ls_2(block.mlp(block.ln_2(x_NW)))


class TextTower(nn.Module):
    """The text half of an open_clip ``CLIP`` (causal transformer, pooled at the end token); frozen.

    Parameters
    ----------
    clip : nn.Module
        The whole model as open_clip builds it; only its text tower is kept.
    tokenizer : callable
        open_clip's byte-pair tokenizer.
    """

    def __init__(self, clip: Any, tokenizer: Any):
        super().__init__()
        self.token_embedding = clip.token_embedding
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.positional_embedding = clip.positional_embedding  # [77, W]
        self.text_projection = clip.text_projection  # [W, D]
        self.requires_grad_(False)
        self.blocks: Any = self.transformer.resblocks
        use_lean_activations(self.blocks)
        self.heads = self.blocks[0].attn.num_heads
        self.width = self.token_embedding.embedding_dim
        self.context_length = self.positional_embedding.shape[0]
        self.tokenizer = tokenizer
        self.precision = "float32"
        self.start_id, self.end_id = tokenizer.encoder[START], tokenizer.encoder[END]

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [P, T] cut to the longest prompt, zero-padded, and the end token's position [P].

        A prompt longer than the tower's context is cut, its last token replaced by the end token.
        """
        max_tokens = self.context_length - 2
        rows = [[self.start_id, *self.tokenizer.encode(p)[:max_tokens], self.end_id] for p in prompts]
        length = max(map(len, rows), default=2)
        ids_PT = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.long).reshape(-1, length)
        end_P = torch.tensor([len(row) - 1 for row in rows], dtype=torch.long)
        return ids_PT, end_P

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token embeddings [..., W] of ids [...], without positions."""
        return self.token_embedding(ids.to(self.token_embedding.weight.device))

    def name_embeddings(self, names: Sequence[str]) -> Tensor:
        """Mean embedding of each name's own tokens (between start and end), [n, W]; at most six tokens count (as in CSP).

        Raises
        ------
        DataError
            If the tokenizer finds no word in a name.
        """
        rows = [self.tokenizer.encode(name)[:6] for name in names]
        if not all(rows):
            place = rows.index([])
            raise DataError(
                f"name {place} ({names[place]!r}) has no word for a prompt",
                "it has no letter or digit that the tokenizer reads",
                "rename it in the data's labels",
            )
        return torch.stack([self.embed_tokens(torch.tensor(row, dtype=torch.long)).mean(0) for row in rows])

    @in_own_precision
    def encode_embeddings(self, x_PTW: Tensor, end_P: Tensor) -> Tensor:
        """Text features [P, D], before the L2 norm, of token embeddings without positions.

        The attention is causal, so tokens after the end token have no effect.
        """
        x_PTW = x_PTW + self.positional_embedding[: x_PTW.shape[1]]
        for blk in self.blocks:
            x_PTW = fed_forward(blk, attended(blk, x_PTW, causal=True))
        pooled_PW = x_PTW[torch.arange(len(x_PTW), device=x_PTW.device), end_P.to(x_PTW.device)]
        return self.ln_final(pooled_PW) @ self.text_projection

    def encode_tree(self, tree: PromptTree) -> Tensor:
        """Text features [P, D], before the L2 norm: the result of :meth:`encode_embeddings` for ``tree.flat()``, with shared
        tokens computed once.

        Under the causal mask a token depends only on those before it, so a common beginning is the same for all prompts:
        "a photo of" is computed once, each attribute once, and two tokens per pair instead of seven.
        """
        return self.encode_trees([tree])

    @in_own_precision
    def encode_trees(self, trees: Sequence[PromptTree]) -> Tensor:
        """The same for all prompts of several trees, one tree after the other, in one pass through the blocks.

        Trunks must have the same length in all trees, and so must the ends of prompts. The backward pass needs as much memory as one
        pass per tree; to use less, encode parts of the trees (`czsl.clip.prompt_tree.parts_of`).
        """
        P, Q = sum(map(len, trees)), trees[0].ends.shape[1]

        def features(*tensors: Tensor) -> Tensor:
            x_NW = self._tree_stream(Pass([PromptTree(*five) for five in zip(*[iter(tensors)] * 5, strict=True)]))
            return self.project(x_NW[len(x_NW) - P * Q :].unflatten(0, (P, Q))[:, -1])

        return replayed((self, len(trees)), features, [x for tree in trees for x in tree.tensors])

    @in_own_precision
    def tree_tokens(self, tree: PromptTree) -> Tensor:
        """All tokens [P, T, W] of the prompts of a tree after the last block, before the final norm; shared ones computed once."""
        F_, M, (P, Q) = len(tree.trunk), len(tree.branches), tree.ends.shape

        def tokens(*tensors: Tensor) -> Tensor:
            work = Pass([PromptTree(*tensors)])
            x_NW, at = self._tree_stream(work), work.bones.branch_at[0]
            middle = [x_NW[at : at + M][tensors[-1]][:, None]] if M else []
            leaves = x_NW[work.bones.leaves_at :].unflatten(0, (P, Q))
            return torch.cat([x_NW[:F_].expand(P, -1, -1), *middle, leaves], dim=1)

        return replayed((self, "tokens"), tokens, tree.tensors)

    @in_own_precision
    def project(self, x_PW: Tensor) -> Tensor:
        """Final norm and projection of end tokens [P, W] to the joint space, [P, D]."""
        return self.ln_final(x_PW) @ self.text_projection

    def _tree_stream(self, work: Pass) -> Tensor:
        """The stream [N, W] of a pass after the last block."""
        x_NW = work.embeddings(self.positional_embedding)
        for blk in self.blocks:
            x_NW = rest_of_block(blk, x_NW, work.attention(before_attention(blk, x_NW), blk.attn.num_heads))
        return x_NW

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """Return the prompts that have more tokens than the context holds; the tower does not read their end."""
        return [p for p in prompts if len(self.tokenizer.encode(p)) > self.context_length - 2]

    def encode(self, prompts: Sequence[str], chunk: int = 512, unit: bool = True) -> Tensor:
        """Text features [P, D] of plain prompts: of length 1, or as the tower returns them if ``unit`` is False."""
        out = []
        for start in range(0, max(len(prompts), 1), chunk):
            ids_PT, end_P = self.tokenize(prompts[start : start + chunk])
            out.append(self.encode_embeddings(self.embed_tokens(ids_PT), end_P))
        features_PD = torch.cat(out).to(self.positional_embedding.dtype)
        return nn.functional.normalize(features_PD, dim=-1) if unit else features_PD
