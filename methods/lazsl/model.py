"""LaZSL: local alignment of image regions and descriptions by optimal transport, on a frozen CLIP (ICCV 2025).

score = logit_scale * [ (1 - theta) * <whole image, mean phrase> + theta * sum(T s) ], s [N, R] the cosines of the candidate's phrases
and the image's regions, T the entropic transport plan between them (methods/lazsl/solver.py). README.md says where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from czsl.compositions import index_pairs
from methods.explanation import Question
from methods.lazsl.config import LaZSLConfig
from methods.lazsl.explain import Explanation, explain_image
from methods.lazsl.phrases import make_bank
from methods.lazsl.regions import RegionSide, prepare_views, region_side, regions_key
from methods.lazsl.scoring import PhraseSide, mixed_scores
from methods.method import ImageSide, Method, TextSide
from methods.parts.views import encode_views


class LaZSL(Method):
    """Regions of an image matched with described attributes and objects by optimal transport. Trains nothing.

    Costs 1 + R passes of the image tower an image; its features (R + 1 of them, 4 bytes a number) are kept in the cache folder, under
    the settings of the regions. Phrases are encoded once for all images.
    """

    name, title, trains = "lazsl", "LaZSL", False
    Config = LaZSLConfig
    config: LaZSLConfig

    # -- images ----------------------------------------------------------------------------------------------------
    @property
    def prepare_key(self) -> str:
        """The settings that decide where regions are."""
        return regions_key(self.config)

    def prepare(self, image: Image.Image, image_id: str) -> dict[str, Tensor]:
        """The whole image through CLIP's pipeline [3, S, S], and its ``regions``, cut out of the original [R, 3, S, S]."""
        return prepare_views(image, image_id, self.config, self.clip.image_size)

    def image_features(self, batch: Mapping[str, Any]) -> Tensor:
        """Un-normalised features of the image and its regions, [B, (1 + R) * D]; [B, D] where the batch has no regions."""
        if "features" in batch:
            return super().image_features(batch)
        return encode_views(self.clip, batch["images"], batch.get("regions"))

    def image_side(self, features_BD: Tensor) -> RegionSide:
        """Unit features, and the selection of regions."""
        return region_side(features_BD, self.clip.dim, self.config)

    # -- text ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_compositions(self, pairs_P2: Tensor) -> PhraseSide:
        """Phrases of all attributes and objects; ``pair`` is what the whole image is compared with."""
        space, config = self.space, self.config
        banks = (
            make_bank(self.clip, "attributes", space.attributes, self.attribute_names, config),
            make_bank(self.clip, "objects", space.objects, self.object_names, config),
        )
        share = config.attribute_share
        if config.global_term == "prompt":
            whole_PD = self.clip.text.encode([self.pair_prompt(pair) for pair in pairs_P2.tolist()])
        else:
            whole_PD = share * banks[0].mean[pairs_P2[:, 0]] + (1 - share) * banks[1].mean[pairs_P2[:, 1]]
        return PhraseSide(pairs_P2, whole_PD, banks=banks, shares=(share, 1 - share))

    def pair_prompt(self, pair: Sequence[int]) -> str:
        """ "a photo of wet dog"."""
        return f"a photo of {self.attribute_names[pair[0]]} {self.object_names[pair[1]]}"

    # -- scores ----------------------------------------------------------------------------------------------------
    def scores(self, images: ImageSide, text: TextSide) -> Tensor:
        """Scores [B, P]; ``theta=0`` gives the description baseline."""
        assert isinstance(images, RegionSide)
        assert isinstance(text, PhraseSide)
        return self.clip.logit_scale * mixed_scores(images, text, self.config)

    def logits(self, images: ImageSide, text: TextSide) -> tuple[Tensor, None, None]:
        """The scores; there are no branches."""
        return self.scores(images, text), None, None

    # -- explanation -----------------------------------------------------------------------------------------------
    def explain(self, image: Image.Image, pair: Sequence[str], image_id: str = "0", boxes: Any = None) -> Explanation:
        """Which region supports which phrase of a pair of names; see :func:`methods.lazsl.explain.explain_image`."""
        place = index_pairs([pair], self.space.attributes, self.space.objects)
        with torch.inference_mode():
            text = self.encode_compositions(torch.from_numpy(place).to(self.clip.device))
        return self._explain(image, text, image_id, boxes)

    def explain_candidate(self, question: Question, place: int) -> Explanation:
        """Which region supports which phrase, and the shares that add up to the score."""
        text = question.text
        assert isinstance(text, PhraseSide)
        return self._explain(question.image, text.tile(place, place + 1), question.image_id)

    def _explain(self, image: Image.Image, text: PhraseSide, image_id: str, boxes: Any = None) -> Explanation:
        pair = text.pairs[0].tolist()
        prompt = self.pair_prompt(pair) if self.config.global_term == "prompt" else None
        return explain_image(self.clip, self.config, image, text, self.space.pair_names(pair), image_id, boxes, prompt)
