"""Troika (Huang et al.: Troika: Multi-Path Cross-Modal Traction for Compositional Zero-Shot Learning, CVPR 2024).

Letters: B images, P pairs, A attributes, O objects, L visual tokens (class token first), D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from czsl.clip.backbone import Clip
from czsl.compositions import CompositionSpace
from methods.explanation import Explanation, Part, ScoredImage, attention_map, branch_figures
from methods.parts.cross_attention import CrossAttentionLayers, Memory, moved_cosines
from methods.parts.cross_attention_method import AttendedImages, CrossAttentionMethod, candidate_texts
from methods.troika.config import TroikaConfig


class Troika(CrossAttentionMethod):
    """Learned prompts and adapters with three branches, whose text features attend to the image.

    A step costs an encoding of all training pairs, the image tower forth and back, and for each image a small transformer over all
    training pairs: at ViT-L/14 about 13 MFLOP a pair and layer forth. Each worker does that for its own images.
    """

    name, title, Config = "troika", "Troika", TroikaConfig

    config: TroikaConfig

    def __init__(self, space: CompositionSpace, clip: Clip, config: TroikaConfig):
        super().__init__(space, clip, config)
        c, heads = config, self.attention_heads("traction_heads")
        self.traction = CrossAttentionLayers(clip.dim, c.traction_layers, heads, c.traction_dropout)
        self.patch_norm = nn.LayerNorm(clip.dim)
        self.traction_scale = nn.Parameter(torch.full((clip.dim,), c.traction_scale))

    def image_features(self, batch) -> Tensor:
        """Un-normalised features of all tokens, class token first: [B, L, D]."""
        return self.clip.visual(self.clip.normalise(batch["images"]), adapters=self.adapters, tokens=True)

    def memory(self, features: Tensor) -> list[Memory]:
        """Keys and values of each layer, for the branches pair, attribute and object."""
        normed_BLD = self.patch_norm(features)
        memories = [self.traction.memory(normed_BLD)]
        for _ in range(2):
            if self.config.patch_norm == "once":
                memories.append(memories[0])
                continue
            normed_BLD = self.patch_norm(normed_BLD)
            memories.append(self.traction.memory(normed_BLD))
        return memories

    def cosines(self, images: Sequence[Tensor], texts: Sequence[Tensor], memory: list[Memory]) -> list[Tensor]:
        """Cosines with the moved texts, one branch after the other."""
        return [self._branch(*branch) for branch in zip(images, texts, memory, strict=False)]

    def _branch(self, image_BD: Tensor, text_nD: Tensor, memory: Memory) -> Tensor:
        def move(text_mD: Tensor) -> Tensor:
            return text_mD + self.traction_scale * self.traction(text_mD, memory)

        return moved_cosines(image_BD, text_nD, move)

    def explain_candidate(self, scored: ScoredImage, index: int) -> Explanation:
        """Attention of the pair and its primitives: attention over the image, mean over layers and heads."""
        assert isinstance(scored.features, AttendedImages)
        names = self.space.pair_names(scored.text.pairs[index].tolist())
        labels, maps = (" ".join(names), *names), list[Part]()
        texts_3D = candidate_texts(scored.text, index)
        for label, text_D, memory in zip(labels, texts_3D, scored.features.memory, strict=True):
            weights_L = self.traction.attention(text_D[None], memory)[0, 0]
            maps.append(attention_map("What the words look at", label, weights_L, scored.image.size))
        return Explanation(names, [*maps, branch_figures(scored, index, labels)])
