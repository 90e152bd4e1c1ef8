"""Settings of VP-CMJL; `presets.yaml` names useful combinations and `README.md` gives their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from methods.parts.branches_config import BranchesConfig


@dataclass
class VPCMJLConfig(BranchesConfig):
    """Fields of VP-CMJL. Loss weights of a branch hold for its text and its proxy logits.

    proxy_weight: share of the proxies' logits in scores (alpha).
    text_weight: share of the texts' logits in scores (beta); with 0, prediction encodes no prompt of a pair.
    kl_weight: weight of the divergence between the pair probabilities of texts and proxies.
    attention_heads: heads of the two attention blocks; they must divide the joint width.
    primitive_prefix: a literal ``x`` before the learned word in the prompts of primitives, as in the public program's file for C-GQA.
    fusion: how the probabilities of a pair's primitives become one term: their ``sum`` (released) or their ``product``.
    """

    label: ClassVar[str] = "VP-CMJL"
    about: ClassVar[str] = "Learned prompts and adapters with three branches, and learned visual proxies of primitives."
    adaptable: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = ("attention_heads",)

    proxy_weight: float = 0.3
    text_weight: float = 0.7
    kl_weight: float = 1.0
    attention_heads: int = 16
    primitive_prefix: Literal["", "x"] = ""
    fusion: Literal["sum", "product"] = "sum"

    def __post_init__(self):
        super().__post_init__()
        if min(self.proxy_weight, self.text_weight) < 0 or self.proxy_weight + self.text_weight <= 0:
            raise self.refused("proxy_weight", "proxy_weight and text_weight must be 0 or more, and not both 0")
        if self.primitive_repeat == "reference":
            raise self.refused("primitive_repeat", "the public program adds the probabilities of primitives once a pair")

    @property
    def keeps_features(self) -> bool:
        """Without adapters nothing before the heads is trained."""
        return not self.adapter_dim
