"""Masks as COCO's run-length codes: lengths down the columns, starting with the pixels outside.

``counts`` is a list of lengths, or a text in COCO's compressed form (as pycocotools and most detectors write it): groups of five bits
per character, with every length from the fourth on stored as the difference to the one two places before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from czsl.errors import DataError

MAX_MASK_PIXELS = 100_000_000
MAX_TEXT = 16_000_000  # characters of a compressed code, about 4 million runs
MAX_GROUPS = 7  # characters per length: 35 bits, more than any length needs
FORM = 'write {"size": [height, width], "counts": [..]}, or "counts" as COCO\'s compressed text'


def read_mask(code: Any, source: str) -> dict[str, Any]:
    """Check a mask of a file and return it with ``counts`` as a list of lengths.

    Parameters
    ----------
    code : Any
        ``{"size": [height, width], "counts": list of int, str or bytes}``.
    source : str
        Where it stands, for errors.

    Raises
    ------
    DataError
        Another form, sizes or lengths beyond the limits, a compressed text that cannot be decoded.
    """
    size, counts = (code.get("size"), code.get("counts")) if isinstance(code, dict) else (None, None)
    if not (isinstance(size, list | tuple) and len(size) == 2 and isinstance(counts, list | str | bytes)):
        raise DataError(f"{source} has a mask that is not a run-length code", f"found {str(code)[:80]}", FORM)
    lengths = counts if isinstance(counts, list) else []
    if not all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in [*size, *lengths]):
        raise DataError(f"{source} has a mask with other than whole numbers", f"found {str(code)[:80]}", FORM)
    if size[0] * size[1] > MAX_MASK_PIXELS or any(n > MAX_MASK_PIXELS for n in lengths):
        raise DataError(f"{source} has a mask of {size[1]} x {size[0]} pixels", f"limit {MAX_MASK_PIXELS:,}", FORM)
    if not isinstance(counts, list):
        try:
            lengths = decompress(counts, size[0] * size[1]).tolist()
        except ValueError as error:
            raise DataError(f"{source} has a compressed mask that cannot be decoded", str(error), FORM) from None
    return {"size": list(size), "counts": lengths}


def decompress(text: str | bytes, pixels: int) -> np.ndarray:
    """Return the lengths, int64 [n], of a compressed code of an image with this many pixels.

    Raises
    ------
    ValueError
        Characters outside of the code, a cut text, lengths that are negative or do not add up to ``pixels``.
    """
    limit = min(MAX_TEXT, MAX_GROUPS * (pixels + 2))
    if len(text) > limit:
        raise ValueError(f"the text has {len(text):,} characters, the limit for {pixels:,} pixels is {limit:,}")
    try:
        raw = text if isinstance(text, bytes) else text.encode("ascii")
    except UnicodeEncodeError:
        raise ValueError("the text has characters that are not ASCII") from None
    values = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if ((values < 0) | (values > 63)).any():
        bad = int(np.flatnonzero((values < 0) | (values > 63))[0])
        raise ValueError(f"character {bad + 1} is {chr(raw[bad])!r}, outside of '0' to 'o'")
    if not len(values):
        lengths = values
    else:
        last = values & 32 == 0  # the last group of a length
        if not last[-1]:
            raise ValueError("the text ends within a length")
        starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
        groups = np.diff(np.append(starts, len(values)))
        if groups.max() > MAX_GROUPS:
            raise ValueError(f"a length has {groups.max()} characters, the limit is {MAX_GROUPS}")
        place = np.arange(len(values)) - np.repeat(starts, groups)
        lengths = np.add.reduceat((values & 31) << (5 * place), starts)
        negative = values[last] & 16 != 0
        lengths[negative] -= np.int64(1) << (5 * groups[negative])
        lengths[1::2] = np.cumsum(lengths[1::2])
        lengths[2::2] = np.cumsum(lengths[2::2])
    if (lengths < 0).any():
        raise ValueError(f"length {int(np.flatnonzero(lengths < 0)[0]) + 1} is negative")
    if lengths.sum() != pixels:
        raise ValueError(f"its lengths add up to {lengths.sum():,}, the image has {pixels:,} pixels")
    return lengths


def decode_mask(code: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return a mask of :func:`read_mask` as bool [height, width].

    Raises
    ------
    DataError
        Its size is not the image's (width, height), or its lengths do not add up to it.
    """
    height, width = code["size"]
    if (width, height) != tuple(size):
        why = f"the mask is {width} x {height}, the image {size[0]} x {size[1]}"
        raise DataError("a mask does not fit its image", why, "give masks in the image's full size")
    counts = np.asarray(code["counts"], dtype=np.int64)
    if counts.sum() != width * height:
        why = f"its lengths add up to {counts.sum():,}, the image has {width * height:,} pixels"
        raise DataError("a mask is not a run-length code of its image", why, FORM)
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T
