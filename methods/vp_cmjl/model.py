"""VP-CMJL (Learning Visual Proxy for Compositional Zero-Shot Learning, ICCV 2025, arXiv 2501.13859).

Letters: B images, P pairs, A attributes, O objects, n primitives of a branch, D joint width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor, nn

from czsl.clip.backbone import Clip
from czsl.clip.lean import unit
from czsl.compositions import CompositionSpace
from methods.features import ImageFeatures, RetrievalQuery, Targets, TextFeatures, primitives_of
from methods.method import Method
from methods.parts.adapters import image_adapters
from methods.parts.blocks import AttentionBlock
from methods.parts.branches import branch_losses, primitive_terms
from methods.parts.heads import Disentangler
from methods.parts.prompts import SoftPrompts
from methods.vp_cmjl.config import VPCMJLConfig

BRANCHES = ("attribute", "object")

Logits = tuple[Tensor, Tensor, Tensor]  # pair [B, P], attribute [B, A], object [B, O]


@dataclass
class ProxyImages(ImageFeatures):
    """Also ``raw`` [B, D], the feature before its norm, and the primitives' logits with the texts they belong to."""

    raw: Tensor | None = None
    kept: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


@dataclass
class ProxyText(TextFeatures):
    """Text features before their norms in ``attribute`` [A, D] and ``object`` [O, D]; ``pair`` [P, D] is what scores need.

    ``texts`` and ``proxies`` [P, D] are the two unit vectors of a pair that losses compare; None outside training.
    """

    texts: Tensor | None = None
    proxies: Tensor | None = None

    def tile(self, start: int, stop: int) -> Self:
        """The text features of pairs ``start:stop``; primitives stay whole."""
        texts, proxies = (None if x is None else x[start:stop] for x in (self.texts, self.proxies))
        return replace(super().tile(start, stop), texts=texts, proxies=proxies)


class VPCMJL(Method):
    """Learned prompts and adapters with three branches, each with two sets of logits: of texts and of learned visual proxies.

    A step costs an encoding of all training pairs and the image tower forth and back (with ``adapter_dim=0`` image features are kept
    instead); no text depends on an image before the primitives' small attention [B, A] and [B, O].
    """

    name, title, Config = "vp-cmjl", "VP-CMJL", VPCMJLConfig
    per_primitive = ("prompts.table", "proxies")

    config: VPCMJLConfig

    def __init__(self, space: CompositionSpace, clip: Clip, config: VPCMJLConfig):
        super().__init__(space, clip, config)
        c, dim = config, clip.dim
        if dim % c.attention_heads:
            raise c.refused("attention_heads", f"they do not divide the joint width {dim} of this CLIP")
        names = self.attribute_names, self.object_names
        self.prompts = SoftPrompts(clip.text, *names, c.attr_dropout, True, primitive_prefix=c.primitive_prefix)
        self.adapters = image_adapters(clip, config)
        self.attentions = nn.ModuleDict({b: AttentionBlock(dim, c.attention_heads) for b in BRANCHES})
        self.disentanglers = nn.ModuleDict({b: Disentangler(dim, c.head_dropout) for b in BRANCHES})
        self.compose = nn.Linear(2 * dim, dim)
        ids_nT, end_n = clip.text.tokenize([*self.attribute_names, *self.object_names])
        with torch.no_grad():  # [A + O, D], starting as CLIP's features of the bare names
            self.proxies = nn.Parameter(
                clip.text.encode_embeddings(clip.text.embed_tokens(ids_nT), end_n).to(clip.mean.dtype, copy=True)
            )

    # -- images and texts ------------------------------------------------------------------------------------------
    def embed_images(self, features_BD: Tensor) -> ProxyImages:
        """The feature itself for pairs, disentangled features for the proxies of primitives."""
        branches = (self.disentanglers[b](features_BD).to(features_BD.dtype) for b in BRANCHES)
        attribute_BD, object_BD = (unit(x) for x in branches)
        return ProxyImages(unit(features_BD), attribute_BD, object_BD, raw=features_BD)

    def encode_compositions(self, pairs_P2: Tensor) -> ProxyText:
        """Text features of index pairs."""
        pairs_P2, words = pairs_P2.to(self.clip.device), self.prompts.words()
        pair_PD, texts_PD, proxies_PD = self._pairs(words, pairs_P2)
        attribute_AD, object_OD = self.encode_prompt_sets(list(self.prompts.primitives(words)), unit=False)
        return ProxyText(pairs_P2, pair_PD, attribute_AD, object_OD, texts_PD, proxies_PD)

    def encode_pairs(self, pairs_P2: Tensor) -> Tensor:
        """Return the pair features [P, D] that scores need, without texts of primitives."""
        return self._pairs(self.prompts.words(), pairs_P2.to(self.clip.device))[0]

    def _pairs(self, words: Tensor, pairs_P2: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The weighted sum of a pair's unit proxy and unit text [P, D], and the two in training."""
        c, texts_PD, proxies_PD = self.config, None, None
        if self.training or c.proxy_weight:
            parts = self.proxies[pairs_P2[:, 0]], self.proxies[self.space.num_attributes + pairs_P2[:, 1]]
            proxies_PD = unit(self.compose(torch.cat(parts, dim=1)).to(self.proxies.dtype))
        if self.training or c.text_weight:
            texts_PD = self.encode_prompts(self.prompts.pairs(words, pairs_P2))
        weighted = [w * x for w, x in ((c.proxy_weight, proxies_PD), (c.text_weight, texts_PD)) if x is not None]
        pair_PD = torch.stack(weighted).sum(0)
        return (pair_PD, texts_PD, proxies_PD) if self.training else (pair_PD, None, None)

    # -- scores ----------------------------------------------------------------------------------------------------
    def _text_primitives(self, images: ProxyImages, text: TextFeatures) -> list[Tensor]:
        """Logits of primitives by their texts: cosine of the moved feature, plus the attention it paid to each."""
        assert images.raw is not None
        out = []
        for branch, texts_nD in zip(BRANCHES, primitives_of(text), strict=True):
            block = cast(AttentionBlock, self.attentions[branch])
            moved_BD, weights_Bn = block.weighted(images.raw, texts_nD)
            cosines_Bn = unit(moved_BD.to(texts_nD.dtype)) @ unit(texts_nD).T
            out.append(self.clip.logit_scale * (cosines_Bn + weights_Bn.to(texts_nD.dtype)))
        return out

    def _proxy_primitives(self, images: ProxyImages) -> list[Tensor]:
        """Logits of primitives by their proxies."""
        tables = unit(self.proxies).tensor_split([self.space.num_attributes])
        return [self.clip.logit_scale * x @ table.T for x, table in zip(primitives_of(images), tables, strict=True)]

    def logits(self, images: ImageFeatures, text: TextFeatures) -> Logits:
        """Weighted logits of proxies and texts: pair [B, P], attribute [B, A], object [B, O]."""
        assert isinstance(images, ProxyImages)
        pair_BP = self.clip.logit_scale * images.pair @ text.pair.T
        attribute_AD, object_OD = primitives_of(text)
        if images.kept is None or images.kept[0] is not attribute_AD or images.kept[1] is not object_OD:
            weights = self.config.proxy_weight, self.config.text_weight
            both = zip(self._proxy_primitives(images), self._text_primitives(images, text), strict=True)
            attr_BA, obj_BO = (weights[0] * proxy + weights[1] * of_text for proxy, of_text in both)
            if torch.is_grad_enabled():
                return pair_BP, attr_BA, obj_BO
            images.kept = attribute_AD, object_OD, attr_BA, obj_BO
        return pair_BP, images.kept[2], images.kept[3]

    def scores(self, images: ImageFeatures, text: TextFeatures) -> Tensor:
        """Composition logit plus the sum (or the product) of primitive probabilities, [B, P]."""
        return self.rescored(self.logits(images, text)[0], images, text)

    def rescored(self, pair_BP: Tensor, images: ImageFeatures, text: TextFeatures) -> Tensor:
        """The same with other composition logits [B, P]."""
        _, attr_BA, obj_BO = self.logits(images, text.tile(0, 0))
        attr_BA, obj_BO = primitive_terms(attr_BA, obj_BO, self.config, 1)
        join = torch.add if self.config.fusion == "sum" else torch.mul
        return self.config.pair_inference_weight * pair_BP + join(attr_BA[:, text.pairs[:, 0]], obj_BO[:, text.pairs[:, 1]])

    @property
    def indexable(self) -> bool:
        """A pair's embedding is the same for all images; only the primitives' logits depend on them."""
        return True

    def retrieval_query(self, images: ImageFeatures, primitives: TextFeatures, candidates: int) -> RetrievalQuery:
        """Composition term, and the sum (or the product) of primitive probabilities."""
        _, attr_BA, obj_BO = self.logits(images, primitives)
        query_BD = self.config.pair_inference_weight * self.clip.logit_scale * images.pair
        return RetrievalQuery(query_BD, *primitive_terms(attr_BA, obj_BO, self.config, 1), combine=self.config.fusion)

    # -- training --------------------------------------------------------------------------------------------------
    def branch_pairs(self, images: ProxyImages, text: ProxyText) -> tuple[Logits, Logits]:
        """Logits of the texts and of the proxies, three each, in training mode."""
        assert text.texts is not None and text.proxies is not None
        scale = self.clip.logit_scale
        texts = (scale * images.pair @ text.texts.T, *self._text_primitives(images, text))
        proxies = (scale * images.pair @ text.proxies.T, *self._proxy_primitives(images))
        return (texts[0], texts[1], texts[2]), (proxies[0], proxies[1], proxies[2])

    def losses(self, images: ImageFeatures, text: TextFeatures, targets: Targets) -> dict[str, Tensor]:
        """Cross-entropies of six branches, and the divergence of pair probabilities; its gradient reaches both sides."""
        assert isinstance(images, ProxyImages) and isinstance(text, ProxyText)
        c, (texts, proxies) = self.config, self.branch_pairs(images, text)
        terms = branch_losses(texts, targets, c.loss_weights)
        terms |= {f"{k}_proxy": v for k, v in branch_losses(proxies, targets, c.loss_weights).items()}
        targets.note(c.proxy_weight * proxies[0] + c.text_weight * texts[0])
        log_p_BP, log_q_BP = texts[0].log_softmax(1), proxies[0].log_softmax(1)
        terms["kl"] = c.kl_weight * (log_p_BP.exp() * (log_p_BP - log_q_BP)).sum(1).mean()
        return terms
