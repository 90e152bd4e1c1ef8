"""Local scores of images against candidates: by transport, or by its expansion, which falls apart into attributes and objects.

A candidate is one label of each bank: an attribute and an object, or a single class. Letters: B images, P candidates, R kept regions,
N phrases of a candidate, F phrases of all banks together, X labels of a bank, D joint width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from methods.features import TextFeatures
from methods.lazsl.config import LaZSLConfig
from methods.lazsl.phrases import PhraseBank
from methods.lazsl.regions import RegionFeatures
from methods.lazsl.solver import plan_of

# Elements of the problems solved at a time: what a processor's cache holds, or what keeps a GPU busy.
CHUNK_CPU, CHUNK_GPU = 2**18, 2**26


@dataclass
class PhraseFeatures(TextFeatures):
    """P candidates: ``pair`` [P, D] is what the whole image is compared with.

    banks : of attributes and objects; of plain classes, which have no attribute, only one
    shares : weight of each bank's phrases in a candidate, of sum 1
    """

    banks: tuple[PhraseBank, ...] = field(kw_only=True)
    shares: tuple[float, ...] = field(kw_only=True)

    @property
    def labels(self) -> Tensor:
        """The label of each candidate in each bank, [number of banks, P]."""
        return self.pairs[:, -len(self.banks) :].T

    @cached_property
    def problems(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Candidates with equally many phrases: their places [p], phrases [p, N] (among those of all banks) and weights [p, N]."""
        counts, firsts, offset = [], [], 0
        for bank, share, label_P in zip(self.banks, self.shares, self.labels, strict=True):
            counts.append(bank.count[label_P] if share else torch.zeros_like(label_P))
            firsts.append(offset + bank.first[label_P])
            offset += len(bank.features)
        total_P, found = torch.stack(counts).sum(0), []
        for n in total_P.unique().tolist():
            place_p = torch.nonzero(total_P == n)[:, 0]
            step_N = torch.arange(n, device=place_p.device)
            phrase_pN = torch.zeros(len(place_p), n, dtype=torch.long, device=place_p.device)
            weight_pN = torch.zeros(len(place_p), n, dtype=torch.float64, device=place_p.device)
            begin_p1 = torch.zeros_like(place_p)[:, None]
            for count_P, first_P, share in zip(counts, firsts, self.shares, strict=True):
                count_p1 = count_P[place_p, None]
                own_pN = (step_N >= begin_p1) & (step_N < begin_p1 + count_p1)
                phrase_pN = torch.where(own_pN, first_P[place_p, None] + step_N - begin_p1, phrase_pN)
                weight_pN = torch.where(own_pN, share / count_p1.clamp(min=1).double(), weight_pN)
                begin_p1 = begin_p1 + count_p1
            found.append((place_p, phrase_pN, weight_pN))
        return found


def mixed_scores(images: RegionFeatures, text: PhraseFeatures, config: LaZSLConfig) -> Tensor:
    """psi [B, P]: (1 - theta) * description baseline + theta * local score, both cosines."""
    whole_BP = images.pair @ text.pair.T
    if not config.theta:
        return whole_BP
    return (1 - config.theta) * whole_BP + config.theta * local_scores(images, text, config)


def local_scores(images: RegionFeatures, text: PhraseFeatures, config: LaZSLConfig) -> Tensor:
    """Plan-weighted similarity of regions and phrases, sum(T s), [B, P]."""
    if config.solver in ("second_order", "uniform"):
        return expanded_scores(images, text, 0.0 if config.solver == "uniform" else config.theta / config.eps)
    return transported_scores(images, text, config)


def transported_scores(images: RegionFeatures, text: PhraseFeatures, config: LaZSLConfig) -> Tensor:
    """One problem an image and candidate; candidates with equally many phrases are solved together."""
    parts = [_compared(images, bank).similarity() for bank in text.banks]
    similarity_BFR = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    B, R = images.mass.shape
    limit = CHUNK_GPU if similarity_BFR.is_cuda else CHUNK_CPU
    out_BP = similarity_BFR.new_empty(B, len(text))
    for place_p, phrase_pN, weight_pN in text.problems:
        step = max(1, limit // (R * phrase_pN.shape[1]))
        step_images = max(1, step // len(place_p))
        for b in range(0, B, step_images):
            those = slice(b, b + step_images)
            mass_bR = images.mass[those]
            for p in range(0, len(place_p), step):
                own = slice(p, p + step)
                s_bpNR = similarity_BFR[those, phrase_pN[own]]
                shape, s_QNR = s_bpNR.shape[:2], s_bpNR.flatten(0, 1)
                weight_QN = weight_pN[own].to(s_QNR.dtype).expand(shape[0], -1, -1).flatten(0, 1)
                mass_QR = mass_bR[:, None].expand(-1, shape[1], -1).flatten(0, 1)
                plan_QNR = plan_of(config.solver, s_QNR, weight_QN, mass_QR, config.theta / config.eps)
                out_BP[those, place_p[own]] = plan_QNR.mul_(s_QNR).sum((1, 2)).view(shape)
    return out_BP


def expanded_scores(images: RegionFeatures, text: PhraseFeatures, strength: float) -> Tensor:
    """The transport's second-order expansion: mean + strength * (variance within phrases - variance of the candidate's mean).

    All but the last variance is a sum over attribute and object; that needs their covariance over regions, one matrix product.
    """
    views = [_compared(images, bank) for bank in text.banks]
    parts = list(zip(views, text.shares, text.labels, strict=True))
    score_BP = torch.stack([share * view.mean()[:, label_P] for view, share, label_P in parts]).sum(0)
    if not strength:
        return score_BP
    for view, share, label_P in parts:
        within_BX, _, variance_BX = view.moments()
        score_BP = score_BP + strength * (share * within_BX - share**2 * variance_BX)[:, label_P]
    if len(parts) == 2:
        # Of a tile only the attributes and objects that occur in it: in the open world these are a few whole rows of the table.
        (a, place_a), (o, place_o) = (label_P.unique(return_inverse=True) for _, _, label_P in parts)
        attribute_BRa, object_BRo = views[0].moments()[1][:, :, a], views[1].moments()[1][:, :, o]
        covariance_Bao = attribute_BRa.mT @ object_BRo
        score_BP = score_BP - 2 * strength * text.shares[0] * text.shares[1] * covariance_Bao[:, place_a, place_o]
    return score_BP


class _Comparison:
    """Images against one bank; each part is computed once, however many tiles of candidates ask for it."""

    def __init__(self, images: RegionFeatures, bank: PhraseBank):
        self.images, self.bank = images, bank
        self._similarity: Tensor | None = None
        self._moments: tuple[Tensor, Tensor, Tensor] | None = None

    def similarity(self) -> Tensor:
        """Cosines of phrases and regions, [B, F, R]."""
        if self._similarity is None:
            regions_BRD = self.images.regions
            cosine_NF = regions_BRD.flatten(0, 1) @ self.bank.features.T
            self._similarity = cosine_NF.unflatten(0, regions_BRD.shape[:2]).mT.contiguous()
        return self._similarity

    def mean(self) -> Tensor:
        """Mean similarity of each label's phrases and all regions, [B, X]."""
        return torch.einsum("br,brd->bd", self.images.mass, self.images.regions) @ self.bank.mean.T

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Variance over regions within a phrase, averaged over a label's phrases [B, X]; the label's centred mean [B, R, X], times
        the root of each region's mass; its variance [B, X]."""
        if self._moments is None:
            images, bank = self.images, self.bank
            centre_BD = torch.einsum("br,brd->bd", images.mass, images.regions)
            centred_BRD = (images.regions - centre_BD[:, None]) * images.mass.sqrt()[:, :, None]
            variance_BF = (centred_BRD @ bank.features.T).square().sum(1)
            owner_F = torch.repeat_interleave(torch.arange(len(bank.count), device=bank.count.device), bank.count)
            sums_BX = variance_BF.new_zeros(len(variance_BF), len(bank.count)).index_add_(1, owner_F, variance_BF)
            mean_BRX = centred_BRD @ bank.mean.T
            self._moments = sums_BX / bank.count, mean_BRX, mean_BRX.square().sum(1)
        return self._moments


def _compared(images: RegionFeatures, bank: PhraseBank) -> _Comparison:
    kept = images.compared.get(id(bank))
    if kept is None:
        kept = images.compared[id(bank)] = _Comparison(images, bank)  # holds the bank, so its identity stays its own
    return kept
