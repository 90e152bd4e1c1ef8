"""Checkpoints of the public Troika program under this project's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from methods.parts.public import BRANCH_NAMES, PublicNames, State, branch_settings, count_layers, inferred


def _settings(state: State, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **branch_settings(state, config),
        "traction_layers": inferred("cmt_layers", count_layers("cmt", state), config),
        "traction_dropout": config.get("cross_attn_dropout", 0.1),
        "traction_scale": config.get("init_lamda", 0.1),
    }


PUBLIC = PublicNames(
    program="Troika",
    renamed={
        **BRANCH_NAMES,
        "attr_disentangler": "disentanglers.attribute",
        "obj_disentangler": "disentanglers.object",
        "cmt": "traction",
        "patch_norm": "patch_norm",
        "lamda": "traction_scale",
    },
    settings=_settings,
)
