"""CoOp (Zhou, Yang, Loy, Liu: Learning to Prompt for Vision-Language Models, IJCV 2022) as this field's tables run it."""

from __future__ import annotations

from torch import Tensor

from czsl.clip.backbone import Clip
from czsl.compositions import CompositionSpace
from methods.coop.config import CoOpConfig
from methods.features import TextFeatures
from methods.method import Method
from methods.parts.branches import pair_texts
from methods.parts.prompts import SoftPrompts


class CoOp(Method):
    """Three learned context words [3, W], the same for all pairs, that start as "a photo of"; names and towers stay fixed.

    Costs an encoding of all training pairs per step; caches image features [N, D].
    """

    name, title, Config = "coop", "CoOp", CoOpConfig

    def __init__(self, space: CompositionSpace, clip: Clip, config: CoOpConfig):
        super().__init__(space, clip, config)
        names = self.attribute_names, self.object_names
        self.prompts = SoftPrompts(clip.text, *names, 0.0, learn_context=True, learn_names=False, branches=("pair",))

    def encode_compositions(self, pairs_P2: Tensor) -> TextFeatures:
        """Text features of index pairs, [P, D]."""
        return pair_texts(self, self.prompts, pairs_P2)
