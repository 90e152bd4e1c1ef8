"""Zero-shot CLIP (Radford et al., ICML 2021): the cosine between an image and "a photo of {attribute} {object}" (or {class})."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.method import Method, MethodConfig
from methods.sides import TextSide


class ZeroShot(Method):
    """CLIP as it is. Trains nothing; costs one text encoding of P prompts, kept for all images."""

    name, title, trains, classes = "zero-shot", "zero-shot CLIP", False, True

    @classmethod
    def only_features(cls, config: MethodConfig) -> bool:
        """Always."""
        return True

    def encode_compositions(self, pairs_P2: Tensor) -> TextSide:
        """Prompts in plain words, so names of any length count whole."""
        with torch.no_grad():
            return TextSide(pairs_P2, self.clip.text.encode([self.pair_prompt(pair) for pair in pairs_P2.tolist()]))
