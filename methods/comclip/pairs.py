"""Scores of attribute-object pairs from what their words see: tables of words and inner products, no composed image is formed.

z_ao = g + w_a v_a + w_o v_o (+ w_ao v_ao); v_p is what word p sees of an image's regions. Letters: B images, P pairs, X words of one
kind (attributes or objects), L regions, D joint width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from methods.comclip.algebra import TINY, Rule, weigh
from methods.comclip.config import ComCLIPConfig
from methods.comclip.regions import ComCLIPImages
from methods.features import TextFeatures


@dataclass
class ComCLIPText(TextFeatures):
    """P pairs: ``pair`` [P, D] of their prompts; ``attribute`` [A, D] and ``object`` [O, D] of the bare words, as the mode wants them.

    both : of the words of both, [P, D], where their union is a sub-image
    """

    both: Tensor | None = field(default=None, kw_only=True)

    def tile(self, start: int, stop: int) -> Self:
        """The text features of pairs ``start:stop``; words stay whole."""
        cut = super().tile(start, stop)
        return cut if self.both is None else replace(cut, both=self.both[start:stop])


@dataclass(frozen=True)
class AttendedFeatures:
    """Attended features of B images for X words.

    choice : of the regions, [B, X, L]
    views : v, [B, X, D]
    fit, cosine : of word and v, [B, X]
    along : g.v [B, X]
    square : v.v [B, X]
    """

    choice: Tensor
    views: Tensor
    fit: Tensor
    cosine: Tensor
    along: Tensor
    square: Tensor


@dataclass(frozen=True)
class Parts:
    """Scores of B images and P pairs as cosines, and of their K sub-images (attribute, object, union) weight, fit and cosine."""

    score: Tensor  # [B, P]
    weight: Tensor  # [B, P, K]
    fit: Tensor
    cosine: Tensor
    guarded: Tensor  # bool [B, P]


def attend(images: ComCLIPImages, words_XD: Tensor, config: ComCLIPConfig) -> AttendedFeatures:
    """Each word's sub-image: a soft choice of the regions by their cosine, or the best one."""
    unit_XD = normalize(words_XD, dim=-1)
    cosine_BXL = (unit_XD @ images.unit.mT).masked_fill(~images.present[:, None], -torch.inf)
    if config.choice == "soft":
        choice_BXL = (cosine_BXL / config.choice_tau).softmax(-1)
    else:
        choice_BXL = torch.zeros_like(cosine_BXL).scatter_(-1, cosine_BXL.argmax(-1, keepdim=True), 1)
    views_BXD = choice_BXL @ images.regions
    if config.mode == "unit":
        views_BXD = normalize(views_BXD, dim=-1)
    dot_BX = torch.einsum("bxd,xd->bx", views_BXD, words_XD)
    square_BX = views_BXD.square().sum(-1)
    cosine_BX = dot_BX / (square_BX.sqrt() * words_XD.norm(dim=-1)).clamp_min(TINY)
    fit_BX = dot_BX if config.mode == "raw" else cosine_BX
    along_BX = torch.einsum("bxd,bd->bx", views_BXD, images.whole)
    return AttendedFeatures(choice_BXL, views_BXD, fit_BX, cosine_BX, along_BX, square_BX)


def attended(
    images: ComCLIPImages, text: ComCLIPText, config: ComCLIPConfig
) -> tuple[AttendedFeatures, AttendedFeatures, Tensor]:
    """Attended features of attributes and objects, and v_a.v_o [B, A, O]; computed once for all tiles of pairs."""
    assert text.attribute is not None
    assert text.object is not None
    key = id(text.attribute), id(text.object)
    if key not in images.attended:
        found = attend(images, text.attribute, config), attend(images, text.object, config)
        # Holds the words, so their identity stays their own.
        images.attended[key] = (*found, found[0].views @ found[1].views.mT), text.attribute, text.object
    return images.attended[key][0]


def paired_dots(text_PD: Tensor, views_BXD: Tensor, label_P: Tensor) -> Tensor:
    """Inner products [B, P] of each pair's text with what its label sees: one matrix product a label, not one for all labels."""
    order_P = label_P.argsort(stable=True)
    labels, counts = torch.unique_consecutive(label_P[order_P], return_counts=True)
    parts = text_PD[order_P].split(counts.tolist())
    out_BP = torch.cat([views_BXD[:, x] @ part.T for x, part in zip(labels.tolist(), parts, strict=True)], dim=1)
    return out_BP[:, order_P.argsort()]


def pair_parts(images: ComCLIPImages, text: ComCLIPText, config: ComCLIPConfig) -> Parts:
    """Scores of all pairs of a tile, and where they come from."""
    attr, obj, cross_BAO = attended(images, text, config)
    a, o = text.pairs.T
    rule: Rule = config.rule
    if not len(a):
        none = images.whole.new_zeros(len(images.whole), 0, 2)
        return Parts(none[..., 0], none, none, none, none[..., 0].bool())
    text_a, text_o = paired_dots(text.pair, attr.views, a), paired_dots(text.pair, obj.views, o)
    square_a, square_o, cross = attr.square[:, a], obj.square[:, o], cross_BAO[:, a, o]
    fit, cosine = [attr.fit[:, a], obj.fit[:, o]], [attr.cosine[:, a], obj.cosine[:, o]]
    # Inner products of the sub-images with the text, with the whole image, and with one another.
    texts, alongs = [text_a, text_o], [attr.along[:, a], obj.along[:, o]]
    gram = [[square_a, cross], [cross, square_o]]
    if text.both is not None:
        both = square_a + square_o + 2 * cross
        length = 1 / both.clamp_min(TINY).sqrt() if config.mode == "unit" else torch.full_like(both, 0.5)
        dot = length * (paired_dots(text.both, attr.views, a) + paired_dots(text.both, obj.views, o))
        cosine.append(dot / (length * both.clamp_min(TINY).sqrt() * text.both.norm(dim=-1)).clamp_min(TINY))
        fit.append(dot if config.mode == "raw" else cosine[-1])
        texts.append(length * (text_a + text_o))
        alongs.append(length * (alongs[0] + alongs[1]))
        beside = [length * (square_a + cross), length * (square_o + cross)]
        gram = [[*gram[0], beside[0]], [*gram[1], beside[1]], [*beside, length**2 * both]]
    fit_BPK, cosine_BPK = torch.stack(fit, dim=-1), torch.stack(cosine, dim=-1)
    weight_BPK, guarded_BP = weigh(fit_BPK, cosine_BPK, torch.ones_like(fit_BPK, dtype=torch.bool), rule)
    weights = weight_BPK.unbind(-1)
    numerator_BP = images.whole @ text.pair.T
    square_BP = images.whole.square().sum(-1, keepdim=True).expand_as(numerator_BP)
    for i, weight in enumerate(weights):
        numerator_BP = numerator_BP + weight * texts[i]
        square_BP = square_BP + 2 * weight * alongs[i]
        for j, other in enumerate(weights):
            square_BP = square_BP + weight * other * gram[i][j]
    return Parts(numerator_BP / square_BP.clamp_min(TINY).sqrt(), weight_BPK, fit_BPK, cosine_BPK, guarded_BP)
