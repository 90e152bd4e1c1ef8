"""Explanation by the attention of MSCI's stages and their additions, for one image and one composition.

Letters: n the three texts (composition, attribute, object), L visual tokens (class token first), D joint width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.explanation import HeatMap, Part, ScoredImage, Shares, attention_map
from methods.msci.config import HIGH, LOW
from methods.parts.cross_attention_method import AttendedImages

STAGES = {LOW: "stage 1, low layers", HIGH: "stage 2, high layers"}
PARTS = {"text": "text", LOW: "low layers (stage 1)", HIGH: "high layers (stage 2)"}


def explained_parts(
    scored: ScoredImage, attention: Mapping[str, Tensor], shares: Mapping[str, Tensor], labels: tuple[str, str, str]
) -> list[Part]:
    """Heat maps of each stage's attention, and the shares of the parts of t*.

    ``attention`` has the weights [n, L] of each stage (mean over its layers and heads), ``shares`` the parts [n, D] of t*.
    A part's share in t* is its projection on t*, <part, t*> / |t*|^2, so that shares add up to 1; one below 0 points away from t*. Its
    share in the cosine is <part, image feature> / |t*|, so that these add up to the branch's cosine.
    """
    features = scored.features
    assert isinstance(features, AttendedImages) and features.attribute is not None and features.object is not None
    found: list[Part] = []
    for name, weights_nL in attention.items():
        found += _maps(STAGES[name], weights_nL, labels, scored.image.size)
    parts = {name: part.double() for name, part in shares.items()}
    stacked_knD = torch.stack(list(parts.values()))
    moved_nD = stacked_knD.sum(0)
    norm_n = torch.linalg.vector_norm(moved_nD, dim=-1).clamp_min(1e-12)
    image_nD = F.normalize(torch.cat([features.pair, features.attribute, features.object]).double(), dim=-1)
    in_text_kn = (torch.einsum("knd,nd->kn", stacked_knD, moved_nD) / norm_n**2).cpu().numpy()
    in_cosine_kn = (torch.einsum("knd,nd->kn", stacked_knD, image_nD) / norm_n).cpu().numpy()
    names = [PARTS[name] for name in parts]
    text = (
        "t* is the text after it looked at the image: text + low part + high part. A part's share is its projection on t*; "
        "one below 0 points away from t*."
    )
    cosine_n = ((moved_nD * image_nD).sum(1) / norm_n).tolist()
    cosine = "What each part adds to the cosine of t* and the image's feature."
    return [
        *found,
        Shares("Shares in the moved text t*", names, list(labels), in_text_kn, [1.0] * len(labels), text),
        Shares("Shares in the cosine", names, list(labels), in_cosine_kn, cosine_n, cosine),
    ]


def _maps(group: str, weights_nL: Tensor, labels: tuple[str, str, str], size: tuple[int, int]) -> list[HeatMap]:
    return [attention_map(group, label, row_L, size) for label, row_L in zip(labels, weights_nL, strict=True)]
