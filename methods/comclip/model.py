"""ComCLIP on attributes and objects (NAACL 2024, adapted): an image plus what its attribute and its object see of it.

score = logit_scale * cos(g + w_a v_a + w_o v_o, t_ao), v_p the part of the image that fits word p, w_p how well it fits. README.md
gives the sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from czsl.clip.towers import Towers
from czsl.data.files.regions import RegionTable
from methods.comclip.config import ComCLIPConfig
from methods.comclip.explain import explain_pair
from methods.comclip.pairs import ComCLIPText, pair_parts
from methods.comclip.regions import ComCLIPImages, encode_regions, prepare_regions, region_features, regions_key
from methods.explanation import Explanation, ScoredImage
from methods.features import ImageFeatures, TextFeatures
from methods.method import Method


class ComCLIP(Method):
    """Sub-images of attribute and object, weighted by their fit, added to the image. Trains nothing.

    Costs 35 passes of the image tower an image with ``regions=grid``, one with ``patch`` or ``superpixel``; its features are kept in
    the cache folder. Prompts and bare words are encoded once for all images.
    """

    name, title, Config = "comclip", "ComCLIP", ComCLIPConfig
    config: ComCLIPConfig

    # -- images ----------------------------------------------------------------------------------------------------
    @cached_property
    def table(self) -> RegionTable | None:
        """The regions of the file, if one is given."""
        return self.config.table if self.config.from_file else None

    @property
    def cache_key(self) -> str:
        """Return the settings that determine regions."""
        return regions_key(self.config)

    def prepare(self, image: Image.Image, image_id: str) -> dict[str, Tensor]:
        """The whole image through CLIP's pipeline [3, S, S], and its sub-images; see :func:`methods.comclip.regions.prepare_regions`."""
        return prepare_regions(image, image_id, self.config, self.clip, self.table)

    def image_features(self, batch: Mapping[str, Any]) -> Tensor:
        """Un-normalised features of images and regions, [B, (1 + L) * D]; [B, D] where the batch has none."""
        return super().image_features(batch) if "features" in batch else encode_regions(self.clip, batch, self.config)

    def embed_images(self, features_BD: Tensor) -> ComCLIPImages:
        """The regions that all labels share."""
        return region_features(features_BD, self.clip.dim, self.config)

    # -- text ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_compositions(self, pairs_P2: Tensor) -> ComCLIPText:
        """Prompts of the pairs, and single words."""
        named = [(self.attribute_names[a], self.object_names[o]) for a, o in pairs_P2.tolist()]
        words = word_features(self.clip, self._phrases([*self.attribute_names, *self.object_names]), self.config.mode == "raw")
        attribute, obj = words.split([self.space.num_attributes, self.space.num_objects])
        both = None
        if self.config.relation == "union":
            both = word_features(self.clip, self._phrases([f"{a} {o}" for a, o in named]), self.config.mode == "raw")
        pair = self.clip.text.encode([f"a photo of {a} {o}" for a, o in named])
        return ComCLIPText(pairs_P2, pair, attribute, obj, both=both)

    def _phrases(self, names: Sequence[str]) -> list[str]:
        return [self.config.phrase.replace("{}", name) for name in names]

    # -- scores ----------------------------------------------------------------------------------------------------
    def scores(self, images: ImageFeatures, text: TextFeatures) -> Tensor:
        """Scores [B, P], exact for every pair."""
        assert isinstance(images, ComCLIPImages)
        assert isinstance(text, ComCLIPText)
        return self.clip.biased(self.clip.logit_scale * pair_parts(images, text, self.config).score)

    def logits(self, images: ImageFeatures, text: TextFeatures) -> tuple[Tensor, None, None]:
        """The scores; the method has no branches."""
        return self.scores(images, text), None, None

    # -- explanation -----------------------------------------------------------------------------------------------
    def explain_candidate(self, scored: ScoredImage, index: int) -> Explanation:
        """Return the regions of attribute and object, and their weights."""
        return explain_pair(scored, index, self.space, self.config, self.table, self.clip)


def word_features(clip: Towers, words: Sequence[str], raw: bool, chunk: int = 512) -> Tensor:
    """Features [X, D] of words, of length 1 or, ``raw``, as the tower gives them."""
    return clip.text.encode(words, chunk, unit=not raw)


def caption_features(clip: Towers, captions: Sequence[str]) -> Tensor:
    """Features [C, D] of captions, of length 1."""
    return normalize(word_features(clip, captions, raw=True), dim=-1)
