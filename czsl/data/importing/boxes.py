"""Boxes in images, and the crops that they become."""

from __future__ import annotations

import io
import math
from typing import Any, NamedTuple

from PIL import Image

from czsl.data.images import BadImage
from czsl.data.importing.textfiles import short

MAX_COORDINATE = 1e9


class BadBoxError(ValueError):
    """An invalid box; the message is the reason."""


class Box(NamedTuple):
    """A box: its left upper corner, width and height; in pixels, or in fractions of the image's sides."""

    x: float
    y: float
    width: float
    height: float
    fraction: bool = False

    @classmethod
    def of(cls, values: Any, fraction: bool = False, scale: float = 1.0) -> Box:
        """The box of four numbers ``[x, y, width, height]``, each multiplied by ``scale``.

        Raises
        ------
        BadBoxError
            Not four finite numbers, or the box is empty.
        """
        if not isinstance(values, list | tuple) or len(values) != 4:
            raise BadBoxError(f"a box is four numbers [x, y, width, height], not {short(repr(values), 60)}")
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            raise BadBoxError(f"{short(repr(values), 60)} are not numbers")
        try:
            numbers = [float(v) * scale for v in values]
        except OverflowError:
            raise BadBoxError(f"{short(repr(values), 60)} are too large") from None
        if not all(math.isfinite(v) and abs(v) < MAX_COORDINATE for v in numbers):
            raise BadBoxError(f"{short(repr(values), 60)} are not finite numbers of pixels")
        if numbers[2] <= 0 or numbers[3] <= 0:
            raise BadBoxError(f"width {numbers[2]:g}, height {numbers[3]:g}: the box is empty")
        return cls(numbers[0], numbers[1], numbers[2], numbers[3], fraction)

    def covers(self, width: float, height: float) -> bool:
        """True if the box holds the whole image of this size."""
        return self.x <= 0 and self.y <= 0 and self.x + self.width >= width and self.y + self.height >= height


def place(box: Box, margin: float, width: int, height: int) -> tuple[tuple[int, int, int, int], bool]:
    """The crop of a box in an image: left, top, right and bottom in whole pixels, rounded outwards, cut at the image's edge.

    Returns
    -------
    crop : (left, top, right, bottom)
    over : bool
        True if the box itself, without the margin, reaches over the edge by more than a pixel.

    Raises
    ------
    BadImage
        Nothing of the box lies in the image.
    """
    x_scale, y_scale = (width, height) if box.fraction else (1, 1)
    left, right = box.x * x_scale, (box.x + box.width) * x_scale
    top, bottom = box.y * y_scale, (box.y + box.height) * y_scale
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        shown = f"[{left:g}, {top:g}, {right - left:g}, {bottom - top:g}] in {width} x {height} pixels"
        raise BadImage("box outside the image", shown, "mend the box")
    over = left < -1 or top < -1 or right > width + 1 or bottom > height + 1
    x_margin, y_margin = margin * (right - left), margin * (bottom - top)
    edges = (left - x_margin, top - y_margin, right + x_margin, bottom + y_margin)
    crop = (
        max(0, math.floor(edges[0])),
        max(0, math.floor(edges[1])),
        min(width, math.ceil(edges[2])),
        min(height, math.ceil(edges[3])),
    )
    if crop[2] <= crop[0] or crop[3] <= crop[1]:
        raise BadImage("empty crop", f"{crop}", "mend the box")
    return crop, over


def cut(image: Image.Image, crop: tuple[int, int, int, int]) -> bytes:
    """The crop of an image as PNG, which loses nothing."""
    content = io.BytesIO()
    image.crop(crop).save(content, "PNG")
    return content.getvalue()
