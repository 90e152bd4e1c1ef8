"""CLIP's text tower, entered with token embeddings so that prompts can hold learned vectors.

Letters: P prompts, T text tokens, W text width, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from czsl.clip.vision import attention, in_own_precision
from czsl.errors import DataError

START, END = "<start_of_text>", "<end_of_text>"


@dataclass
class PromptTree:
    """Prompts that begin alike, as token embeddings without positions.

    trunk [F, W] begins every prompt; branches [M, W] are the next token of some of them (M may be 0); tokens [n, W] are those that
    end prompts, ends [P, Q] which of them end each prompt, the end token last; parents [P] says which branch a prompt continues
    (unused where M is 0). Only indices grow with the number of prompts.
    """

    trunk: Tensor
    branches: Tensor
    tokens: Tensor
    ends: Tensor
    parents: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def leaves(self) -> Tensor:
        """The tokens that end each prompt, [P, Q, W]."""
        return self.tokens[self.ends]

    def part(self, rows: slice) -> PromptTree:
        """The tree of some of the prompts."""
        return PromptTree(self.trunk, self.branches, self.tokens, self.ends[rows], self.parents[rows])

    def flat(self) -> tuple[Tensor, Tensor]:
        """The prompts written out: token embeddings [P, T, W] and the end token's position [P]."""
        P = len(self)
        middle = [self.branches[self.parents][:, None]] if len(self.branches) else []
        x_PTW = torch.cat([self.trunk.expand(P, -1, -1), *middle, self.leaves], dim=1)
        return x_PTW, torch.full((P,), x_PTW.shape[1] - 1, device=x_PTW.device)


class TextTower(nn.Module):
    """The text half of an open_clip ``CLIP`` (causal transformer, pooled at the end token); frozen.

    Parameters
    ----------
    clip : nn.Module
        The whole model as open_clip builds it; only its text parts are kept.
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
        room = self.context_length - 2
        rows = [[self.start_id, *self.tokenizer.encode(p)[:room], self.end_id] for p in prompts]
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
            A name of which no word is left.
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

        The attention is causal, so what stands behind the end token changes nothing.
        """
        x_PTW = x_PTW + self.positional_embedding[: x_PTW.shape[1]]
        for blk in self.blocks:
            kv = blk.ln_1(x_PTW)
            x_PTW = x_PTW + blk.ls_1(attention(blk.attn, kv, kv, causal=True))
            x_PTW = x_PTW + blk.ls_2(blk.mlp(blk.ln_2(x_PTW)))
        pooled_PW = x_PTW[torch.arange(len(x_PTW), device=x_PTW.device), end_P.to(x_PTW.device)]
        return self.ln_final(pooled_PW) @ self.text_projection

    @in_own_precision
    def encode_tree(self, tree: PromptTree) -> Tensor:
        """Text features [P, D], before the L2 norm: what :meth:`encode_embeddings` gives for ``tree.flat()``, with shared tokens
        computed once.

        Under the causal mask a token depends on those before it alone, so a common beginning is the same for all prompts:
        "a photo of" once, each attribute once, and two tokens a pair instead of seven.
        """
        (P, Q), x_NW = tree.ends.shape, self._tree_stream(tree)
        return self.project(x_NW[len(x_NW) - P * Q :].unflatten(0, (P, Q))[:, -1])

    @in_own_precision
    def tree_tokens(self, tree: PromptTree) -> Tensor:
        """All tokens [P, T, W] of the prompts of a tree after the last block, before the final norm; shared ones computed once."""
        F_, M, (P, Q) = len(tree.trunk), len(tree.branches), tree.ends.shape
        trunk, branches, leaves = self._tree_stream(tree).split([F_, M, P * Q])
        middle = [branches[tree.parents][:, None]] if M else []
        return torch.cat([trunk.expand(P, -1, -1), *middle, leaves.unflatten(0, (P, Q))], dim=1)

    @in_own_precision
    def project(self, x_PW: Tensor) -> Tensor:
        """Final norm and projection of end tokens [P, W] to the joint space, [P, D]."""
        return self.ln_final(x_PW) @ self.text_projection

    def _tree_stream(self, tree: PromptTree) -> Tensor:
        """The stream [N, W] after the last block of a tree's tokens: trunk, branches, then the leaves prompt by prompt."""
        F_, M, Q = len(tree.trunk), len(tree.branches), tree.ends.shape[1]
        depth = F_ + (M > 0)
        at = self.positional_embedding
        parts = [tree.trunk + at[:F_], tree.branches + at[F_], (tree.leaves + at[depth : depth + Q]).flatten(0, 1)]
        x_NW = torch.cat(parts)
        for blk in self.blocks:
            x_NW = x_NW + blk.ls_1(self._tree_attention(blk.attn, blk.ln_1(x_NW), tree))
            x_NW = x_NW + blk.ls_2(blk.mlp(blk.ln_2(x_NW)))
        return x_NW

    @staticmethod
    def _tree_attention(attn: nn.MultiheadAttention, x_NW: Tensor, tree: PromptTree) -> Tensor:
        """Attention of all tokens [N, W] of a tree, each to itself and to those before it in its prompts."""
        F_, M, (P, Q) = len(tree.trunk), len(tree.branches), tree.ends.shape
        heads = attn.num_heads
        flat = F.linear(x_NW, attn.in_proj_weight, attn.in_proj_bias).unflatten(-1, (3 * heads, -1))  # [N, 3 heads, W / heads]
        trunk, branches, leaves = flat.split([F_, M, P * Q])
        leaves = leaves.unflatten(0, (P, Q))

        def attend(own: Tensor, before: list[Tensor]) -> Tensor:
            """Tokens [n, q, 3 heads, w] attend to those before them [n, b, ...] and causally to one another; [n * q, W]."""
            q = own[:, :, :heads]
            k, v = torch.cat([*before, own], dim=1)[:, :, heads:].split(heads, dim=2)
            mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(k.shape[1] - q.shape[1])
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return out.transpose(1, 2).flatten(2).flatten(0, 1)

        out = [attend(trunk[None], [])]
        above = [trunk.expand(P, -1, -1, -1)]
        if M:
            out.append(attend(branches[:, None], [trunk.expand(M, -1, -1, -1)]))
            above.append(branches[tree.parents][:, None])
        return attn.out_proj(torch.cat([*out, attend(leaves, above)]))

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """Prompts of more tokens than the context holds: their end is not read."""
        return [p for p in prompts if len(self.tokenizer.encode(p)) > self.context_length - 2]

    def encode(self, prompts: Sequence[str], chunk: int = 512, unit: bool = True) -> Tensor:
        """Text features [P, D] of plain prompts, of length 1 or, without ``unit``, as the tower gives them."""
        out = []
        for start in range(0, max(len(prompts), 1), chunk):
            ids_PT, end_P = self.tokenize(prompts[start : start + chunk])
            out.append(self.encode_embeddings(self.embed_tokens(ids_PT), end_P))
        features_PD = torch.cat(out).to(self.positional_embedding.dtype)
        return nn.functional.normalize(features_PD, dim=-1) if unit else features_PD
