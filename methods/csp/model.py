"""CSP (Nayak, Yu, Bach: Learning to Compose Soft Prompts, ICLR 2023): learned words on a frozen CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from czsl.clip.backbone import Clip
from czsl.compositions import CompositionSpace
from methods.csp.config import CSPConfig
from methods.method import Method
from methods.parts.prompts import SoftPrompts
from methods.parts.public import TABLE, PublicNames, State
from methods.sides import TextSide


class CSP(Method):
    """One trained table [A + O, W]; both towers frozen, so image features are computed once.

    Costs an encoding of all training pairs a step; caches image features [N, D]. With augmentation (preset ``released``) a step also
    costs the image tower forth, or with ``augment_copies=K`` it caches [K, N, D] more.
    """

    name, title, Config = "csp", "CSP", CSPConfig
    per_primitive = ("prompts.table",)

    def __init__(self, space: CompositionSpace, clip: Clip, config: CSPConfig):
        super().__init__(space, clip, config)
        self.prompts = SoftPrompts(clip.text, self.attribute_names, self.object_names, config.attr_dropout, False)

    def encode_compositions(self, pairs_P2: Tensor) -> TextSide:
        """Text side of index pairs, [P, D]."""
        pairs_P2 = pairs_P2.to(self.clip.device)
        return TextSide(pairs_P2, self.encode_prompts(self.prompts.pairs(self.prompts.words(), pairs_P2)))


def _settings(state: State, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"attr_dropout": config.get("attr_dropout", 0.3)}


PUBLIC = PublicNames(program="CSP", renamed={"soft_embeddings": TABLE}, settings=_settings)
