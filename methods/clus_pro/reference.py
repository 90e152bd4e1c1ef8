"""Checkpoints of the public ClusPro program under this project's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from methods.parts.public import BRANCH_NAMES, PublicNames, State, branch_settings


def _settings(state: State, config: Mapping[str, Any]) -> dict[str, Any]:
    rows = state.get("attr_queue0")
    prototypes = {"num_prototypes": len(rows)} if rows is not None and rows.ndim else {}
    return {**branch_settings(state, config), **prototypes}


# Ring buffers are not in public checkpoints: with bn_mode=released the method's own (random) ones stay.
PUBLIC = PublicNames(
    program="ClusPro",
    renamed={
        **BRANCH_NAMES,
        "attr_disentangler": "hidden_mlps.attribute",
        "obj_disentangler": "hidden_mlps.object",
        "attr1": "head_mlps.attribute",
        "obj1": "head_mlps.object",
    },
    settings=_settings,
    ignored=(
        r"(attr|obj)_token",
        r"(attr|obj)_queue_ptr\d+",
        r"(attr|obj)_cluter\d+",
        r"lamda",
        r"patch_norm\.(weight|bias)",
    ),
    stacked={"prototypes.bank": ("attr_queue", "obj_queue")},
    constants={"prototypes.seeded": True},
    absent=("prototypes.ring", "prototypes.ring_place"),
)
