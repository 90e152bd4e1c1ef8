"""Wrapper that gives any open_clip model the feature interface: SigLIP, EVA, ConvNeXt, ResNet, MobileCLIP, CoCa and similar.

Methods cannot extend these towers: no adapters, no learned words, no patches. Features are those of open_clip's own ``encode_image``
and ``encode_text``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from czsl.clip.towers import OPENAI_MEAN, OPENAI_STD, Towers, own_precision
from czsl.data.pixels import Pixels
from czsl.errors import UsageError


class FeatureClip(Towers):
    """Frozen towers of any kind, for methods that need features only.

    Parameters
    ----------
    model : nn.Module
        The model as open_clip builds it.
    name : str
    tokenizer : callable
        open_clip's tokenizer of the model: texts -> ids [P, T].
    pixels : Pixels, optional
        Default: CLIP's pipeline at the tower's size.
    mean, std : sequence of float
        Mean and standard deviation of the image normalisation.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        tokenizer: Callable[..., Tensor],
        pixels: Pixels | None = None,
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
    ):
        super().__init__(model, name, pixels or Pixels(side_of(model, name)), mean, std)
        self.model = model.requires_grad_(False)
        # Neither is a module, so the weights are registered only once.
        self.visual, self.text = FeatureVision(self), FeatureText(self, tokenizer)
        self.eval()

    @cached_property
    def dim(self) -> int:
        """D, the width of the joint space."""
        with torch.inference_mode():
            return int(
                self.model.encode_text(torch.zeros(1, self.text.context_length, dtype=torch.long, device=self.device)).shape[1]
            )

    @cached_property
    def architecture(self) -> dict[str, Any]:
        """The architecture that a checkpoint must match: widths, and the names and shapes of all weights as a hash."""
        shapes = sorted((key, list(value.shape)) for key, value in self.model.state_dict().items())
        tower = getattr(self.model.visual, "trunk", self.model.visual)
        return {
            "dim": self.dim,
            "image_size": self.image_size,
            "context_length": self.text.context_length,
            "image_tower": type(tower).__name__,
            "tokenizer": type(self.text.tokenizer).__name__,
            "shapes": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16],
        }


class FeatureVision:
    """``encode_image`` of a model, in the model's own precision."""

    checkpointing = False  # nothing is trained through these towers

    def __init__(self, clip: FeatureClip):
        self._clip = clip

    def __call__(self, images_B3SS: Tensor) -> Tensor:
        """Un-normalised features [B, D] of normalised images."""
        with own_precision(self._clip.device, self._clip.precision):
            return self._clip.model.encode_image(images_B3SS, normalize=False).to(self._clip.mean.dtype)


class FeatureText:
    """``encode_text`` of a model with its own tokenizer."""

    def __init__(self, clip: FeatureClip, tokenizer: Callable[..., Tensor]):
        self._clip, self.tokenizer = clip, tokenizer
        self.context_length = int(clip.model.context_length)

    def encode(self, prompts: Sequence[str], chunk: int = 512, unit: bool = True) -> Tensor:
        """Text features [P, D] of plain prompts: of length 1, or as the tower returns them if ``unit`` is False."""
        out = [torch.zeros(0, self._clip.dim, device=self._clip.device, dtype=self._clip.mean.dtype)]
        for start in range(0, len(prompts), chunk):
            ids_PT = self.tokenizer(list(prompts[start : start + chunk]), context_length=self.context_length)
            with own_precision(self._clip.device, self._clip.precision):
                features_pD = self._clip.model.encode_text(ids_PT.to(self._clip.device), normalize=False)
            out.append(features_pD.to(self._clip.mean.dtype))
        features_PD = torch.cat(out)
        return normalize(features_PD, dim=-1) if unit else features_PD

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """Return the prompts that have more tokens than the context holds; the tower does not read their end."""
        # Only a prompt that is too long fills one additional position.
        longer = self.tokenizer(list(prompts), context_length=self.context_length + 1) if prompts else torch.zeros(0, 1)
        shorter = self.tokenizer(list(prompts), context_length=self.context_length) if prompts else longer
        pad = _padding(self.tokenizer)
        return [p for p, a, b in zip(prompts, longer, shorter, strict=True) if (a != pad).sum() > (b != pad).sum()]


def _padding(tokenizer: Any) -> int:
    return int(getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", None) or 0)


def side_of(model: Any, name: str) -> int:
    """Return the side of a model's square input in pixels. Raises UsageError if the input is not square."""
    size = getattr(model.visual, "image_size", None)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise UsageError(f"{name} takes images of {size}", "images are made square here", "choose a model with a square input")
    return side
