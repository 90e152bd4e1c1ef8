"""The composition of an image from its sub-images: z = g + sum_k w_k v_k, score = cos(z, t).

Letters: C captions, K words (sub-images), D joint width; g the whole image, v_k a sub-image, e_k its word, t the caption. A word that a
caption does not have is padding: ``present`` is False there, and its weight 0. README.md gives the sources of the numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from methods.comclip.rule import Rule

TINY = 1e-12


def weigh(fit: Tensor, cosine: Tensor, present: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Weights [..., K] of sub-images, and where the guard kept the image as it is, bool [...].

    Parameters
    ----------
    fit : float tensor [..., K]
        e_k . v_k as the mode has them.
    cosine : float tensor [..., K]
        Cosines of the same sub-images.
    present : bool tensor [..., K]
        A caption without any word leaves the image as it is and is not counted as guarded.
    rule : Rule
    """
    wordy = present.any(-1)
    guarded = wordy & ~((cosine > rule.min_score) & present).any(-1) & rule.guard
    if rule.guard:
        fit = fit.clamp_min(0)
    if rule.weight == "uniform":
        weight = present.to(fit.dtype) / present.sum(-1, keepdim=True)
    elif rule.weight == "softmax":
        weight = (cosine / rule.tau).masked_fill(~present, -torch.inf).softmax(-1)
    else:
        weight = fit.masked_fill(~present, 0)
        if rule.mode != "gclip":
            weight = weight / weight.sum(-1, keepdim=True)
    kept = (wordy & ~guarded)[..., None] & present
    return torch.where(kept, rule.beta * weight, 0), guarded


def fits(words: Tensor, views: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Fit and cosine [...] of words and sub-images [..., D] of one another."""
    dot = (words * views).sum(-1)
    cosine = dot / (words.norm(dim=-1) * views.norm(dim=-1)).clamp_min(TINY)
    return (dot if rule.mode == "raw" else cosine), cosine


def compose(whole_D: Tensor, views_KD: Tensor, weight_K: Tensor) -> Tensor:
    """z [D], the composed image."""
    return whole_D + weight_K @ views_KD


def gram_scores(text_CD: Tensor, whole_D: Tensor, views_KD: Tensor, weight_CK: Tensor) -> Tensor:
    """cos(z_c, t_c) [C] of one image for captions that weight its sub-images differently, without forming any z.

    With P = T V', G = V V' and h = V g: t.z = t.g + w.P and |z|^2 = g.g + 2 w.h + w'Gw. A caption's weight is 0 for sub-images that
    none of its words has, so captions may have different numbers of words.
    """
    text_CD = normalize(text_CD, dim=-1)
    along_C = text_CD @ whole_D + (weight_CK * (text_CD @ views_KD.T)).sum(-1)
    gram_KK, h_K = views_KD @ views_KD.T, views_KD @ whole_D
    square_C = whole_D @ whole_D + 2 * weight_CK @ h_K + (weight_CK @ gram_KK * weight_CK).sum(-1)
    return along_C / square_C.clamp_min(TINY).sqrt()


def blip2_score(
    whole_QW: Tensor, views_KQW: Tensor, words_KD: Tensor, text_D: Tensor, projection_DW: Tensor, bias_D: Tensor
) -> Tensor:
    """The score of the paper's BLIP-2 variant, a scalar; no tower here computes its inputs.

    An image is Q query tokens of width W before the projection; words and caption are projected class tokens of length 1. The fit of a
    word is the largest cosine among the projected queries of its sub-image; queries are composed before the projection, one by one.
    """

    def project(tokens: Tensor) -> Tensor:
        return normalize(tokens @ projection_DW.T + bias_D, dim=-1)

    fit_K = (project(views_KQW) * words_KD[:, None]).sum(-1).amax(-1)
    composed_QW = whole_QW + torch.einsum("k,kqw->qw", fit_K / fit_K.sum(), views_KQW)
    return (project(normalize(composed_QW, dim=-1)) @ text_D).amax()
