"""Zero-shot CLIP (Radford et al., ICML 2021): the cosine between an image and "a photo of {attribute} {object}" (or {class})."""

from __future__ import annotations

from torch import Tensor

from methods.features import TextFeatures
from methods.method import Method
from methods.zero_shot.config import ZeroShotConfig


class ZeroShot(Method):
    """CLIP as it is. Trains nothing; costs one text encoding of P prompts, kept for all images."""

    name, title, Config = "zero-shot", "zero-shot CLIP", ZeroShotConfig

    def encode_compositions(self, pairs_P2: Tensor) -> TextFeatures:
        """Prompts in plain words, so names of any length count whole."""
        return TextFeatures(pairs_P2, self.encode_names(pairs_P2))
