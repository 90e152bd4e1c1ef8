"""CLIP's text tower, entered with token embeddings so that prompts can hold learned vectors.

Letters: P prompts, T text tokens, W text width, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from czsl.clip.vision import attention
from czsl.errors import DataError

START, END = "<start_of_text>", "<end_of_text>"


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
            raise DataError(f"name {place} ({names[place]!r}) has no word for a prompt", "", "rename it in the data's labels")
        return torch.stack([self.embed_tokens(torch.tensor(row, dtype=torch.long)).mean(0) for row in rows])

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

    def encode(self, prompts: Sequence[str], chunk: int = 512) -> Tensor:
        """L2-normalised text features [P, D] of plain prompts."""
        out = []
        for start in range(0, max(len(prompts), 1), chunk):
            ids_PT, end_P = self.tokenize(prompts[start : start + chunk])
            out.append(self.encode_embeddings(self.embed_tokens(ids_PT), end_P))
        return nn.functional.normalize(torch.cat(out), dim=-1)
