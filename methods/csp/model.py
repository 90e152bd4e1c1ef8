"""CSP (Nayak, Yu, Bach: Learning to Compose Soft Prompts, ICLR 2023): learned words on a frozen CLIP.

With ``context`` and ``adapter_dim`` it is the base model of TOMCAT (NeurIPS 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from czsl.clip.backbone import Clip
from czsl.compositions import CompositionSpace
from methods.csp.config import CSPConfig
from methods.features import TextFeatures
from methods.method import Method
from methods.parts.adapters import image_adapters
from methods.parts.branches import pair_texts
from methods.parts.prompts import SoftPrompts
from methods.parts.public import BRANCH_NAMES, TABLE, PublicNames, State, inferred


class CSP(Method):
    """One trained table [A + O, W]; both towers frozen, so image features are computed once, unless the image tower has adapters.

    Costs an encoding of all training pairs per step; caches image features [N, D]. With augmentation (preset ``released``) a step also
    costs the image tower forth, or with ``augment_copies=K`` it caches [K, N, D] more.
    """

    name, title, Config = "csp", "CSP", CSPConfig
    per_primitive = ("prompts.table",)

    def __init__(self, space: CompositionSpace, clip: Clip, config: CSPConfig):
        super().__init__(space, clip, config)
        self.prompts = SoftPrompts(
            clip.text, self.attribute_names, self.object_names, config.attr_dropout, config.context, branches=("pair",)
        )
        self.adapters = image_adapters(clip, config)

    def encode_compositions(self, pairs_P2: Tensor) -> TextFeatures:
        """Text features of index pairs, [P, D]."""
        return pair_texts(self, self.prompts, pairs_P2)


def _settings(state: State, config: Mapping[str, Any]) -> dict[str, Any]:
    down = state.get("additional_visual_params.0.down_proj.weight")
    return {
        "attr_dropout": config.get("attr_dropout", 0.3),
        "adapter_dropout": config.get("adapter_dropout", 0.1),
        "adapter_dim": inferred("adapter_dim", len(down), config) if down is not None and down.ndim else 0,
        "context": "comp_ctx_vectors" in state,
    }


# The table of CSP's own program, and what TOMCAT's base model calls its parts.
PUBLIC = PublicNames(
    program="CSP",
    renamed={
        "soft_embeddings": TABLE,
        "soft_a_and_o_embedding": TABLE,
        "comp_ctx_vectors": BRANCH_NAMES["comp_ctx_vectors"],
        "additional_visual_params": BRANCH_NAMES["additional_visual_params"],
    },
    settings=_settings,
)
