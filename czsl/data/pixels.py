"""The deterministic part of CLIP's image pipeline: resize the short side, crop the centre, keep bytes."""

from __future__ import annotations

import numpy as np
from PIL import Image


def clip_pixels(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [3, S, S] of an RGB image: bicubic resize of the shorter side to S, centre crop (OpenAI CLIP's pre-processing)."""
    width, height = image.size
    if width <= height:
        new = (size, max(size, int(size * height / width)))
    else:
        new = (max(size, int(size * width / height)), size)
    image = image.convert("RGB")
    if image.size != new:
        image = image.resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
