"""CLIP-PZSL (our reading of arXiv 2603.05053, ICASSP 2026): zero-shot learning from candidate labels on a frozen CLIP.

A class is a seen pair. Letters: B images, C seen pairs, P pairs, D joint width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, one_hot

from czsl.clip.towers import Towers
from czsl.compositions import CompositionSpace
from methods.clip_pzsl.config import ClipPzslConfig
from methods.clip_pzsl.losses import alignment, anchor, classification, outside, relevance
from methods.clip_pzsl.mining import Mining
from methods.features import ImageFeatures, RetrievalQuery, Targets, TextFeatures
from methods.method import Method
from methods.parts.label_confidences import CHUNK, LabelConfidences
from methods.parts.renaming import renamed_pairs
from methods.parts.words import KeptWords


@dataclass
class AdaptedImages(ImageFeatures):
    """Also the frozen features before the adapter, ``frozen`` [B, D]."""

    frozen: Tensor | None = None


class FeatureAdapter(nn.Module):
    """f(v) = norm(v + scale W2 gelu(W1 v)); the identity at first."""

    def __init__(self, dim: int, width: int, scale: float):
        super().__init__()
        self.scale, self.down, self.up = scale, nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Unit features [B, D] of unit features."""
        return normalize(features_BD + self.scale * self.up(gelu(self.down(features_BD))), dim=-1)


class ClipPzsl(Method):
    """Label embeddings mined from images and words, trained on weighted candidate labels; both towers stay frozen.

    A step costs a product of the batch with the seen pairs and an MLP on these: an epoch on kept features takes seconds. It keeps image
    features [N, D] in the cache folder, and the words' features of the seen pairs in memory.
    """

    name, title, Config = "clip-pzsl", "CLIP-PZSL (our reading)", ClipPzslConfig

    config: ClipPzslConfig
    average: Tensor

    def __init__(self, space: CompositionSpace, clip: Towers, config: ClipPzslConfig):
        super().__init__(space, clip, config)
        c = config
        self.blocks = nn.ModuleList(Mining(clip.dim, c) for _ in range(c.depth))
        self.adapter = FeatureAdapter(clip.dim, c.adapter, c.adapter_scale) if c.adapter else None
        self.log_tau = nn.Parameter(torch.tensor(c.tau).log())
        # Running average of the label embeddings of the pairs in `rows_of`, whose words are their start; zeros until then.
        self.rows_of = space.train_pairs
        self.register_buffer("average", torch.zeros(len(space.train_pairs), clip.dim))
        self.words = KeptWords(clip, self.encode_names)

    @property
    def layers(self) -> list[Mining]:
        """The layers of the mining block."""
        return cast(list[Mining], list(self.blocks))

    # -- images, text and scores -----------------------------------------------------------------------------------
    def embed_images(self, features_BD: Tensor) -> AdaptedImages:
        """Unit features, adapted if the method has an adapter."""
        frozen_BD = normalize(features_BD, dim=-1)
        with torch.autocast(self.clip.device.type, enabled=False):
            return AdaptedImages(self.adapter(frozen_BD) if self.adapter else frozen_BD, frozen=frozen_BD)

    def encode_compositions(self, pairs_P2: Tensor) -> TextFeatures:
        """Text features of index pairs. In training, that of all seen pairs before images are looked at: plain words."""
        pairs_P2 = pairs_P2.to(self.clip.device)
        words_PD = self.words(pairs_P2)
        if self.training:
            return TextFeatures(pairs_P2, words_PD)
        labels_PD = words_PD
        for layer in self.layers:
            labels_PD = layer.alone(labels_PD)
        labels_PD = normalize(labels_PD, dim=-1)
        if self.config.seen_inference == "average":
            place_P = torch.from_numpy(self.space.locate(pairs_P2.cpu().numpy(), self.rows_of)).to(self.clip.device)
            known_P = place_P >= 0
            if known_P.any():
                average_PD = self.average[place_P.clamp_min(0)]
                known_P &= average_PD.any(1)  # a row of zeros was never trained
                labels_PD = torch.where(known_P[:, None], average_PD, labels_PD)
        return TextFeatures(pairs_P2, labels_PD)

    def logits(self, images: ImageFeatures, text: TextFeatures) -> tuple[Tensor, None, None]:
        """Cosines over the learned temperature, [B, P]; the method has no branches."""
        with torch.autocast(self.clip.device.type, enabled=False):
            return images.pair @ text.pair.T / self.log_tau.exp(), None, None

    @property
    def pair_scale(self) -> float:
        """One over the learned temperature."""
        return float(1 / self.log_tau.detach().exp())

    def retrieval_query(self, images: ImageFeatures, primitives: TextFeatures, candidates: int) -> RetrievalQuery:
        """Cosines over the learned temperature."""
        return RetrievalQuery(images.pair / self.log_tau.exp())

    # -- training --------------------------------------------------------------------------------------------------
    def mine(self, images_BD: Tensor, words_CD: Tensor, candidates_BC: Tensor) -> Tensor:
        """Label embeddings [C, D] out of the block."""
        allowed_BC = candidates_BC if self.config.restrict else None
        labels_CD = words_CD
        for layer in self.layers:
            labels_CD = layer(labels_CD, images_BD, allowed_BC)
        return normalize(labels_CD, dim=-1)

    def losses(self, images: ImageFeatures, text: TextFeatures, targets: Targets) -> dict[str, Tensor]:
        """Weighted classification, alignment, push from labels that are not candidate labels, and anchor; moves the running average."""
        assert isinstance(images, AdaptedImages) and images.frozen is not None
        c, words_CD = self.config, text.pair
        weight_BC, candidates_BC = targets.pair, targets.candidates
        if candidates_BC is None:  # true labels: sets of one
            weight_BC = one_hot(targets.pair, len(text)).to(words_CD.dtype)
            candidates_BC = weight_BC > 0
        with torch.autocast(self.clip.device.type, enabled=False):
            labels_CD = self.mine(images.pair, words_CD, candidates_BC)
            logits_BC = images.pair @ labels_CD.T / self.log_tau.exp()
            untrained_C1 = ~self.average.any(1, keepdim=True)
            average_CD = torch.where(untrained_C1, words_CD, self.average)
            relevance_BC = relevance(images.pair, average_CD).detach()
            targets.note(logits_BC, relevance_BC)
            used_BC = relevance_BC if c.relevance_in_loss else None
            terms = {"class": classification(logits_BC, weight_BC, used_BC)}
            if c.align_weight:
                terms["align"] = c.align_weight * alignment(images.pair, weight_BC, labels_CD)
            if c.outside_weight:
                terms["outside"] = c.outside_weight * outside(logits_BC, candidates_BC)
            if c.anchor_weight:
                terms["anchor"] = c.anchor_weight * (anchor(labels_CD, words_CD) + anchor(images.pair, images.frozen))
        self.average = normalize(torch.lerp(average_CD, labels_CD.detach(), c.mu), dim=-1)
        return terms

    # -- the closed form -------------------------------------------------------------------------------------------
    @property
    def needs_initialisation(self) -> bool:
        """The closed form is all of it; training wants none."""
        return self.config.em_rounds > 0 and not bool(self.average.any())

    @torch.no_grad()
    def initialise(self, features_ND: Tensor, attr_N: Tensor, obj_N: Tensor) -> None:
        """PZSL-EM: confidences from label embeddings, and these from weighted means of images, a few rounds of both.

        E_c = norm(T_c + rho * sum_i w_ic v_i / sum_i w_ic). With true labels there is nothing to weigh: one round.
        """
        device = self.clip.device
        words_CD = self.words(self.train_pairs)
        images_ND = normalize(features_ND, dim=-1)
        confidences = self.confidences
        if confidences is None:
            pairs_N2 = torch.stack([attr_N, obj_N], dim=1).cpu().numpy()
            place_N1 = self.space.locate(pairs_N2, self.space.train_pairs)[:, None]
            sizes = self.space.num_attributes, self.space.num_objects
            confidences = LabelConfidences(place_N1, self.space.train_pairs, *sizes, device=device, dtype=words_CD.dtype)
        parts = torch.arange(len(images_ND), device=device).split(CHUNK)
        labels_CD = words_CD
        for last in range(self.config.em_rounds)[::-1]:
            total_CD, count_C = torch.zeros_like(words_CD), words_CD.new_zeros(len(words_CD))
            for rows_n in parts:
                weight_nC = confidences.dense(rows_n)
                total_CD += weight_nC.T @ images_ND[rows_n]
                count_C += weight_nC.sum(0)
            labels_CD = normalize(words_CD + self.config.em_rho * total_CD / count_C.clamp_min(1e-6)[:, None], dim=-1)
            for rows_n in parts if last else ():
                logits_nC = images_ND[rows_n] @ labels_CD.T
                confidences.update(rows_n, logits_nC / self.log_tau.exp(), relevance(images_ND[rows_n], labels_CD))
        self.average.copy_(labels_CD)

    def metrics(self) -> dict[str, float]:
        """The learned temperature."""
        return {"tau": float(self.log_tau.detach().exp())}

    # -- other label spaces ----------------------------------------------------------------------------------------
    def for_space(self, space: CompositionSpace) -> Self:
        """The same on other labels: embeddings of seen pairs follow their names.

        A space without training pairs (names to predict with) keeps those of all pairs that it can name.
        """
        other = self.twin(space)
        other.average = other.average.to(self.average)
        pairs_C2 = renamed_pairs(self.rows_of, self.space, space)
        named_C = (pairs_C2 >= 0).all(1)
        if not len(space.train_pairs):
            other.rows_of, other.average = pairs_C2[named_C], self.average[torch.from_numpy(named_C)].clone()
        else:
            found_C = np.where(named_C, space.locate(pairs_C2.clip(0), other.rows_of), -1)
            other.average[found_C[found_C >= 0]] = self.average[torch.from_numpy(found_C >= 0)]
        state = {key: value.clone() for key, value in self.state_dict().items() if key != "average"}
        other.load_state_dict({**state, "average": other.average}, assign=True)
        return other.to(self.clip.device)
