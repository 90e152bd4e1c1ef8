"""Heat maps and boxes drawn onto a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 480  # pixels of the longer side of what is drawn on
OPACITY = 0.6
MARK = 22  # pixels of the square with the number of a box
COLOURS = "viridis"
BOX_COLOURS = {
    "red": "#e6194b",
    "green": "#3cb44b",
    "yellow": "#ffe119",
    "blue": "#6a8cff",
    "orange": "#f58231",
    "pink": "#f032e6",
}
COLOURS_IN_WORDS = (
    "dark violet for the least, green between, yellow for the most, stretched to the range written below each picture"
)


def canvas(image: Image.Image) -> Image.Image:
    """An RGB copy whose longer side has ``MAX_SIDE`` pixels, so that small images get fine maps and thin lines too."""
    from PIL import Image

    scale = MAX_SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def draw_heat(image: Image.Image, values_hw: np.ndarray, extent: Sequence[float]) -> Image.Image:
    """Values laid over their rectangle of an image; what is outside of it turns grey, since nothing is known of it.

    Parameters
    ----------
    image : PIL image
        The original.
    values_hw : float array [h, w]
    extent : left, top, right, bottom
        In pixels of the original.
    """
    import matplotlib
    from PIL import Image, ImageOps

    base = canvas(image)
    left, top, right, bottom = _scaled(extent, image.size, base.size)
    low, high = float(values_hw.min()), float(values_hw.max())
    level = (values_hw - low) / (high - low) if high > low else np.zeros_like(values_hw, dtype=float)
    size = max(1, right - left), max(1, bottom - top)
    # Resized before it is coloured: between two colours of a map lies none that stands for the value between.
    smooth = Image.fromarray(level.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    heat = Image.fromarray((matplotlib.colormaps[COLOURS](np.asarray(smooth).clip(0, 1))[..., :3] * 255).astype(np.uint8))
    out = Image.blend(ImageOps.grayscale(base).convert("RGB"), Image.new("RGB", base.size, "white"), 0.5)
    out.paste(Image.blend(base.crop((left, top, left + size[0], top + size[1])), heat, OPACITY), (left, top))
    return out


def draw_boxes(image: Image.Image, boxes: Sequence[Sequence[float]]) -> Image.Image:
    """Outlines with their numbers from 1, in the colours that :func:`box_colour` names."""
    from PIL import ImageDraw, ImageFont

    base, font = canvas(image), ImageFont.load_default(size=MARK - 6)
    pen = ImageDraw.Draw(base)
    for i, box in enumerate(boxes):
        left, top, right, bottom = _scaled(box, image.size, base.size)
        colour = BOX_COLOURS[box_colour(i)]
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=3)
        # Numbers side by side: boxes of several phrases are often the same.
        x, y = min(left + MARK * i, base.width - MARK), min(top, base.height - MARK)
        pen.rectangle((x, y, x + MARK - 2, y + MARK - 2), fill=colour)
        pen.text((x + MARK / 2 - 1, y + MARK / 2 - 1), str(i + 1), fill="black", font=font, anchor="mm")
    return base


def box_colour(i: int) -> str:
    """Name of the colour of box ``i`` (from 0); they start again after the last."""
    return list(BOX_COLOURS)[i % len(BOX_COLOURS)]


def _scaled(box: Sequence[float], size: tuple[int, int], new: tuple[int, int]) -> tuple[int, int, int, int]:
    x, y = new[0] / size[0], new[1] / size[1]
    return round(box[0] * x), round(box[1] * y), round(box[2] * x), round(box[3] * y)
