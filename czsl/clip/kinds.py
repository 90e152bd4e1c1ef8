"""Recognise weight files that are not a CLIP for these methods by their tensor names, and suggest what works instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from czsl.errors import UsageError

FEATURES = "for methods that only need features (czsl methods): "
NAMED = "name the model: --clip MODEL --clip-weights FILE"


class Kind(NamedTuple):
    """A kind of file: its description, the fix to suggest, and a test on the tensor names."""

    what: str
    fix: str
    shown: Callable[[set[str]], bool]


def _any(*parts: str) -> Callable[[set[str]], bool]:
    return lambda names: any(part in name for name in names for part in parts)


def _starts(*heads: str) -> Callable[[set[str]], bool]:
    return lambda names: any(name.startswith(heads) for name in names)


def _only(*heads: str) -> Callable[[set[str]], bool]:
    return lambda names: bool(names) and all(name.startswith(heads) for name in names)


def _siglip(names: set[str]) -> bool:
    return "logit_bias" in names or any(n.startswith(("vision_model.head.", "visual.trunk.attn_pool.")) for n in names)


# The first match is used.
KINDS = (
    Kind(
        "a LoRA: additions to the weights of another file",
        "merge it into its CLIP first (peft: merge_and_unload) and save that",
        _any("lora_A", "lora_B", "lora_down", "lora_up", ".lora.", "lora_linear", "loha_", "hada_w"),
    ),
    Kind(
        "a SigLIP as Hugging Face's programs save it",
        FEATURES + "--clip ViT-B-16-SigLIP with open_clip's weights of it (hf-hub:timm/ViT-B-16-SigLIP)",
        lambda names: _siglip(names) and _starts("vision_model.", "text_model.")(names),
    ),
    Kind("a SigLIP", FEATURES + "--clip ViT-B-16-SigLIP (the model it is) --clip-weights FILE", _siglip),
    Kind(
        "a CLIP with a ResNet as its image tower",
        FEATURES + "--clip RN50 (or RN101, RN50x4, ...) --clip-weights FILE",
        _starts("visual.layer1.", "visual.attnpool."),
    ),
    Kind(
        "a part of Stable Diffusion",
        "give the CLIP that it was made with: --clip ViT-L-14",
        _starts("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "down_blocks.", "unet."),
    ),
    Kind(
        "a checkpoint of a public program for compositions",
        "make a run of it: czsl import-checkpoint FILE",
        _any("soft_embeddings", "soft_att_obj", "comp_soft", "soft_prompt", "attr_disentangler", "token_ids"),
    ),
    Kind(
        "prompts learned by CoOp or a program like it, without the CLIP",
        "give the CLIP they were learned with: --clip ViT-B-16",
        _starts("prompt_learner.", "ctx"),
    ),
    Kind(
        "an open_clip model with a tower of timm (EVA, ConvNeXt, MobileCLIP, ViTamin, ...)",
        FEATURES + "name it: --clip EVA02-B-16 --clip-weights FILE",
        _starts("visual.trunk."),
    ),
    Kind(
        "MobileCLIP in its own program's form",
        FEATURES + "--clip MobileCLIP-S1 (the model it is) --clip-weights FILE",
        _starts("image_encoder.model."),
    ),
    Kind(
        "an open_clip model whose text tower is of another kind (CustomTextCLIP)",
        NAMED,
        lambda names: _starts("visual.")(names) and _starts("text.")(names),
    ),
    Kind(
        "only a text tower",
        "give the whole model, image tower included: --clip ViT-L-14, or a file that holds both",
        lambda names: (
            _only("text_model.", "text_projection", "logit_scale")(names)
            or ("token_embedding.weight" in names and not _starts("visual.", "vision_model.")(names))
        ),
    ),
    Kind(
        "only an image tower",
        "give the whole model, text tower included",
        lambda names: (
            _only("vision_model.", "visual_projection", "visual.", "logit_scale")(names)
            or _starts("patch_embed.", "blocks.0.", "layer1.0.", "embeddings.patch_embeddings")(names)
        ),
    ),
    Kind("a checkpoint of a czsl run", "use the run itself: --run RUN, or train --from RUN", _starts("adapters.", "prompts.")),
)

# Entries that training programs save in addition to the weights.
PROGRAMS = {
    "pytorch-lightning_version": "PyTorch Lightning",
    "hyper_parameters": "PyTorch Lightning",
    "optimizer_states": "PyTorch Lightning",
    "model_ema": "timm",
    "arch": "timm or torchvision",
    "trainer_state": "transformers",
    "meta": "MMEngine",
    "message_hub": "MMEngine",
    "optimizer": "a training program",
    "optimizer_state_dict": "a training program",
    "scheduler": "a training program",
    "epoch": "a training program",
}


def kind_of(names: Iterable[str]) -> Kind | None:
    """Return the kind of a file with tensors of these names, or None if it is unknown or a CLIP."""
    there = {name.removeprefix("module.") for name in names}
    return next((kind for kind in KINDS if kind.shown(there)), None)


def strange(source: str, names: Iterable[str], reason: str, fix: str = NAMED) -> UsageError:
    """Return the error for weights that do not fit the requested CLIP; it names their kind if that is recognised."""
    names = list(names)
    kind = kind_of(names)
    if kind is not None:
        return UsageError(f"{source} is {kind.what}", reason, kind.fix)
    if not names:
        return UsageError(f"{source} holds no weights", "there is no tensor in it", "save the model's state_dict()")
    return UsageError(f"{source} is not a CLIP ViT in OpenAI's format", f"{reason}; it holds {', '.join(names[:3])}, ...", fix)


def program_of(content: Mapping[Any, Any]) -> str:
    """Return the program that saved this training checkpoint; empty if the mapping is not one."""
    return next((program for key, program in PROGRAMS.items() if key in content), "")
