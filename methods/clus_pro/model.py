"""ClusPro (Qu, Wei, Shu, Wang: Learning Clustering-based Prototypes for Compositional Zero-shot Learning, ICLR 2025).

Letters: B images, P pairs, A attributes, O objects, K prototypes per primitive, M prototypes of all primitives, D joint width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from czsl.clip.backbone import Clip
from czsl.clip.lean import unit
from czsl.compositions import CompositionSpace
from methods.clus_pro.config import ClusProConfig
from methods.clus_pro.contrast import prototype_contrast
from methods.clus_pro.explain import prototype_parts
from methods.clus_pro.hsic import normalised_hsic
from methods.clus_pro.prototypes import Prototypes, effective_count, mean_cosine
from methods.explanation import Explanation, ScoredImage, branch_figures
from methods.features import ImageFeatures, RetrievalQuery, Targets, TextFeatures
from methods.method import Method
from methods.parts.adapters import image_adapters
from methods.parts.branches import REFERENCE_CHUNK, branch_losses, encode_branches, fuse, primitive_terms
from methods.parts.heads import Disentangler
from methods.parts.prompts import SoftPrompts

BRANCHES = ("attribute", "object")


@dataclass
class ClusProImages(ImageFeatures):
    """Also the branches before the L2 norm (attribute first): ``hidden`` [2, B, D] is clustered, ``branches`` [2, B, D] compared."""

    hidden: Tensor | None = None
    branches: Tensor | None = None


@dataclass
class ClusProText(TextFeatures):
    """Also ``whole`` [P, D]: the pair features of all candidates, whichever tile this is."""

    whole: Tensor | None = None


class ClusPro(Method):
    """Learned prompts and adapters with three branches, and prototypes that shape the two primitive branches in training.

    Prototypes take no part in testing. A training step costs an encoding of all training pairs, the image tower forth and back
    (with ``adapter_dim=0`` image features are kept instead), two batched transport problems' worth of float64 work and a product of
    all prototypes with all images.
    """

    name, title, Config = "clusPro", "ClusPro", ClusProConfig
    per_primitive = ("prompts.table", "prototypes.bank", "prototypes.ring", "prototypes.ring_place")
    explains_by_examples = True

    config: ClusProConfig

    def __init__(self, space: CompositionSpace, clip: Clip, config: ClusProConfig):
        super().__init__(space, clip, config)
        c = config
        self.prompts = SoftPrompts(clip.text, self.attribute_names, self.object_names, c.attr_dropout, True)
        self.adapters = image_adapters(clip, config)
        self.hidden_mlps = nn.ModuleDict({b: Disentangler(clip.dim, c.head_dropout) for b in BRANCHES})
        heads = BRANCHES if c.heads == 2 else ()
        self.head_mlps = nn.ModuleDict({b: Disentangler(clip.dim, c.head_dropout) for b in heads})
        self.prototypes = Prototypes(space.num_attributes, space.num_objects, clip.dim, c)

    def _mlps(self, which: nn.ModuleDict) -> list[Disentangler]:
        return cast(list[Disentangler], list(which.values()))

    # -- images ----------------------------------------------------------------------------------------------------
    def embed_images(self, features_BD: Tensor) -> ClusProImages:
        """The three branches; in training batch norm sees the whole global batch."""
        hidden_2BD = torch.stack([mlp(features_BD) for mlp in self._mlps(self.hidden_mlps)])
        branches_2BD = hidden_2BD
        if self.head_mlps:
            branches_2BD = torch.stack([mlp(g) for mlp, g in zip(self._mlps(self.head_mlps), hidden_2BD, strict=True)])
        attribute, obj = unit(branches_2BD)
        return ClusProImages(unit(features_BD), attribute, obj, hidden_2BD, branches_2BD)

    # -- text and scores -------------------------------------------------------------------------------------------
    def encode_compositions(self, pairs_P2: Tensor) -> ClusProText:
        """Text features of index pairs: [P, D], [A, D], [O, D]."""
        pairs_P2 = pairs_P2.to(self.clip.device)
        pair_PD, attribute_AD, object_OD = encode_branches(self, self.prompts, pairs_P2)
        return ClusProText(pairs_P2, pair_PD, attribute_AD, object_OD, whole=pair_PD)

    def encode_pairs(self, pairs_P2: Tensor) -> Tensor:
        """Pair features [P, D] without those of the primitives."""
        return self.encode_prompts(self.prompts.pairs(self.prompts.words(), pairs_P2.to(self.clip.device)))

    def scores(self, images: ImageFeatures, text: TextFeatures) -> Tensor:
        """Composition term plus product of primitive probabilities, [B, P].

        With ``fusion=probability`` (eq. 13) the composition's probability is among all pairs of the text features, so it does not depend
        on the tile.
        """
        assert isinstance(text, ClusProText)
        assert text.whole is not None
        c = self.config
        pair_BP, attr_BA, obj_BO = self.logits(images, text)
        assert attr_BA is not None
        assert obj_BO is not None
        if c.fusion == "probability":
            pair_BP = (pair_BP - self._log_normaliser(images, text.whole)).exp()
        return fuse(pair_BP, attr_BA, obj_BO, text.pairs, c, 1 if self.validating else len(text.whole))

    def rescored(self, pair_BP: Tensor, images: ImageFeatures, text: TextFeatures) -> Tensor:
        """The same with these composition logits of all candidates; the primitive terms stay as they are."""
        _, attr_BA, obj_BO = self.logits(images, text.tile(0, 0))
        assert attr_BA is not None
        assert obj_BO is not None
        if self.config.fusion == "probability":
            tiles = [torch.logsumexp(tile, 1) for tile in pair_BP.split(REFERENCE_CHUNK, dim=1)]
            pair_BP = (pair_BP - torch.logsumexp(torch.stack(tiles), 0)[:, None]).exp()
        return fuse(pair_BP, attr_BA, obj_BO, text.pairs, self.config, len(text))

    def log_weights(self, scores_BP: Tensor) -> Tensor:
        """Return logarithms of scores that are sums of probabilities, so that shares are the probabilities."""
        return scores_BP.double() if self.config.fusion == "logit" else scores_BP.double().log()

    @property
    def indexable(self) -> bool:
        """A pair's embedding is the same for all images."""
        return True

    def retrieval_query(self, images: ImageFeatures, primitives: TextFeatures, candidates: int) -> RetrievalQuery:
        """Composition term and product of primitive probabilities."""
        _, attr_BA, obj_BO = self.logits(images, primitives)
        assert attr_BA is not None
        assert obj_BO is not None
        c, query_BD = self.config, self.clip.logit_scale * images.pair
        terms = primitive_terms(attr_BA, obj_BO, c, candidates)
        if c.fusion == "probability":
            return RetrievalQuery(query_BD, *terms, probability=c.pair_inference_weight)
        return RetrievalQuery(c.pair_inference_weight * query_BD, *terms)

    def _log_normaliser(self, images: ImageFeatures, whole_PD: Tensor) -> Tensor:
        """log of the sum over all candidates of exp(logit), [B, 1]."""
        tiles = [torch.logsumexp(self.clip.logit_scale * images.pair @ t.T, 1) for t in whole_PD.split(REFERENCE_CHUNK)]
        return torch.logsumexp(torch.stack(tiles), 0)[:, None]

    # -- training --------------------------------------------------------------------------------------------------
    @property
    def needs_initialisation(self) -> bool:
        """Prototypes start from training images unless they start from zeros or are there already."""
        return not bool(self.prototypes.seeded)

    @torch.no_grad()
    def initialise(self, features_ND: Tensor, attr_N: Tensor, obj_N: Tensor) -> None:
        """Seed the prototypes from what the first MLPs make of all images under their batch statistics, without dropout."""
        was_training = self.training
        self.train()
        hidden = [mlp.activate(features_ND, track=False) for mlp in self._mlps(self.hidden_mlps)]
        self.prototypes.seed(torch.cat(hidden), self.prototypes.ids(attr_N, obj_N))
        self.train(was_training)

    def losses(self, images: ImageFeatures, text: TextFeatures, targets: Targets) -> dict[str, Tensor]:
        """Cross-entropies of the branches, contrast with prototypes and decorrelation; moves the prototypes."""
        assert isinstance(images, ClusProImages)
        assert images.hidden is not None
        assert images.branches is not None
        c, (attr_B, obj_B) = self.config, targets.hard
        terms = branch_losses(self.logits(images, text), targets, c.loss_weights)
        # Transport, kernels and cosines over a temperature need their digits: no autocast from here on.
        with torch.autocast(self.clip.device.type, enabled=False):
            hidden_2BD, z_2BD = (x.to(self.prototypes.bank.dtype) for x in (images.hidden, images.branches))
            labels_2B = self.prototypes.step(hidden_2BD, attr_B, obj_B)
            rows_MD, targets_2B = self._prototype_rows(self.prototypes.ids(attr_B, obj_B).view(2, -1), labels_2B)
            dropout = c.head_dropout if self.head_mlps and self.training else 0.0
            if c.pcl_weight:
                terms["pcl"] = c.pcl_weight * prototype_contrast(z_2BD, rows_MD, targets_2B, c.pcl_tau, dropout)
            if c.pdl_weight:
                terms["pdl"] = c.pdl_weight * self._decorrelation(z_2BD, F.dropout(rows_MD[targets_2B], dropout))
            if c.bn_mode == "released":
                self._follow_rings(len(attr_B))
                self.prototypes.remember(hidden_2BD, attr_B, obj_B, labels_2B)
        return terms

    def without_values(self) -> None:
        """See the contract: the batch chooses no prototypes."""
        self.prototypes.without_values = True

    def _prototype_rows(self, ids_2B: Tensor, labels_2B: Tensor) -> tuple[Tensor, Tensor]:
        """Prototypes after the second MLPs (before dropout), one row each [M, D], and each image's own row [2, B]."""
        K, B = self.config.num_prototypes, labels_2B.shape[1]
        used_C = self.prototypes.in_use()
        place_C = used_C.cumsum(0) - 1
        targets_2B = place_C[ids_2B] * K + labels_2B
        parts = list(self.prototypes.rows_in_use(used_C))
        if self.head_mlps:
            for i, mlp in enumerate(self._mlps(self.head_mlps)):
                if self.config.bn_mode == "released":
                    mlp.follow(parts[i], copies=B)  # the public program repeats all prototypes for each image
                parts[i] = mlp.activate(parts[i], track=False)
        return torch.cat(parts), targets_2B

    def _follow_rings(self, copies: int) -> None:
        A = self.prototypes.num_attributes
        rings = self.prototypes.ring[:A], self.prototypes.ring[A:]
        for mlp, ring in zip(self._mlps(self.head_mlps), rings, strict=True):
            mlp.follow(ring.flatten(0, 2), copies)

    def _decorrelation(self, z_2BD: Tensor, own_2BD: Tensor) -> Tensor:
        """HSIC of attribute features with object prototypes and the reverse; the prototypes are the images' own."""
        c, against_2BD = self.config, own_2BD.flip(0)
        if c.pdl_mix == "half":
            against_2BD = (against_2BD + z_2BD.flip(0)) / 2
        attribute, obj = normalised_hsic(z_2BD, against_2BD, c.pdl_estimator)
        return c.pdl_terms[0] * attribute + c.pdl_terms[1] * obj

    def clustered_features(self, features_ND: Tensor) -> Tensor:
        """Image features in the prototypes' space [2, N, D], attribute branch first: what is clustered."""
        features = self.embed_images(features_ND)
        assert isinstance(features, ClusProImages) and features.hidden is not None
        return features.hidden

    def metrics(self) -> dict[str, float]:
        """Health of the prototypes: mean effective number and mean pairwise cosine over primitives that have any."""
        bank = self.prototypes.bank
        bank = bank[bank.abs().amax((1, 2)) > 0]
        if not len(bank):
            return {}
        return {"effective_k": float(effective_count(bank).mean()), "prototype_cosine": float(mean_cosine(bank).mean())}

    def explain_candidate(self, scored: ScoredImage, index: int) -> Explanation:
        """The image's nearest prototypes of the attribute and the object, with the training images nearest to them."""
        assert isinstance(scored.features, ClusProImages) and scored.features.hidden is not None
        pair = scored.text.pairs[index].tolist()
        names = self.space.pair_names(pair)
        figures = branch_figures(scored, index, (" ".join(names), *names))
        examples = scored.examples(pair[0], pair[1])
        shown = None if examples is None else self.clustered_features(examples.features)
        parts, notes = prototype_parts(self.space, self.prototypes.bank, pair, scored.features.hidden, examples, shown)
        return Explanation(names, [figures, *parts], notes)
