"""Prompts with learned words: "a photo of [attribute] [object]".

Letters: P pairs, A attributes, O objects, W text width, T text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from czsl.clip.text import TextTower

CONTEXT = "a photo of"
BRANCHES = ("pair", "attribute", "object")


class SoftPrompts(nn.Module):
    """One learned embedding for each attribute and object and, if wanted, learned context vectors for each branch.

    Parameters
    ----------
    text : TextTower
        Source of the initial embeddings: the mean over a name's tokens, and the words "a photo of".
    attributes, objects : list of str
        Names as they enter prompts.
    dropout : float
        On the whole table, drawn once a forward, so that all prompts of a step share the mask (CSP, ICLR 2023).
    learn_context : bool
        Whether the three context words are trained, separately for the branches pair, attribute and object (Troika, CVPR 2024).
    """

    start: Tensor
    end: Tensor
    fixed_context: Tensor

    def __init__(self, text: TextTower, attributes: list[str], objects: list[str], dropout: float, learn_context: bool):
        super().__init__()
        self.num_attributes = len(attributes)
        with torch.no_grad():
            self.table = nn.Parameter(text.name_embeddings([*attributes, *objects]).clone())  # [A + O, W]
            context_3W = text.embed_tokens(torch.tensor(text.tokenizer.encode(CONTEXT))).clone()
        self.dropout = nn.Dropout(dropout)
        if learn_context:
            self.context = nn.ParameterDict({b: nn.Parameter(context_3W.clone()) for b in BRANCHES})
        else:
            self.register_buffer("fixed_context", context_3W, persistent=False)
        self.register_buffer("start", text.embed_tokens(torch.tensor(text.start_id)).clone(), persistent=False)
        self.register_buffer("end", text.embed_tokens(torch.tensor(text.end_id)).clone(), persistent=False)

    def words(self) -> Tensor:
        """The table [A + O, W] after dropout; draw it once a forward and hand it to the methods below."""
        return self.dropout(self.table)

    def _assemble(self, branch: str, *words_nW: Tensor) -> Tensor:
        context_3W = self.context[branch] if hasattr(self, "context") else self.fixed_context
        n = len(words_nW[0])
        head = torch.cat([self.start[None], context_3W]).expand(n, -1, -1)
        return torch.cat([head, torch.stack([*words_nW, self.end.expand(n, -1)], dim=1)], dim=1)

    def pairs(self, words: Tensor, pairs_P2: Tensor) -> tuple[Tensor, int]:
        """Token embeddings [P, 7, W] of "a photo of ATTR OBJ" and the end token's position, 6."""
        x = self._assemble("pair", words[pairs_P2[:, 0]], words[self.num_attributes + pairs_P2[:, 1]])
        return x, x.shape[1] - 1

    def primitives(self, words: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Token embeddings of "a photo of ATTR" [A, 6, W], then of "a photo of OBJ" [O, 6, W], each with its end position, 5."""
        for branch, part in (("attribute", words[: self.num_attributes]), ("object", words[self.num_attributes :])):
            x = self._assemble(branch, part)
            yield x, x.shape[1] - 1
