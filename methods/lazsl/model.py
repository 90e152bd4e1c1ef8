"""LaZSL: local alignment of image regions and descriptions by optimal transport, on a frozen CLIP (ICCV 2025).

score = logit_scale * [ (1 - theta) * <whole image, mean phrase> + theta * sum(T s) ], s [N, R] the cosines of the candidate's phrases
and the image's regions, T the entropic transport plan between them (methods/lazsl/solver.py). README.md gives its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from czsl.compositions import index_pairs
from methods.explanation import ScoredImage
from methods.features import ImageFeatures, TextFeatures
from methods.lazsl.config import LaZSLConfig
from methods.lazsl.explain import TransportExplanation, explain_image
from methods.lazsl.phrases import make_bank
from methods.lazsl.regions import RegionFeatures, prepare_views, region_features, regions_key
from methods.lazsl.scoring import PhraseFeatures, mixed_scores
from methods.method import Method
from methods.parts.views import encode_views


class LaZSL(Method):
    """Regions of an image matched with described attributes and objects, or plain classes, by optimal transport. Trains nothing.

    Costs 1 + R passes of the image tower an image; its features (R + 1 of them, 4 bytes a number) are kept in the cache folder, under
    the settings of the regions. Phrases are encoded once for all images.
    """

    name, title, Config = "lazsl", "LaZSL", LaZSLConfig
    config: LaZSLConfig

    # -- images ----------------------------------------------------------------------------------------------------
    @property
    def cache_key(self) -> str:
        """The settings that decide where regions are."""
        return regions_key(self.config)

    def prepare(self, image: Image.Image, image_id: str) -> dict[str, Tensor]:
        """The whole image through CLIP's pipeline [3, S, S], and its ``regions``, cut out of the original [R, 3, S, S]."""
        return prepare_views(image, image_id, self.config, self.clip.pixels)

    def image_features(self, batch: Mapping[str, Any]) -> Tensor:
        """Un-normalised features of the image and its regions, [B, (1 + R) * D]; [B, D] where the batch has no regions."""
        if "features" in batch:
            return super().image_features(batch)
        return encode_views(self.clip, batch["images"], batch.get("regions"), batch.get("present"))

    def embed_images(self, features_BD: Tensor) -> RegionFeatures:
        """Unit features, and the selection of regions."""
        return region_features(features_BD, self.clip.dim, self.config)

    # -- text ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_compositions(self, pairs_P2: Tensor) -> PhraseFeatures:
        """Phrases of all attributes and objects, or classes; ``pair`` is what the whole image is compared with."""
        config, share = self.config, self.config.attribute_share
        words = [self.object_names] if len(self.space.vocabulary) == 1 else [self.attribute_names, self.object_names]
        banks = tuple(
            make_bank(self.clip, kind, labels, names, config)
            for (kind, labels), names in zip(self.space.vocabulary.items(), words, strict=True)
        )
        shares = (share, 1 - share) if len(banks) == 2 else (1.0,)
        if config.global_term == "prompt":
            whole_PD = self.encode_names(pairs_P2)
        else:
            labels = pairs_P2[:, -len(banks) :].T
            parts = [w * bank.mean[label_P] for w, bank, label_P in zip(shares, banks, labels, strict=True)]
            whole_PD = torch.stack(parts).sum(0)
        return PhraseFeatures(pairs_P2, whole_PD, banks=banks, shares=shares)

    # -- scores ----------------------------------------------------------------------------------------------------
    def scores(self, images: ImageFeatures, text: TextFeatures) -> Tensor:
        """Scores [B, P]; ``theta=0`` gives the description baseline."""
        assert isinstance(images, RegionFeatures)
        assert isinstance(text, PhraseFeatures)
        return self.clip.biased(self.clip.logit_scale * mixed_scores(images, text, self.config))

    def logits(self, images: ImageFeatures, text: TextFeatures) -> tuple[Tensor, None, None]:
        """The scores; there are no branches."""
        return self.scores(images, text), None, None

    # -- explanation -----------------------------------------------------------------------------------------------
    def explain(self, image: Image.Image, pair: Sequence[str], image_id: str = "0", boxes: Any = None) -> TransportExplanation:
        """Return which region supports which phrase of a pair of names (of a class: ``("", "dog")``); see
        :func:`methods.lazsl.explain.explain_image`.
        """
        pair_12 = index_pairs([pair], self.space.attributes, self.space.objects)
        with torch.inference_mode():
            text = self.encode_compositions(torch.from_numpy(pair_12).to(self.clip.device))
        return self._explain(image, text, image_id, boxes)

    def explain_candidate(self, scored: ScoredImage, index: int) -> TransportExplanation:
        """Return which region supports which phrase, and the shares that add up to the score."""
        text = scored.text
        assert isinstance(text, PhraseFeatures)
        return self._explain(scored.image, text.tile(index, index + 1), scored.image_id)

    def _explain(self, image: Image.Image, text: PhraseFeatures, image_id: str, boxes: Any = None) -> TransportExplanation:
        pair = text.pairs[0].tolist()
        prompt = self.pair_prompt(pair) if self.config.global_term == "prompt" else None
        return explain_image(self.clip, self.config, image, text, tuple(self.space.label(pair).values()), image_id, boxes, prompt)
