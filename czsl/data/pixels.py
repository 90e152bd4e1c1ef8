"""The deterministic part of an image pipeline: resize, crop or pad, keep bytes. CLIP's own, and those of other open_clip models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

MAX_ASPECT_RATIO = (
    32  # times the short side: what of a longer image the crop would drop anyway is not resized, it could take gigabytes
)
Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]


@dataclass(frozen=True)
class Pixels:
    """Image preprocessing in the terms of open_clip's ``preprocess_cfg``; the defaults are OpenAI CLIP's.

    size : side S of the square that the image tower takes
    interpolation : ``bicubic`` or ``bilinear``
    resize_mode : ``shortest`` (resize the shorter side to S, crop the centre), ``longest`` (resize the longer side, pad) or ``squash``
        (to S x S, whatever the proportions)
    fill : grey value 0-255 of the padding
    """

    size: int
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill: int = 0

    def __post_init__(self):
        known = self.interpolation in get_args(Interpolation) and self.resize_mode in get_args(ResizeMode)
        if not known or not 0 <= self.fill <= 255 or self.size < 1:
            raise ValueError(f"unknown image pipeline {self}")

    @property
    def key(self) -> str:
        """Names what differs from CLIP's own pipeline, for hashes and caches; empty if nothing does."""
        parts: list[str] = [self.interpolation] if self.interpolation != "bicubic" else []
        if self.resize_mode != "shortest":
            parts += [self.resize_mode, *([str(self.fill)] if self.resize_mode == "longest" else [])]
        return "-".join(parts)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 [3, S, S] of an RGB image."""
        S, resample = self.size, Image.Resampling[self.interpolation.upper()]
        if self.resize_mode == "shortest":
            return clip_pixels(image, S, resample)
        image = image.convert("RGB")
        if self.resize_mode == "squash":
            return _bytes(image if image.size == (S, S) else image.resize((S, S), resample))
        ratio = max(image.size) / S
        width, height = (max(1, round(x / ratio)) for x in image.size)
        image = image if image.size == (width, height) else image.resize((width, height), resample)
        padded = Image.new("RGB", (S, S), (self.fill,) * 3)
        padded.paste(image, ((S - width) // 2, (S - height) // 2))
        return _bytes(padded)


def clip_pixels(
    image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC, short: int | None = None
) -> np.ndarray:
    """uint8 [3, S, S] of an RGB image: resize of the shorter side to ``short`` (default S, OpenAI CLIP's pre-processing), centre crop."""
    image = _shorten(image)
    width, height = image.size
    short = size if short is None else short
    new = (
        (short, max(short, int(short * height / width))) if width <= height else (max(short, int(short * width / height)), short)
    )
    image = image.convert("RGB")
    if image.size != new:
        image = image.resize(new, resample)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    return _bytes(image.crop((left, top, left + size, top + size)))


def _bytes(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _shorten(image: Image.Image) -> Image.Image:
    width, height = image.size
    limit = MAX_ASPECT_RATIO * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))
