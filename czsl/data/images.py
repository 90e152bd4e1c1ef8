"""Decoding images from outside: header first, pixel limit before the pixels, always RGB."""

from __future__ import annotations

import io
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from czsl.data.paths import walk
from czsl.errors import DataError
from czsl.reading import PathLike

MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 256 * 2**20
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# Only formats that Pillow decodes itself; EPS, for one, would start Ghostscript on a foreign file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

# Pillow's own pixel limit is a global of its module and catching warnings is not safe across threads.
_OPENING = threading.Lock()


class BadImage(DataError):  # noqa: N818 (it names the thing)
    """One image that cannot be used.

    Parameters
    ----------
    kind : str
        ``empty file``, ``not an image``, ``too many pixels``, ``damaged image``, ``unsupported image``, ``unreadable file``.
    reason : str
        More about it.
    """

    def __init__(self, kind: str, reason: str = "", fix: str = "replace or remove the file"):
        super().__init__(kind, reason, fix)
        self.kind, self.reason = kind, reason


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of an image file to RGB, at its full size.

    Greyscale, palette, CMYK, alpha (dropped, not blended) and 16-bit images (their upper eight bits) all become 8-bit RGB. The
    EXIF orientation and colour profiles are ignored, as in the public programs of this field.

    Parameters
    ----------
    data : bytes
        The file's content.
    max_pixels : int
        Width times height above which nothing is decoded.

    Raises
    ------
    BadImage
        Not an image, too large, or its data ends early.
    """
    image = _open(data, max_pixels)
    try:
        _load(image)
        return _rgb(image)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds on broken data
        raise BadImage("damaged image", _one_line(error)) from None


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height from the header alone; raises `BadImage` as :func:`decode` does."""
    return _open(data, max_pixels).size


def read_image_file(path: PathLike) -> bytes:
    """The bytes of a regular file of at most `MAX_FILE_BYTES`; `BadImage` otherwise."""
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("unreadable file", "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise BadImage("unreadable file", f"{status.st_size:,} bytes, limit {MAX_FILE_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise BadImage("unreadable file", error.strerror or str(error)) from None


def list_images(folder: PathLike) -> list[Path]:
    """The image files below a folder, sorted by their relative path.

    A file counts by its suffix (`SUFFIXES`, in any case). Links to folders are not followed and links out of the folder are
    left out; :func:`czsl.data.paths.walk` names them.
    """
    folder = Path(folder)
    if not Path(folder).is_dir():
        raise DataError(f"no folder {folder}", "", "give a folder of images")
    return [Path(folder) / name for name in walk(folder).files if is_image_name(name)]


def is_image_name(name: str) -> bool:
    """Whether a file's suffix is that of a known image format."""
    return Path(name).suffix.lower() in SUFFIXES


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadImage("empty file", "zero bytes")
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our limit stands in for Pillow's
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise BadImage("not an image", f"begins with {data[:8]!r}") from None
        except Exception as error:
            raise BadImage("damaged image", _one_line(error)) from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if width * height > max_pixels:
        pixels = f"{width} x {height} = {width * height / 1e6:,.0f} megapixels, limit {max_pixels / 1e6:,g}"
        raise BadImage("too many pixels", pixels, "scale the image down or raise --max-pixels")
    return image


def _load(image: Image.Image) -> None:
    if image.format != "TIFF":
        image.load()
        return
    with _OPENING, warnings.catch_warnings():  # reads its tags only now, and warns about broken ones
        warnings.simplefilter("ignore")
        image.load()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255
        levels = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(levels.astype(np.uint8))
    elif image.mode == "F":
        raise BadImage("unsupported image", "floating-point pixels have no defined range")
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # straight to RGB would print a warning
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
