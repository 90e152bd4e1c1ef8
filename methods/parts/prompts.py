"""Prompts with learned words: "a photo of [attribute] [object]".

Letters: P pairs, A attributes, O objects, W text width, T text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from czsl.clip.prompt_tree import PromptTree
from czsl.clip.text import TextTower

CONTEXT = "a photo of"
BRANCHES = ("pair", "attribute", "object")


class SoftPrompts(nn.Module):
    """One embedding for each attribute and object, and three context words for each branch; each of the two learned or fixed.

    Parameters
    ----------
    text : TextTower
        Source of the initial embeddings: the mean over a name's tokens, and the words "a photo of".
    attributes, objects : list of str
        Names as they enter prompts.
    dropout : float
        On the whole table, drawn once a forward, so that all prompts of a step share the mask (CSP, ICLR 2023).
    learn_context : bool
        Whether the three context words are trained, separately for each of the branches (Troika, CVPR 2024).
    learn_names : bool, default True
        Whether the names' embeddings are trained. Fixed ones follow from the names and are not saved.
    branches : sequence of str, default pair, attribute and object
        Branches that have prompts.
    primitive_prefix : str, default ""
        One fixed token between the context and the name in the prompts of primitives.
    """

    start: Tensor
    end: Tensor
    fixed_context: Tensor
    prefix: Tensor
    table: Tensor  # [A + O, W]

    def __init__(
        self,
        text: TextTower,
        attributes: list[str],
        objects: list[str],
        dropout: float,
        learn_context: bool,
        *,
        learn_names: bool = True,
        branches: Sequence[str] = BRANCHES,
        primitive_prefix: str = "",
    ):
        super().__init__()
        self.num_attributes = len(attributes)
        with torch.no_grad():
            table = text.name_embeddings([*attributes, *objects]).clone()
            context_3W = text.embed_tokens(torch.tensor(text.tokenizer.encode(CONTEXT))).clone()
            prefix = text.embed_tokens(torch.tensor(text.tokenizer.encode(primitive_prefix), dtype=torch.long)).clone()
        self.dropout = nn.Dropout(dropout)
        if learn_names:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table, persistent=False)
        self.register_buffer("prefix", prefix, persistent=False)
        if learn_context:
            self.context = nn.ParameterDict({b: nn.Parameter(context_3W.clone()) for b in branches})
        else:
            self.register_buffer("fixed_context", context_3W, persistent=False)
        self.register_buffer("start", text.embed_tokens(torch.tensor(text.start_id)).clone(), persistent=False)
        self.register_buffer("end", text.embed_tokens(torch.tensor(text.end_id)).clone(), persistent=False)

    def words(self) -> Tensor:
        """The table [A + O, W] after dropout; draw it once a forward and hand it to the methods below."""
        return self.dropout(self.table)

    def _tree(self, branch: str, first_MW: Tensor, last_NW: Tensor, last_P: Tensor, parents_P: Tensor) -> PromptTree:
        """Prompts whose last word is row ``last_P`` of ``last_NW``."""
        context_3W = self.context[branch] if hasattr(self, "context") else self.fixed_context
        ends_P2 = torch.stack([last_P, torch.full_like(last_P, len(last_NW))], dim=1)
        tokens = torch.cat([last_NW, self.end[None]])
        prefix = self.prefix if branch != "pair" else self.prefix[:0]
        return PromptTree(torch.cat([self.start[None], context_3W, prefix]), first_MW, tokens, ends_P2, parents_P)

    def pairs(self, words: Tensor, pairs_P2: Tensor) -> PromptTree:
        """Prompts "a photo of ATTR OBJ" of P pairs: 7 tokens, of which "a photo of" and the attributes are shared."""
        A = self.num_attributes
        return self._tree("pair", words[:A], words[A:], pairs_P2[:, 1], pairs_P2[:, 0])

    def primitives(self, words: Tensor) -> Iterator[PromptTree]:
        """Prompts "a photo of ATTR" of all attributes, then "a photo of OBJ" of all objects: 6 tokens."""
        for branch, part in (("attribute", words[: self.num_attributes]), ("object", words[self.num_attributes :])):
            every = torch.arange(len(part), device=part.device)
            yield self._tree(branch, part[:0], part, every, torch.zeros_like(every))
