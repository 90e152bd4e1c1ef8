"""CLIP with towers that methods can extend: adapters in the image tower, learned words in the text tower."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from czsl.clip.compat import import_open_clip
from czsl.clip.features import side_of
from czsl.clip.text import TextTower
from czsl.clip.towers import OPENAI_MEAN, OPENAI_STD, Towers
from czsl.clip.vision import VisionTower
from czsl.data.pixels import Pixels
from czsl.errors import UsageError

VOCABULARY = 49408  # tokens of CLIP's byte-pair encoding


class Clip(Towers):
    """Frozen image and text towers with a joint space of width D; methods can add adapters and learned words and read patches.

    Attributes
    ----------
    visual : VisionTower
    text : TextTower
    """

    visual: VisionTower
    text: TextTower

    def __init__(
        self,
        model: Any,
        name: str,
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
        pixels: Pixels | None = None,
    ):
        check_plain(model, name)
        super().__init__(model, name, pixels or Pixels(side_of(model, name)), mean, std)
        tokenizer = import_open_clip().tokenizer.SimpleTokenizer()
        self.visual, self.text = VisionTower(model.visual), TextTower(model, tokenizer)
        self.eval()

    @property
    def dim(self) -> int:
        """D, the width of the joint space."""
        return int(self.visual.vit.proj.shape[1])

    def compute_in(self, precision: str) -> None:
        """Compute both towers' matrix products in ``bfloat16`` from now on, or in the format of the weights (any other name).

        The frozen matrices are then held in bfloat16, so that no pass converts them; the digits are those of autocast with float32 weights.
        This cannot be undone: call it once the towers are on their final device.
        """
        _ = self.sha256  # hash the original weights before they are converted
        super().compute_in(precision)
        self.visual.precision = self.text.precision = precision
        if precision == "bfloat16":
            for tower in (self.visual, self.text):
                _hold_in(tower, torch.bfloat16)

    @cached_property
    def architecture(self) -> dict[str, int | str]:
        """The architecture that a checkpoint must match: widths, depths, heads, activation."""
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


def _hold_in(tower: nn.Module, dtype: torch.dtype) -> None:
    """Convert a tower's matrices, the biases that go with them, and what is added to its patches.

    Norms keep their format, and so do the embeddings and positions of tokens, to which learned words are added.
    """
    for module in tower.modules():
        own = isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention)
        beside = {"proj", "text_projection"} | (
            {"class_embedding", "positional_embedding"} if hasattr(module, "conv1") else set()
        )
        for name, parameter in module.named_parameters(recurse=False):
            if own or name in beside:
                assert not parameter.requires_grad
                parameter.data = parameter.data.to(dtype)


def is_plain(model: Any) -> bool:
    """Return whether this package's towers compute what the model's do: CLIP's own pooling, mask, projection and vocabulary."""
    visual: Any = getattr(model, "visual", None)
    return bool(
        hasattr(visual, "class_embedding")
        and hasattr(model, "token_embedding")
        and visual.pool_type == "tok"
        and visual.attn_pool is None
        and model.text_pool_type == "argmax"
        and model.attn_mask is not None
        and isinstance(model.text_projection, Tensor)
        and model.token_embedding.num_embeddings >= VOCABULARY
    )


def check_plain(model: Any, name: str) -> None:
    """Raise UsageError unless the model is plain; ``name`` is the model's name in the error."""
    if not is_plain(model):
        raise UsageError(
            f"{name} is not a CLIP with a plain vision transformer and CLIP's own text transformer",
            "methods put adapters into the first and learned words into the second",
            "choose a ViT model, e.g. --clip ViT-B-16 or ViT-L-14, or a method that needs features only: czsl methods",
        )
