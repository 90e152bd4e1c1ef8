"""From stored pixels to the picture that viewers show: the orientation in EXIF, and what lies below transparent pixels.

Phones store a photograph as the sensor lay and write next to it how to turn it; product pictures are cut out on transparency, and the
pixels below it are often black. Public programs of this field apply neither. A dataset and a run remember which of the two they mean.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from czsl.errors import UsageError

ORIENTATIONS = ("exif", "ignore")
COLOURS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
BACKGROUNDS = (*COLOURS, "#rrggbb", "ignore")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})  # width and height change places


@dataclass(frozen=True)
class DecodeOptions:
    """Options for turning stored pixels into a picture.

    Parameters
    ----------
    orientation : {"exif", "ignore"}
        Turn the picture by its EXIF (or XMP) tag, or leave it as it is stored.
    background : str
        The colour below transparent pixels: ``white``, ``grey``, ``black`` or ``#rrggbb``; ``ignore`` drops transparency and shows the
        hidden colours.

    Raises
    ------
    UsageError
        Another value.
    """

    orientation: str = "exif"
    background: str = "white"

    def __post_init__(self):
        if self.orientation not in ORIENTATIONS:
            raise UsageError(
                f"unknown orientation {self.orientation!r}",
                "stored pixels are turned in one of two ways",
                f"choose one of {', '.join(ORIENTATIONS)}",
            )
        if self.background not in (*COLOURS, "ignore") and not re.fullmatch("#[0-9a-fA-F]{6}", str(self.background)):
            raise UsageError(
                f"unknown background {self.background!r}",
                "transparent pixels are filled in one of these ways",
                f"choose one of {', '.join(BACKGROUNDS)}",
            )

    @classmethod
    def from_settings(cls, orientation: str | None, background: str | None) -> DecodeOptions:
        """Options of remembered settings; None, as in what was written before there were any, means as stored."""
        return cls(orientation or "ignore", background or "ignore")

    def changed(self, orientation: str | None = None, background: str | None = None) -> DecodeOptions:
        """The same with what is given (None keeps a value)."""
        return DecodeOptions(orientation or self.orientation, background or self.background)

    @property
    def colour(self) -> tuple[int, int, int] | None:
        """Red, green and blue of the background; None if transparency is dropped."""
        if self.background == "ignore":
            return None
        return COLOURS.get(self.background) or tuple(bytes.fromhex(self.background[1:]))  # type: ignore[return-value]

    @property
    def key(self) -> str:
        """A name for caches; empty for :data:`AS_STORED`, so that caches of before stay valid."""
        return "" if self == AS_STORED else f"{self.orientation}-{self.background}"

    def to_json(self) -> dict[str, Any]:
        """Return it in the form of ``dataset.json``."""
        return asdict(self)


AS_SHOWN = DecodeOptions()  # as a viewer shows a picture: people's own data
AS_STORED = DecodeOptions("ignore", "ignore")  # nothing applied: published benchmarks, as the field reads them


def orientation_of(image: Image.Image) -> int:
    """The orientation in EXIF or XMP, 1 to 8; 1 if the tag is missing or broken."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's readers of tags raise errors of many kinds on broken data
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned by an orientation (1 to 8)."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def has_transparency(image: Image.Image) -> bool:
    """True if some pixels of a decoded image may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def on_background(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """An RGB image: what is transparent shows the colour."""
    if image.mode.startswith("I"):
        return _deep_on_background(image, colour)
    if image.mode in ("La", "RGBa"):  # premultiplied: Pillow converts it only to the plain form
        image = image.convert(image.mode.upper())
    layer = image.convert("RGBA")
    below = Image.new("RGBA", layer.size, (*colour, 255))
    return Image.alpha_composite(below, layer).convert("RGB")


def _deep_on_background(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """16-bit grey with one transparent level, as PNG can store it."""
    levels = np.asarray(image).astype(np.int64)
    grey = (levels.clip(0, 65535) >> 8).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=2)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[levels == transparent] = colour
    return Image.fromarray(pixels)
