"""Parts of an image as the image tower sees them, each through CLIP's own pipeline.

Letters: B images, R regions, S image side, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from czsl.clip.towers import Towers
from czsl.data.pixels import Pixels


def crops(image: Image.Image, boxes_R4: np.ndarray, pixels: Pixels) -> Tensor:
    """Run each box of the original image through CLIP's pipeline, uint8 [R, 3, S, S]."""
    return stacked([pixels(image.crop(tuple(box))) for box in boxes_R4.tolist()], pixels.size)


def stacked(views: Sequence[np.ndarray], size: int) -> Tensor:
    """Views [3, S, S] as one tensor, uint8 [R, 3, S, S]; there may be none."""
    return torch.from_numpy(np.stack(views) if views else np.zeros((0, 3, size, size), np.uint8))


def encode_views(clip: Towers, images_B3SS: Tensor, regions_BR3SS: Tensor | None, present_BR: Tensor | None = None) -> Tensor:
    """Un-normalised features of the whole images and their regions, packed [B, (1 + R) * D].

    Where an image has fewer regions than there are places, ``present_BR`` marks those in use; the features of the others are 0.

    All views of an image are one pass of the tower, so that its features depend on no other image. An image that repeats the one
    before it (the padding of a last batch) is not encoded again.
    """
    if regions_BR3SS is None:
        return clip.visual(clip.normalise(images_B3SS)).to(clip.mean.dtype)
    rows: list[Tensor] = []
    for b, (image, regions) in enumerate(zip(images_B3SS, regions_BR3SS, strict=True)):
        if b and torch.equal(image, images_B3SS[b - 1]) and torch.equal(regions, regions_BR3SS[b - 1]):
            rows.append(rows[-1])
        else:
            shown = regions if present_BR is None else regions[present_BR[b]]
            features = clip.visual(clip.normalise(torch.cat([image[None], shown]))).to(clip.mean.dtype)
            rows.append(pad(features, (0, 0, 0, len(regions) - len(shown))).flatten())
    return torch.stack(rows)
