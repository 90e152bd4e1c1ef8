"""A CLIP model of any source behind one face: the built-in ``tiny``, any open_clip ViT, or a local weight file."""

from __future__ import annotations

import difflib
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from czsl.clip.compat import import_open_clip
from czsl.clip.text import TextTower
from czsl.clip.vision import VisionTower
from czsl.clip.weights import fetch, is_path, read_state
from czsl.errors import UsageError

TINY = Path(__file__).parent / "tiny"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# Scalars and buffers that published files carry beside the weights.
EXTRAS = {"input_resolution", "context_length", "vocab_size", "attn_mask", "text.transformer.embeddings.position_ids"}


class Clip(nn.Module):
    """Frozen image and text towers with a common space of width D.

    Attributes
    ----------
    visual : VisionTower
    text : TextTower
    logit_scale : float tensor, scalar
        exp() of the learned value: logits are ``logit_scale * cosine``.
    mean, std : float tensor [3]
        Of the image normalisation.
    name : str
        As the user asked for it.
    """

    logit_scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, name: str, mean=OPENAI_MEAN, std=OPENAI_STD):
        super().__init__()
        if not hasattr(getattr(model, "visual", None), "conv1") or not hasattr(model, "token_embedding"):
            raise UsageError(
                f"{name} is not a CLIP with a plain vision transformer and a plain text transformer",
                "methods put adapters into the first and learned words into the second",
                "choose a ViT model, e.g. --clip ViT-B-16 or ViT-L-14",
            )
        tokenizer = import_open_clip().tokenizer.SimpleTokenizer()
        self.name = name
        self.visual, self.text = VisionTower(model.visual), TextTower(model, tokenizer)
        self.register_buffer("logit_scale", model.logit_scale.detach().exp())
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.eval()

    @property
    def dim(self) -> int:
        """D, the width of the joint space."""
        return int(self.visual.vit.proj.shape[1])

    @property
    def image_size(self) -> int:
        """S, the side of the input image in pixels."""
        return self.visual.image_size

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.logit_scale.device

    @cached_property
    def architecture(self) -> dict[str, int | str]:
        """What a checkpoint must agree with: widths, depths, heads, activation."""
        activation = type(self.visual.blocks[0].mlp.gelu).__name__
        return {
            "dim": self.dim,
            "image_size": self.image_size,
            "patch": int(self.visual.vit.patch_size[0]),
            "vision_width": self.visual.width,
            "vision_layers": len(self.visual.blocks),
            "vision_heads": self.visual.heads,
            "text_width": self.text.width,
            "text_layers": len(self.text.blocks),
            "text_heads": self.text.heads,
            "activation": activation,
        }

    @cached_property
    def sha256(self) -> str:
        """Hash of all weights and of the architecture; a run stores it in place of the frozen towers."""
        digest = hashlib.sha256(json.dumps(self.architecture, sort_keys=True).encode())
        for key, value in sorted(self.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def normalise(self, images_B3SS: Tensor) -> Tensor:
        """uint8 images become normalised floats; float images are taken as normalised already."""
        images_B3SS = images_B3SS.to(self.device)
        if images_B3SS.is_floating_point():
            return images_B3SS.to(self.mean.dtype)
        return (images_B3SS.to(self.mean.dtype) / 255 - self.mean[:, None, None]) / self.std[:, None, None]


def load_clip(name: str = "tiny", weights: str | None = None) -> Clip:
    """Load a CLIP on the CPU in float32.

    Parameters
    ----------
    name : str
        ``tiny`` (built in), an open_clip model (``ViT-L-14``), or the path of a state dict in OpenAI's format, whose architecture
        is read from its shapes (QuickGELU, heads of width 64).
    weights : str, optional
        For an open_clip model: a published tag (default ``openai``), the path of a weight file, or ``random`` for measurements.

    Raises
    ------
    UsageError
        Unknown model or tag (with the nearest name), unreadable file.
    SetupError
        The weights would have to be downloaded and the network does not answer.
    """
    if name == "tiny":
        return _load_tiny()
    if is_path(name):
        return _from_openai_shapes(read_state(Path(name)), name)
    open_clip = import_open_clip()
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, [*open_clip.list_models(), "tiny"], n=3)
        raise UsageError(
            f"unknown CLIP model {name!r}",
            f"nearest names: {', '.join(near)}" if near else "open_clip does not know it",
            "use tiny, an open_clip model name, or the path of a weight file",
        )
    weights = weights or "openai"
    if weights == "random":
        return Clip(open_clip.create_model(name, pretrained=None), name)
    mean, std, quick_gelu = OPENAI_MEAN, OPENAI_STD, False
    if is_path(weights):
        path = Path(weights)
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if weights not in tags:
            near = difflib.get_close_matches(weights, tags, n=3) or tags[:3]
            raise UsageError(f"{name} has no published weights {weights!r}", f"nearest tags: {', '.join(near)}", "")
        published = open_clip.get_pretrained_cfg(name, weights)
        mean, std = published.get("mean", mean), published.get("std", std)
        quick_gelu = bool(published.get("quick_gelu"))
        path = fetch(name, weights)
    model = open_clip.create_model(name, pretrained=None, force_quick_gelu=quick_gelu)
    _fill(model, read_state(path), str(path))
    return Clip(model, name, mean, std)


def _fill(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy a state into a model, shape by shape; no half-loaded tower survives."""
    state = {k: v for k, v in state.items() if k not in EXTRAS}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise UsageError(f"{source} does not fit the model", reason, "name the model these weights belong to") from None


def _load_tiny() -> Clip:
    from safetensors.torch import load_file

    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    mean, std = config.pop("image_mean"), config.pop("image_std")
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(TINY / "weights.safetensors").items()}
    # The file keeps the embeddings of trained tokens only; the others are zero.
    ids, rows_nW = state.pop("token_embedding.ids"), state.pop("token_embedding.rows")
    state["token_embedding.weight"] = torch.zeros(config["text_cfg"]["vocab_size"], rows_nW.shape[1])
    state["token_embedding.weight"][ids.long()] = rows_nW
    model = import_open_clip().CLIP(**config)
    _fill(model, state, "the built-in tiny CLIP")
    return Clip(model, "tiny", mean, std)


def _from_openai_shapes(state: dict[str, Tensor], source: str) -> Clip:
    """Build the towers from the shapes of a state dict in OpenAI's format."""

    def layers(prefix: str) -> int:
        return len({k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)})

    try:
        conv = state["visual.conv1.weight"]
        width, patch = conv.shape[0], conv.shape[-1]
        grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        text_width = state["ln_final.weight"].shape[0]
        vocab_size = state["token_embedding.weight"].shape[0]
        context_length = state["positional_embedding"].shape[0]
        dim = state["text_projection"].shape[1]
    except KeyError as missing:
        raise UsageError(
            f"{source} is not a CLIP ViT in OpenAI's format",
            f"it has no {missing}",
            "give the model's name: --clip ViT-L-14 --clip-weights FILE",
        ) from None
    vision = {
        "image_size": grid * patch,
        "patch_size": patch,
        "width": width,
        "layers": layers("visual.transformer.resblocks."),
    }
    text = {
        "context_length": context_length,
        "vocab_size": vocab_size,
        "width": text_width,
        "heads": max(1, text_width // 64),
        "layers": layers("transformer.resblocks."),
    }
    model = import_open_clip().CLIP(dim, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    _fill(model, state, source)
    return Clip(model, source)
