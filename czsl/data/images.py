"""Decoding images from outside: header first, pixel limit before the pixels, always RGB."""

from __future__ import annotations

import io
import stat
import threading
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from czsl.data.paths import walk
from czsl.data.photographs import AS_STORED, SIDEWAYS, DecodeOptions, has_transparency, on_background, orientation_of, upright
from czsl.errors import DataError
from czsl.filekinds import identify
from czsl.reading import PathLike

MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 256 * 2**20
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SUFFIXES |= {".avif", ".avifs", ".heic", ".heif", ".hif"}
# Cameras' raw files begin like TIFF, and would be read as their small preview.
RAW_SUFFIXES = frozenset({".3fr", ".arw", ".cr2", ".crw", ".dcr", ".dng", ".erf", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw"})
RAW_SUFFIXES |= {".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw"}
# Only formats that Pillow decodes itself; EPS, for one, would start Ghostscript on a foreign file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
HEIC_FORMAT = "HEIF"  # by the package pillow-heif, which the extra czsl[heic] brings
REDUCE_ABOVE, REDUCE_TO = 4, 2  # times the side of the resized image, see `decode`
HEAD_BYTES = 64  # of a file, enough to tell its format
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})

# Pillow's own pixel limit is a global of its module and catching warnings is not safe across threads.
_OPENING = threading.Lock()


class BadImage(DataError):  # noqa: N818 (it names the thing)
    """One image that cannot be used.

    Parameters
    ----------
    kind : str
        ``empty file``, ``not an image``, ``too many pixels``, ``damaged image``, ``unsupported image``, ``unreadable file``,
        ``HEIC image`` (its reader is not installed).
    reason : str
        More about it.
    """

    def __init__(self, kind: str, reason: str = "", fix: str = "replace or remove the file"):
        super().__init__(kind, reason, fix)
        self.kind, self.reason = kind, reason


def decode(
    data: bytes, max_pixels: int = MAX_PIXELS, options: DecodeOptions = AS_STORED, reduced_for: int | None = None
) -> Image.Image:
    """Decode the first frame of an image file to RGB, at its full size.

    Greyscale, palette, CMYK, alpha and 16-bit images (their upper eight bits) all become 8-bit RGB. By default orientation and
    transparency are ignored, as in the public programs of this field. Colour profiles always are. TIFF and HEIC are turned by their
    decoders in any case.

    Parameters
    ----------
    data : bytes
        The file's content.
    max_pixels : int
        Width times height above which nothing is decoded.
    options : DecodeOptions
        What of orientation and transparency is applied.
    reduced_for : int, optional
        Side S of the square that the image will be resized to. A JPEG whose shorter side is more than 4 S is then decoded at a half, a
        quarter or an eighth of its size, though not below 2 S: several times as fast, and the pixels are slightly others.

    Raises
    ------
    BadImage
        Not an image, too large, or its data ends early.
    """
    image = _open(data, max_pixels)
    try:
        if reduced_for is not None and min(image.size) > REDUCE_ABOVE * reduced_for:
            image.draft("RGB", (REDUCE_TO * reduced_for, REDUCE_TO * reduced_for))  # of JPEGs; at least this size
        _load(image)
        return _flat(image, options)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds on broken data
        raise BadImage("damaged image", _one_line(error)) from None


def image_size(data: bytes, max_pixels: int = MAX_PIXELS, options: DecodeOptions = AS_STORED) -> tuple[int, int]:
    """Width and height of what :func:`decode` gives, from the header; raises `BadImage` as it does."""
    image = _open(data, max_pixels)
    width, height = image.size
    if options.orientation == "exif" and image.format != "TIFF" and _orientation(image) in SIDEWAYS:  # TIFF: turned already
        return height, width
    return width, height


def image_format(head: bytes) -> str | None:
    """The format that the first `HEAD_BYTES` of a file show, whatever its suffix: ``JPEG``, ``PNG``, ..., ``HEIF``; else None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[14:15] in (b"\x0c", b"(", b"4", b"8", b"@", b"l", b"|") and head[15:18] == b"\0\0\0":
        return "BMP"
    if head[4:8] == b"ftyp":
        size = int.from_bytes(head[:4], "big")
        box = head[8 : max(12, min(size, len(head)))]
        brands = {box[:4], *(box[i : i + 4] for i in range(8, len(box) - 3, 4))}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIC_BRANDS or box[:4] in (b"mif1", b"msf1"):
            return HEIC_FORMAT
    return None


def thumbnail(data: bytes, size: int, max_pixels: int = MAX_PIXELS, options: DecodeOptions = AS_STORED) -> Image.Image:
    """The first frame as RGB, shrunk to ``size`` pixels on its longer side; raises `BadImage` as :func:`decode` does.

    JPEGs are decoded at a fraction of their size, which takes a tenth of the time and memory of a photograph.
    """
    image = _open(data, max_pixels)
    try:
        image.draft("RGB", (size, size))  # of JPEGs; at least this size
        _load(image)
        small = _flat(image, options)
        small.thumbnail((size, size))
        return small
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        raise BadImage("damaged image", _one_line(error)) from None


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

    A file counts by its suffix or its content (:func:`is_image_file`). Links to folders are not followed and links out of the folder
    are left out; :func:`czsl.data.inputs.gather` names what is.
    """
    folder = Path(folder)
    if not Path(folder).is_dir():
        raise DataError(f"no folder {folder}", "the folder does not exist", "give a folder of images")
    return [Path(folder) / name for name in walk(folder).files if is_image_file(Path(folder) / name)]


def is_image_name(name: str) -> bool:
    """True if a file's suffix is that of a known image format."""
    return Path(name).suffix.lower() in SUFFIXES


def is_image_file(path: PathLike) -> bool:
    """True if a regular file's suffix is that of a known image format, or its content is one; raw files of cameras are not."""
    path = Path(path)
    if is_image_name(path.name):
        return True
    if path.suffix.lower() in RAW_SUFFIXES:
        return False
    try:
        with path.open("rb") as file:
            return image_format(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def _flat(image: Image.Image, options: DecodeOptions) -> Image.Image:
    """A loaded image as RGB, with what the options say of orientation and transparency applied."""
    orientation = _orientation(image) if options.orientation == "exif" else 1
    colour = options.colour
    flat = _rgb(image) if colour is None or not has_transparency(image) else on_background(image, colour)
    return upright(flat, orientation)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadImage("empty file", "zero bytes")
    formats: tuple[str, ...] = FORMATS
    if image_format(data[:HEAD_BYTES]) == HEIC_FORMAT:
        _read_heic()
        formats = (HEIC_FORMAT,)
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our limit stands in for Pillow's
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
        except UnidentifiedImageError:
            raise BadImage("not an image", _what_it_is(data)) from None
        except Exception as error:
            raise BadImage("damaged image", _one_line(error)) from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if width * height > max_pixels:
        pixels = f"{width} x {height} = {width * height / 1e6:,.0f} megapixels, limit {max_pixels / 1e6:,g}"
        raise BadImage("too many pixels", pixels, "scale the image down or raise --max-pixels")
    return image


@lru_cache(1)
def _heic_opener() -> bool:
    """Register the reader of HEIC files; False if the package is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def _read_heic() -> None:
    with _OPENING:
        there = _heic_opener()
    if not there:
        fix = "pip install 'czsl[heic]'"
        raise BadImage("HEIC image", f"the package pillow-heif, which reads it, is not installed: {fix}", fix)


def _what_it_is(data: bytes) -> str:
    if known := identify(data):
        return f"{known[0]}: {known[1]}"
    if image_format(data[:HEAD_BYTES]) == "AVIF" and not features.check("avif"):
        return "AVIF, which this Pillow cannot read: pip install -U pillow"
    return f"begins with {data[:8]!r}"


def _orientation(image: Image.Image) -> int:
    with _OPENING, warnings.catch_warnings():  # broken tags make Pillow warn
        warnings.simplefilter("ignore")
        return orientation_of(image)


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
