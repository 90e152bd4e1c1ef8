"""Import open_clip even if torchvision's compiled operators do not match the installed torch (e.g. a CPU build)."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any


@cache
def _declare_missing_operators() -> Any:
    """Declare the schemas of torchvision's ``nms`` and ``qnms`` if its library does not load; return None if it does.

    torchvision registers fake versions of these operators when it is imported, which fails if their schemas are unknown. Its only
    wheel on PyPI is the CUDA build, so the library that declares them does not load with a CPU build of torch. Nothing here calls them.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    library = next(iter(sorted(Path(spec.origin).parent.glob("_C*.so"))), None)
    if library is not None:
        try:
            ctypes.CDLL(str(library))
            return None
        except OSError:
            pass
    declared = torch.library.Library("torchvision", "DEF")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        declared.define(schema)
    return declared  # kept alive by the cache: a collected library takes its schemas along


def import_open_clip() -> ModuleType:
    """Return open_clip, ready to use in this process. Call this in every process, Ray workers included."""
    _declare_missing_operators()
    import open_clip

    return open_clip
