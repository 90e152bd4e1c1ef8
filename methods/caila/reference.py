"""Checkpoints of the public CAILA program (WACV 2024) under this project's names.

They hold whole towers under the names of Hugging Face's CLIP, in which norms, projections and token embeddings were trained too. The
towers become the run's own CLIP, the adapters and two scales the method's state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from czsl.errors import UsageError
from methods.parts.public import PublicNames, State, Translation

ROOT = "clip_model."
ADAPTER = re.compile(
    r"clip_model\.(vision|text)_model\.encoder\.layers\.(\d{1,3})\.adapter([12])\.(attr|obj|pair|mixture)\.(down|up)_sampler\.(weight|bias)"
)
CONCEPTS = {"attr": "attribute", "obj": "object", "pair": "pair", "mixture": "mixture"}
AFTER = {"1": "attention", "2": "mlp"}
SCALES = {"attr_logit_scale": "attribute_scale", "obj_logit_scale": "object_scale"}

# Names of the towers' other tensors in OpenAI's format.
TOP = {
    "logit_scale": "logit_scale",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
STEMS = {
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.final_layer_norm": "ln_final",
}
IN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d{1,3})\.([\w.]+)\.(weight|bias)")


class CailaNames(PublicNames):
    """Names of CAILA's checkpoints; see :class:`~methods.parts.public.PublicNames`."""

    def translate(self, state: State) -> Translation:
        """Adapters and scales under our names; the towers are read by :meth:`towers`."""
        out, unknown = Translation(), []
        for name, tensor in state.items():
            if found := ADAPTER.fullmatch(name):
                tower, layer, after, concept, way, kind = found.groups()
                own = f"{tower}.layers.{int(layer)}.{AFTER[after]}.{CONCEPTS[concept]}.{way}.{kind}"
            elif name in SCALES:
                own = SCALES[name]
            elif name.startswith(ROOT) and (_tower_name(name.removeprefix(ROOT)) or name.endswith("position_ids")):
                out.ignored.append(name)
                continue
            else:
                unknown.append(name)
                continue
            out.tensors[own], out.origin[own] = tensor, [name]
        if unknown or not out.origin:
            raise UsageError(
                f"this is not a checkpoint of the public {self.program} program",
                f"unknown tensors: {', '.join(sorted(unknown)[:5])}"
                if unknown
                else "it has no adapters (clip_model...adapter1...)",
                "give the file as its training saved it (ckpt_best_auc.t7), and its method",
            )
        return out

    def public_name(self, own: str) -> str:
        """Return the public program's name of a tensor."""
        parts = own.split(".")
        if len(parts) != 7:
            return next((public for public, mine in SCALES.items() if mine == own), own)
        tower, _, layer, after, concept, way, kind = parts
        number = next(k for k, v in AFTER.items() if v == after)
        mode = next(k for k, v in CONCEPTS.items() if v == concept)
        return f"{ROOT}{tower}_model.encoder.layers.{layer}.adapter{number}.{mode}.{way}_sampler.{kind}"

    def towers(self, state: State) -> dict[str, Tensor]:
        """The towers in OpenAI's format."""
        out: dict[str, Tensor] = {}
        inputs: dict[str, dict[str, Tensor]] = {}
        for public, value in state.items():
            name = _tower_name(public.removeprefix(ROOT)) if public.startswith(ROOT) else None
            if name is None:
                continue
            value = torch.as_tensor(value)
            stem, _, which = name.rpartition("|")
            if stem:
                inputs.setdefault(stem, {})[which] = value
            else:
                out[name] = value.T.contiguous() if public.endswith("_projection.weight") else value
        return out | {name: torch.cat([of[x] for x in "qkv"]) for name, of in inputs.items() if len(of) == 3}


def _tower_name(name: str) -> str | None:
    """A tower's tensor in OpenAI's format, ``...|q`` for a part of one; None for other names."""
    stem, _, kind = name.rpartition(".")
    if name in TOP:
        return TOP[name]
    if stem in STEMS:
        return f"{STEMS[stem]}.{kind}"
    found = LAYER.fullmatch(name)
    if not found:
        return None
    tower, layer, inner, kind = found.groups()
    root = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{int(layer)}"
    if inner in IN_LAYER:
        return f"{root}.{IN_LAYER[inner]}.{kind}"
    projection = re.fullmatch(r"self_attn\.([qkv])_proj", inner)
    return f"{root}.attn.in_proj_{kind}|{projection[1]}" if projection else None


def _settings(state: State, config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the tensors tell, and the dropout of the program's configuration."""
    found = [m for m in map(ADAPTER.fullmatch, state) if m]
    fused = [int(m[2]) for m in found if m[4] == "mixture"]
    down = next((state[m[0]] for m in found if m[5] == "down" and m[6] == "weight"), None)
    if not fused or down is None or down.ndim != 2 or not len(down):
        raise UsageError(
            "this is not a checkpoint of the public CAILA program", "it has no adapters of the mixture", "is it the right method?"
        )
    return {
        "reduction": max(1, round(down.shape[1] / len(down))),
        "fusion_start": min(fused),
        "text_adapters": any(m[1] == "text" for m in found),
        "image_dropout": config.get("img_dropout", 0.5),
    }


PUBLIC = CailaNames(program="CAILA", renamed={}, settings=_settings, table=None)
