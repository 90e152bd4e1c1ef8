"""The interface of all image-text models, whatever their towers: features of images and texts in a joint space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from czsl.data.pixels import Pixels
from czsl.gpus import onto

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class Towers(nn.Module):
    """An image tower and a text tower with a joint space of width D; the interface of methods that need features only.

    ``visual(images)`` gives un-normalised image features [B, D] of normalised images, ``text.encode(prompts)`` text features [P, D] of
    length 1, ``text.encode(prompts, unit=False)`` those before the norm, ``text.cut(prompts)`` the prompts that the tower does not read
    to their end. `czsl.clip.backbone.Clip` has towers that methods can extend, `czsl.clip.features.FeatureClip` any that open_clip builds.

    Attributes
    ----------
    logit_scale : float tensor, scalar
        exp() of the learned value: logits are ``logit_scale * cosine``, plus ``logit_bias`` if the model has one (SigLIP).
    logit_bias : float tensor, scalar, or None
    mean, std : float tensor [3]
        Mean and standard deviation of the image normalisation.
    pixels : Pixels
        The image pipeline before the normalisation.
    name : str
        The name that the user gave.
    precision : str
        See :meth:`compute_in`.
    """

    precision = "float32"
    logit_scale: Tensor
    logit_bias: Tensor | None
    mean: Tensor
    std: Tensor
    visual: Any
    text: Any

    def __init__(self, model: Any, name: str, pixels: Pixels, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.name, self.pixels = name, pixels
        self.register_buffer("logit_scale", model.logit_scale.detach().exp().reshape(()))
        bias = getattr(model, "logit_bias", None)
        self.register_buffer("logit_bias", None if bias is None else bias.detach().reshape(()))
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    @property
    def dim(self) -> int:
        """D, the width of the joint space."""
        raise NotImplementedError

    @property
    def architecture(self) -> dict[str, Any]:
        """The architecture that a checkpoint must match."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """S, the side of the input image in pixels."""
        return self.pixels.size

    @property
    def device(self) -> torch.device:
        """The device of the towers."""
        return self.logit_scale.device

    def compute_in(self, precision: str) -> None:
        """Compute both towers' matrix products in ``bfloat16`` from now on, or in the format of the weights (any other name).

        Features have the format of :attr:`mean` in either case.
        """
        self.precision = precision

    @cached_property
    def sha256(self) -> str:
        """Hash of all weights, the architecture and the pre-processing of images; a run stores it in place of the frozen towers."""
        digest = hashlib.sha256(json.dumps(self.architecture, sort_keys=True).encode() + self.pixels.key.encode())
        for key, value in sorted({**self.state_dict(), "mean": self.mean, "std": self.std}.items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def normalise(self, images_B3SS: Tensor) -> Tensor:
        """Return uint8 images as normalised floats; float images are treated as already normalised."""
        images_B3SS = onto(images_B3SS, self.device)
        if images_B3SS.is_floating_point():
            return images_B3SS.to(self.mean.dtype)
        return (images_B3SS.to(self.mean.dtype) / 255 - self.mean[:, None, None]) / self.std[:, None, None]

    def biased(self, logits: Tensor) -> Tensor:
        """Scaled cosines plus the model's bias, if it has one: the sigmoid of the sum is SigLIP's probability of a match."""
        return logits if self.logit_bias is None else logits + self.logit_bias


def own_precision(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return a context with matrix products in bfloat16 if that is the precision; otherwise the context has no effect."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
