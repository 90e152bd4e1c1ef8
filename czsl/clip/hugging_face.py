"""Convert a CLIP saved by Hugging Face transformers (``CLIPModel``): weight names to OpenAI's, ``config.json`` to open_clip's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from czsl.clip.compat import import_open_clip
from czsl.errors import UsageError
from czsl.reading import PathLike, read_json

MARK = "text_model.embeddings.token_embedding.weight"
IMAGE_MARK = "vision_model.embeddings.patch_embedding.weight"
MAX_BYTES = 2**20  # bytes of a configuration
ACTIVATIONS = ("quick_gelu", "gelu")

_TOP = {
    "logit_scale": "logit_scale",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    MARK: "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
}
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
_NORMS = {
    "vision_model.pre_layrnorm": "visual.ln_pre",  # spelt so in their program
    "vision_model.pre_layernorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.final_layer_norm": "ln_final",
}
_BLOCK = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def is_hugging_face(state: Mapping[str, Any]) -> bool:
    """Return whether the names are those of a ``CLIPModel`` with both towers."""
    return MARK in state and IMAGE_MARK in state and "visual_projection.weight" in state


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same weights under OpenAI's names. Unknown names are kept, so that loading reports them."""
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        if key.endswith("position_ids"):
            continue
        if key in _TOP:
            out[_TOP[key]] = value
        elif key in _TRANSPOSED:
            out[_TRANSPOSED[key]] = value.T.contiguous()
        elif stem in _NORMS:
            out[f"{_NORMS[stem]}.{kind}"] = value
        elif found := _BLOCK.fullmatch(key):
            tower, number, inner, kind = found.groups()
            root = f"{'visual.' if tower == 'vision_model' else ''}transformer.resblocks.{number}"
            if inner in _IN_BLOCK:
                out[f"{root}.{_IN_BLOCK[inner]}.{kind}"] = value
            elif inner.startswith("self_attn.") and inner[10:] in ("q_proj", "k_proj", "v_proj"):
                parts.setdefault(f"{root}.attn.in_proj_{kind}", {})[inner[10]] = value
            else:
                out[key] = value
        else:
            out[key] = value
    for name, of in parts.items():
        if set(of) == set("qkv"):
            out[name] = torch.cat([of[x] for x in "qkv"])
        else:
            out |= {f"{name}.{x}": value for x, value in of.items()}
    return out


def read_config(folder: PathLike) -> dict[str, Any] | None:
    """Return the ``config.json`` of a folder, or None if no such file exists. Raises UsageError if it is damaged."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        return None
    content = read_json(
        path, max_bytes=MAX_BYTES, error=UsageError, head="cannot read {path}", fix="download or copy the folder again"
    )
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} is not a model configuration", f"it holds a {type(content).__name__}", "download or copy the folder again"
        )
    return content


def model_of(config: Mapping[str, Any], source: str) -> nn.Module:
    """Build an open_clip CLIP with random weights and the architecture in the ``config.json`` of a ``CLIPModel``.

    Raises
    ------
    UsageError
        If the model is of another kind, its activation is not one of CLIP's, or a size is invalid.
    """
    if config.get("model_type", "clip") != "clip":
        raise UsageError(
            f"{source} is not a CLIP",
            f"the model_type in its config.json is {str(config['model_type'])[:40]!r}",
            "give a CLIPModel, or an open_clip model by name: --clip ViT-B-16-SigLIP",
        )
    vision, text = (_Tower(config.get(key), f"{source}: {key}") for key in ("vision_config", "text_config"))
    dim = config.get("projection_dim", vision.get("projection_dim", 512))
    acts = vision.activation, text.activation
    vision_cfg = {
        "image_size": vision.size("image_size", 224, 4096),
        "patch_size": vision.size("patch_size", 32, 4096),
        "width": vision.width,
        "head_width": vision.width // vision.heads,
        "layers": vision.layers,
        "mlp_ratio": vision.ratio,
    }
    text_cfg = {
        "context_length": text.size("max_position_embeddings", 77, 4096),
        "vocab_size": text.size("vocab_size", 49408, 2**22),
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "mlp_ratio": text.ratio,
    }
    if type(dim) is not int or not 1 <= dim <= 2**16:
        raise UsageError(
            f"{source}: projection_dim is {dim!r}",
            "a whole number from 1 to 65,536 is expected",
            "check that the config.json belongs to these weights",
        )
    open_clip = import_open_clip()
    model = open_clip.CLIP(dim, vision_cfg=vision_cfg, text_cfg=text_cfg, quick_gelu=acts[0] == "quick_gelu")
    if acts[0] != acts[1]:
        for block in model.transformer.resblocks:
            block.mlp.gelu = nn.GELU() if acts[1] == "gelu" else open_clip.transformer.QuickGELU()
    for part, tower in ((model.visual, vision), (model.transformer, text), (model.ln_final, text)):
        for module in part.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = tower.eps
    return model


class _Tower:
    """One tower's section of a ``config.json``; values are checked when they are read, missing ones have ``CLIPModel``'s defaults."""

    def __init__(self, content: Any, source: str):
        if not isinstance(content, dict):
            raise UsageError(
                f"{source} is missing",
                "config.json has to describe both towers",
                "check that the config.json belongs to these weights",
            )
        self.get, self.source = content.get, source
        text = source.endswith("text_config")
        self.width = self.size("hidden_size", 512 if text else 768, 2**16)
        self.layers = self.size("num_hidden_layers", 12, 256)
        self.heads = self.size("num_attention_heads", 8 if text else 12, 1024)
        self.ratio = (self.size("intermediate_size", 4 * self.width, 2**18) + 0.5) / self.width
        self.activation = self.get("hidden_act", "quick_gelu")
        self.eps = self.get("layer_norm_eps", 1e-5)
        if self.activation not in ACTIVATIONS:
            raise UsageError(
                f"{source}: hidden_act is {str(self.activation)[:40]!r}",
                "the towers here have another activation",
                f"known: {', '.join(ACTIVATIONS)}",
            )
        if type(self.eps) is not float or not 0 < self.eps < 1:
            raise UsageError(
                f"{source}: layer_norm_eps is {str(self.eps)[:40]!r}",
                "a number between 0 and 1 is expected",
                "check that the config.json belongs to these weights",
            )
        if self.width % self.heads:
            raise UsageError(
                f"{source}: {self.heads} heads do not divide the width {self.width}",
                "each head takes the same share of the width",
                "check the config.json",
            )

    def size(self, name: str, default: int, maximum: int) -> int:
        """Return a whole number from 1 to ``maximum``."""
        value = self.get(name, default)
        if type(value) is not int or not 1 <= value <= maximum:
            raise UsageError(
                f"{self.source}: {name} is {str(value)[:40]!r}",
                f"a whole number up to {maximum} is expected",
                "check that the config.json belongs to these weights",
            )
        return value


def preprocessing(folder: PathLike) -> dict[str, Any]:
    """Return the settings in ``preprocessor_config.json`` under open_clip's names; empty if no such file exists."""
    folder = Path(folder)
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    content = read_json(
        path, max_bytes=MAX_BYTES, error=UsageError, head="cannot read {path}", fix="download or copy the folder again"
    )
    if not isinstance(content, dict):
        return {}
    found = {"mean": content.get("image_mean"), "std": content.get("image_std")}
    found["interpolation"] = "bilinear" if content.get("resample") == 2 else "bicubic"  # Pillow's numbers
    if content.get("do_center_crop") is False:
        found["resize_mode"] = "squash"
    return {key: value for key, value in found.items() if value is not None}
