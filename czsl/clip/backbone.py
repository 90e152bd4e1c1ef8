"""A CLIP model of any source behind one face: the built-in ``tiny``, any open_clip ViT, or a local weight file."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
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
HEAD_WIDTH = 64  # of OpenAI's models
VOCABULARY = 49408  # tokens of CLIP's byte-pair encoding
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
        _check_plain(model, name)
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
        """Hash of all weights, the architecture and the normalisation of images; a run stores it in place of the frozen towers."""
        digest = hashlib.sha256(json.dumps(self.architecture, sort_keys=True).encode())
        for key, value in sorted({**self.state_dict(), "mean": self.mean, "std": self.std}.items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def normalise(self, images_B3SS: Tensor) -> Tensor:
        """uint8 images become normalised floats; float images are taken as normalised already."""
        images_B3SS = images_B3SS.to(self.device)
        if images_B3SS.is_floating_point():
            return images_B3SS.to(self.mean.dtype)
        return (images_B3SS.to(self.mean.dtype) / 255 - self.mean[:, None, None]) / self.std[:, None, None]


def _check_plain(model: Any, name: str) -> None:
    """Refuse what the two towers would compute differently from open_clip: other poolings, masks, projections, vocabularies."""
    visual: Any = getattr(model, "visual", None)
    plain = (
        hasattr(visual, "class_embedding")
        and hasattr(model, "token_embedding")
        and visual.pool_type == "tok"
        and visual.attn_pool is None
        and model.text_pool_type == "argmax"
        and model.attn_mask is not None
        and isinstance(model.text_projection, Tensor)
        and model.token_embedding.num_embeddings >= VOCABULARY
    )
    if not plain:
        raise UsageError(
            f"{name} is not a CLIP with a plain vision transformer and CLIP's own text transformer",
            "methods put adapters into the first and learned words into the second",
            "choose a ViT model, e.g. --clip ViT-B-16 or ViT-L-14",
        )


def load_clip(name: str = "tiny", weights: str | None = None) -> Clip:
    """Load a CLIP on the CPU in float32.

    Parameters
    ----------
    name : str
        ``tiny`` (built in), an open_clip model (``ViT-L-14``), or the path of a state dict in OpenAI's format, whose architecture
        is read from its shapes (QuickGELU, heads of width 64).
    weights : str, optional
        For an open_clip model: a published tag (default ``openai``), the path of a weight file, or ``random`` for measurements (the
        same random weights each time). A file does not tell its activation: it is QuickGELU for OpenAI's archives and for models
        named ``...-quickgelu``, otherwise what the model's name stands for.

    Raises
    ------
    UsageError
        Unknown model or tag (with the nearest name), unreadable file, an architecture the methods cannot use.
    SetupError
        The weights would have to be downloaded and the network does not answer.
    """
    open_clip = import_open_clip()
    if name.replace("/", "-") in open_clip.list_models():
        name = name.replace("/", "-")  # OpenAI writes ViT-L/14
    elif weights is not None and (name == "tiny" or is_path(name)):
        raise UsageError(f"{name} brings its own weights", f"and --clip-weights {weights} was given", "leave out one of the two")
    elif name == "tiny":
        return _load_tiny()
    elif is_path(name):
        return clip_from_state(read_state(Path(name)), name)
    else:
        near = difflib.get_close_matches(name, [*open_clip.list_models(), "tiny"], n=3)
        raise UsageError(
            f"unknown CLIP model {name!r}",
            f"nearest names: {', '.join(near)}" if near else "open_clip does not know it",
            "use tiny, an open_clip model name, or the path of a weight file",
        )
    weights = weights or "openai"
    if weights == "random":
        with torch.random.fork_rng(devices=[]):  # all workers, and whoever loads the run, need the same towers
            torch.manual_seed(0)
            return Clip(_create(name), name)
    if is_path(weights):
        state = read_state(Path(weights))
        model = _create(name, force_quick_gelu="input_resolution" in state)
        _fill(model, state, weights)
        return Clip(model, name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags:
        near = difflib.get_close_matches(weights, tags, n=3) or tags[:3]
        raise UsageError(
            f"{name} has no published weights {weights!r}",
            f"nearest tags: {', '.join(near)}" if near else "open_clip lists none for it",
            "give a tag or the path of a weight file: --clip-weights",
        )
    published = open_clip.get_pretrained_cfg(name, weights)
    with torch.device("meta"):  # the architecture alone, before gigabytes are downloaded
        _check_plain(_create(name, device="meta"), name)
    path = fetch(name, weights)
    model = _create(name, force_quick_gelu=bool(published.get("quick_gelu")))
    _fill(model, read_state(path), str(path))
    return Clip(model, name, published.get("mean", OPENAI_MEAN), published.get("std", OPENAI_STD))


def _create(name: str, **options: Any) -> nn.Module:
    """An open_clip model with random weights, without its warning that they are."""
    logging.disable(logging.WARNING)
    try:
        return import_open_clip().create_model(name, pretrained=None, **options)
    finally:
        logging.disable(logging.NOTSET)


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


def clip_from_state(state: dict[str, Tensor], source: str) -> Clip:
    """A CLIP from a state dict in OpenAI's format, its architecture read from the shapes (QuickGELU, heads of width 64).

    Raises
    ------
    UsageError
        The state is of another format or not complete; names ``source``.
    """

    def layers(prefix: str) -> int:
        return len({k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)})

    try:
        width, _, _, patch = state["visual.conv1.weight"].shape
        tokens, _ = state["visual.positional_embedding"].shape
        (text_width,) = state["ln_final.weight"].shape
        vocab_size, _ = state["token_embedding.weight"].shape
        context_length, _ = state["positional_embedding"].shape
        _, dim = state["text_projection"].shape
        if width % HEAD_WIDTH or text_width % HEAD_WIDTH:
            raise ValueError(f"its widths {width} and {text_width} are no multiples of {HEAD_WIDTH}")
    except (KeyError, ValueError) as error:
        missing = isinstance(error, KeyError)
        raise UsageError(
            f"{source} is not a CLIP ViT in OpenAI's format",
            f"it has no {error}" if missing else str(error),
            "give the model's name: --clip ViT-L-14 --clip-weights FILE",
        ) from None
    vision = {
        "image_size": round((tokens - 1) ** 0.5) * patch,
        "patch_size": patch,
        "width": width,
        "layers": layers("visual.transformer.resblocks."),
    }
    text = {
        "context_length": context_length,
        "vocab_size": vocab_size,
        "width": text_width,
        "heads": text_width // HEAD_WIDTH,
        "layers": layers("transformer.resblocks."),
    }
    model = import_open_clip().CLIP(dim, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    _fill(model, state, source)
    return Clip(model, source)
