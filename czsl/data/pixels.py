"""The deterministic part of CLIP's image pipeline: resize the short side, crop the centre, keep bytes."""

from __future__ import annotations

import numpy as np
from PIL import Image

LONGEST = 32  # times the short side: what of a longer image the crop would drop anyway is not resized, it could take gigabytes


def clip_pixels(
    image: Image.Image, size: int, short: int | None = None, resample: Image.Resampling = Image.Resampling.BICUBIC
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
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _shorten(image: Image.Image) -> Image.Image:
    width, height = image.size
    most = LONGEST * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, left + min(width, most), top + min(height, most)))
