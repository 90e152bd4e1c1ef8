"""A stream of image features through an adaptation: the layer by itself, without a method.

Letters: N images, B images of a block, P candidates, D joint width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from czsl.errors import DataError, UsageError
from methods.adaptation.adaptation import Adaptation
from methods.adaptation.config import AdaptationConfig
from methods.adaptation.registry import adaptation_class, adaptation_settings

BLOCK = 64  # images of a block: the last bits of a product change with its number of rows


def start(
    name: str, text_features: Any, logit_scale: float, settings: Mapping[str, Any] | AdaptationConfig | None = None
) -> Adaptation:
    """Return the state of an adaptation before its first image; arguments and errors as in :func:`adapt_stream`."""
    config, text_PD = adaptation_settings(name, settings), _features(text_features, "text features")
    scale = float(logit_scale)
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"a logit scale of {scale:g}", "it multiplies cosines", "give exp(logit_scale), e.g. 100")
    if not len(text_PD):
        raise DataError("there are no text features", "an image is compared with candidates", "give a row for each candidate")
    return adaptation_class(name)(_unit(text_PD), scale, config)


def adapt_tiles(
    name: str,
    images: Iterable[Any],
    text_features: Any,
    logit_scale: float,
    settings: Mapping[str, Any] | AdaptationConfig | None = None,
) -> Iterator[Tensor]:
    """Yield the scores [B, P] of each block of image features [B, D], so that no array [N, P] exists.

    Arguments, results and errors as in :func:`adapt_stream`; a block is read when its scores are needed.
    """
    state, any_image = start(name, text_features, logit_scale, settings), False
    for block in images:
        x_BD = _features(block, "image features").to(state.text)
        if x_BD.shape[1] != state.text.shape[1]:
            raise DataError(
                f"image features have {x_BD.shape[1]} numbers, text features {state.text.shape[1]}",
                "both come from one CLIP",
                "give features of the joint space",
            )
        any_image = any_image or len(x_BD) > 0
        unit_BD = _unit(x_BD)
        yield state.scale * unit_BD @ state.text.T + state.shifts(unit_BD)
    if not any_image:
        raise DataError("the stream is empty", "an adaptation needs images", "give at least one image")


def adapt_stream(
    name: str,
    image_features: Any,
    text_features: Any,
    logit_scale: float,
    settings: Mapping[str, Any] | AdaptationConfig | None = None,
) -> Tensor:
    """Return the scores [N, P] of images that come one after the other and adapt what follows them.

    Parameters
    ----------
    name : str
        ``tomcat`` or ``tda``; :data:`methods.adaptation.registry.ADAPTATIONS` lists them.
    image_features : float tensor or array [N, D]
        In the order of the stream; of any length but 0. Float64 is computed in float64, everything else in float32.
    text_features : float tensor or array [P, D]
        Features of the candidates; their type and device are those of the computation.
    logit_scale : float
        Factor of the cosines (CLIP's exp(logit_scale), 100 in the published models).
    settings : mapping, optional
        Settings by name, of which ``recipe`` names a set; see :mod:`methods.adaptation.config` for names, defaults and ranges.

    Raises
    ------
    UsageError
        Unknown adaptation or setting, or one out of its range.
    DataError
        Features that are not finite, of the wrong shape, or none at all.
    """
    images_ND = _features(image_features, "image features")
    return torch.cat(list(adapt_tiles(name, images_ND.split(BLOCK), text_features, logit_scale, settings)))


def _features(given: Any, what: str) -> Tensor:
    x = torch.as_tensor(given).detach()
    if x.ndim != 2:
        raise DataError(f"{what} have shape {list(x.shape)}", "they are a table", "give a row per item: [items, width]")
    x = x if x.dtype == torch.float64 else x.float()
    bad = (~x.isfinite()).any(dim=1).nonzero()[:, 0]
    if len(bad):
        raise DataError(
            f"{what} hold NaN or infinity, first in row {int(bad[0])}",
            "one such image would spoil the state for all that follow",
            "leave it out, or look for an overflow where the features are made",
        )
    return x


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)
