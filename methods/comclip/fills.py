"""Sub-images: what is outside of a region is painted over, the frame stays; or the region is cut out.

Letters: L regions, S image side.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageFilter
from torch import Tensor

from czsl.clip.towers import OPENAI_MEAN
from czsl.data.pixels import Pixels
from methods.comclip.config import Fill
from methods.parts.views import stacked

BLUR = 0.05  # radius, as a share of the shorter side
MEAN_COLOUR = tuple(round(255 * x) for x in OPENAI_MEAN)  # CLIP's mean: nearly 0 after its normalisation


def sub_image(image: Image.Image, mask_HW: np.ndarray, fill: Fill = "black") -> Image.Image:
    """An RGB image of which a mask (bool, of the image's size) is left; ``crop``: the mask's bounding box, all of it."""
    if fill == "crop":
        rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        return image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    if fill == "blur":
        outside = image.filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))
    else:
        outside = Image.new("RGB", image.size, MEAN_COLOUR if fill == "mean" else (0, 0, 0))
    return Image.composite(image, outside, Image.fromarray(mask_HW.astype(np.uint8) * 255))


def sub_images(image: Image.Image, masks: Iterable[np.ndarray], fill: Fill, pixels: Pixels) -> Tensor:
    """Run each sub-image through CLIP's pipeline, uint8 [L, 3, S, S]."""
    return stacked([pixels(sub_image(image, mask, fill)) for mask in masks], pixels.size)
