"""Checkpoints of the public MSCI program under this project's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from czsl.errors import UsageError
from methods.msci.config import HIGH, LOW
from methods.parts.public import BRANCH_NAMES, PublicNames, State, branch_settings, inferred

STAGES = {LOW: "stage1_local_alignment", HIGH: "stage2_global_fusion"}


def _blocks(stage: str, state: State) -> int:
    """Number of blocks whose maps a stage's aggregator reads; 0 if it does not follow from the state."""
    mix = state.get(f"concat_projection_{stage}.0.weight")
    return mix.shape[1] // mix.shape[0] if mix is not None and mix.ndim == 2 and len(mix) else 0


def _layers(stage: str, state: State) -> int:
    prefix = f"{STAGES[stage]}.cross_attn_layers."
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _settings(state: State, config: Mapping[str, Any]) -> dict[str, Any]:
    missing = [key for key in ("stage_1_num_heads", "stage_2_num_heads") if not config.get(key)]
    if missing:
        raise UsageError(
            "the number of attention heads is not known",
            f"the tensors do not show it, and the configuration has no {' and no '.join(missing)} (public: 12, or 16 in mit-states-ow)",
            "give the configuration it was trained with (--config FILE)",
        )
    return {
        **branch_settings(state, config),
        **{f"{s}_blocks": inferred(f"selected_{s}_layers", _blocks(s, state), config) for s in STAGES},
        **{
            f"stage{i}_layers": max(1, inferred(f"stage_{i}_num_cmt_layers", _layers(s, state), config))
            for i, s in enumerate(STAGES, 1)
        },
        **{f"stage{i}_heads": config[f"stage_{i}_num_heads"] for i in (1, 2)},
        **{f"stage{i}_dropout": config.get(f"stage_{i}_dropout", 0.1) for i in (1, 2)},
        "gate_scale": config.get("init_lamda", 0.1),
    }


def _unread(state: State) -> tuple[str, ...]:
    """Aggregators of a single map, which their program has and never calls."""
    return tuple(rf"concat_projection_{s}\..*" for s in STAGES if _blocks(s, state) == 1)


PUBLIC = PublicNames(
    program="MSCI",
    renamed={
        **BRANCH_NAMES,
        "attr_disentangler": "disentanglers.attribute",
        "obj_disentangler": "disentanglers.object",
        **{f"concat_projection_{s}": f"aggregators.{s}" for s in STAGES},
        **{public: f"stages.{s}" for s, public in STAGES.items()},
        "lamda": f"gates.{LOW}",
        "lamda_2": f"gates.{HIGH}",
    },
    settings=_settings,
    ignored=(r"cmt\..*", r"patch_norm\..*", r"fusion_module\..*"),
    unread=_unread,
    absent=("stage_heads",),
)
