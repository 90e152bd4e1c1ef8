"""Troika (Huang et al.: Troika: Multi-Path Cross-Modal Traction for Compositional Zero-Shot Learning, CVPR 2024).

Letters: B images, P pairs, A attributes, O objects, L visual tokens (class token first), D joint width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from czsl.clip.backbone import Clip
from czsl.compositions import CompositionSpace
from methods.method import ImageSide, Method, Targets, TextSide
from methods.parts.adapters import BlockAdapters
from methods.parts.branches import BranchesConfig, branch_losses, encode_branches, fuse
from methods.parts.heads import Disentangler
from methods.parts.prompts import SoftPrompts
from methods.parts.traction import HEAD_WIDTH, Memory, Traction, moved_cosines


@dataclass
class TroikaConfig(BranchesConfig):
    """Fields of Troika.

    traction_layers: cross-attention layers, shared by the three branches.
    traction_heads: their heads; 0 for heads of width 64.
    traction_dropout: dropout behind the attention, inside and behind the MLP.
    traction_scale: initial weight of what a text makes of the image, one number a channel.
    patch_norm: the norm of the image's tokens: ``once`` for all branches, or ``cumulative``, once more for each branch (pair,
        attribute, object), as the public program does.
    """

    fractions: ClassVar[tuple[str, ...]] = (*BranchesConfig.fractions, "traction_dropout")

    traction_layers: int = 2
    traction_heads: int = 0
    traction_dropout: float = 0.1
    traction_scale: float = 0.1
    patch_norm: Literal["once", "cumulative"] = "once"

    def __post_init__(self):
        super().__post_init__()
        if self.traction_layers < 0 or self.traction_heads < 0:
            raise self.refused("traction_layers" if self.traction_layers < 0 else "traction_heads", "it must be 0 or more")


@dataclass
class TroikaImages(ImageSide):
    """Also what texts attend to: keys and values of each layer, for the branches pair, attribute and object.

    In training these are of the worker's own images, while the features are of the whole global batch.
    """

    memory: list[Memory] = field(default_factory=list)
    # Logits of primitives, with the texts they belong to: computed once for all tiles of pairs.
    kept: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


@dataclass
class TroikaText(TextSide):
    """Also the number of candidates of all tiles together."""

    candidates: int = 0


class Troika(Method):
    """Learned prompts and adapters with three branches, whose text features attend to the image.

    A step costs an encoding of all training pairs, the image tower forth and back, and for each image a small transformer over all
    training pairs: at ViT-L/14 about 13 MFLOP a pair and layer forth. Each worker does that for its own images.
    """

    name, title, Config = "troika", "Troika", TroikaConfig
    per_primitive = ("prompts.table",)

    config: TroikaConfig

    def __init__(self, space: CompositionSpace, clip: Clip, config: TroikaConfig):
        super().__init__(space, clip, config)
        c, tower, heads = config, clip.visual, config.traction_heads or max(1, clip.dim // HEAD_WIDTH)
        if clip.dim % heads:
            raise c.refused("traction_heads", f"{heads} heads do not divide the joint width {clip.dim}")
        self.prompts = SoftPrompts(clip.text, self.attribute_names, self.object_names, c.attr_dropout, True)
        self.adapters = BlockAdapters(len(tower.blocks), tower.width, c.adapter_dim, c.adapter_dropout) if c.adapter_dim else None
        self.disentanglers = nn.ModuleDict({b: Disentangler(clip.dim, c.head_dropout) for b in ("attribute", "object")})
        self.traction = Traction(clip.dim, c.traction_layers, heads, c.traction_dropout)
        self.patch_norm = nn.LayerNorm(clip.dim)
        self.traction_scale = nn.Parameter(torch.full((clip.dim,), c.traction_scale))

    @property
    def frozen_images(self) -> bool:
        """Tokens are not kept: they are L times what the cache of features is made for."""
        return False

    # -- images ----------------------------------------------------------------------------------------------------
    def image_features(self, batch) -> Tensor:
        """Un-normalised features of all tokens, class token first: [B, L, D]."""
        return self.clip.visual(self.clip.normalise(batch["images"]), adapter=self.adapters, tokens=True)

    def image_side(self, features_BLD: Tensor) -> TroikaImages:
        """The three branches of the class token, and the keys and values of all tokens."""
        class_BD = features_BLD[:, 0]
        mlps = cast(list[Disentangler], list(self.disentanglers.values()))
        attribute_BD, object_BD = (F.normalize(mlp(class_BD), dim=-1) for mlp in mlps)
        tokens_BLD = self.comm.own_rows(features_BLD) if self.training else features_BLD
        return TroikaImages(F.normalize(class_BD, dim=-1), attribute_BD, object_BD, self._memory(tokens_BLD))

    def _memory(self, tokens_BLD: Tensor) -> list[Memory]:
        normed_BLD = self.patch_norm(tokens_BLD)
        memories = [self.traction.memory(normed_BLD)]
        for _ in range(2):
            if self.config.patch_norm == "once":
                memories.append(memories[0])
                continue
            normed_BLD = self.patch_norm(normed_BLD)
            memories.append(self.traction.memory(normed_BLD))
        return memories

    # -- text and scores -------------------------------------------------------------------------------------------
    def encode_compositions(self, pairs_P2: Tensor) -> TroikaText:
        """Text side of index pairs before it meets an image: [P, D], [A, D], [O, D]."""
        pairs_P2 = pairs_P2.to(self.clip.device)
        return TroikaText(pairs_P2, *encode_branches(self, self.prompts, pairs_P2), candidates=len(pairs_P2))

    def logits(self, images: ImageSide, text: TextSide) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled cosines with the texts that each image moved; in training of the whole global batch, each worker its share."""
        assert isinstance(images, TroikaImages)
        assert images.attribute is not None and images.object is not None
        assert text.attribute is not None and text.object is not None
        if self.training:
            self.comm.seed_own()
        pair_BP = self._branch(images.pair, text.pair, images.memory[0])
        kept = images.kept
        if kept is not None and kept[0] is text.attribute and kept[1] is text.object:
            return pair_BP, kept[2], kept[3]
        attr_BA = self._branch(images.attribute, text.attribute, images.memory[1])
        obj_BO = self._branch(images.object, text.object, images.memory[2])
        if not torch.is_grad_enabled():
            images.kept = (text.attribute, text.object, attr_BA, obj_BO)
        return pair_BP, attr_BA, obj_BO

    def _branch(self, image_BD: Tensor, text_nD: Tensor, memory: Memory) -> Tensor:
        scale_D = self.traction_scale
        if self.training:
            image_BD, text_nD = self.comm.own_rows(image_BD), self.comm.common(text_nD)

        def move(text_mD: Tensor) -> Tensor:
            return text_mD + scale_D * self.traction(text_mD, memory)

        cosines_bn = moved_cosines(image_BD, text_nD, move)
        return self.clip.logit_scale * (self.comm.gather(cosines_bn) if self.training else cosines_bn)

    def scores(self, images: ImageSide, text: TextSide) -> Tensor:
        """Composition logit plus product of primitive probabilities, [B, P]."""
        assert isinstance(text, TroikaText)
        return fuse(*self.logits(images, text), text.pairs, self.config, text.candidates)

    # -- training --------------------------------------------------------------------------------------------------
    def losses(self, images: ImageSide, text: TextSide, targets: Targets) -> dict[str, Tensor]:
        """Cross-entropies of the three branches."""
        return branch_losses(self.logits(images, text), targets, self.config.loss_weights)
