"""Regions that need nothing but the image: windows, and segments of similar pixels. Letters: L regions, N patches, S image side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SCALES = (2, 3)  # a window's side is that part of the square's
SEGMENTS, COMPACTNESS = 64, 10.0  # of SLIC


def grid_boxes(left: float, top: float, side: float) -> np.ndarray:
    """Windows over a square, stride half of their side: 9 of a half and 25 of a third, int64 [34, 4] in pixels."""
    boxes = []
    for scale in SCALES:
        step = side / scale / 2
        for y in range(2 * scale - 1):
            for x in range(2 * scale - 1):
                corner = left + x * step, top + y * step
                boxes.append([corner[0], corner[1], corner[0] + 2 * step, corner[1] + 2 * step])
    rounded = np.round(boxes).astype(np.int64)
    # A picture of a few pixels has windows of one.
    rounded[:, :2] = np.minimum(rounded[:, :2], np.ceil([left + side, top + side]).astype(np.int64) - 1)
    rounded[:, 2:] = np.maximum(rounded[:, 2:], rounded[:, :2] + 1)
    return rounded


def box_mask(box: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Bool [height, width] of a box inside an image (width, height)."""
    left, top, right, bottom = box
    mask = np.zeros((size[1], size[0]), bool)
    mask[top:bottom, left:right] = True
    return mask


def slic_segments(pixels_3SS: np.ndarray) -> np.ndarray:
    """Superpixels of an image as CLIP sees it (uint8 [3, S, S]), int64 [S, S], numbered from 0 without gaps."""
    from skimage.segmentation import slic

    found = slic(pixels_3SS.transpose(1, 2, 0), n_segments=SEGMENTS, compactness=COMPACTNESS, start_label=0, channel_axis=-1)
    return np.unique(found, return_inverse=True)[1].reshape(found.shape)


def patch_shares(segments_SS: np.ndarray, side: int) -> np.ndarray:
    """Return the shares of each segment's pixels in the side x side patches, float32 [segments, N]."""
    size = len(segments_SS)
    place = np.arange(size) * side // size
    patch_SS = place[:, None] * side + place[None]
    count = np.zeros((int(segments_SS.max()) + 1, side * side), np.float32)
    np.add.at(count, (segments_SS, patch_SS), 1)
    return count / count.sum(1, keepdims=True)
