"""Methods of three branches whose texts attend to the image: Troika (CVPR 2024) and what was built on it.

Letters: B images, P pairs, A attributes, O objects, L visual tokens, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from czsl.clip.backbone import Clip
from czsl.clip.lean import unit
from czsl.compositions import CompositionSpace
from methods.features import ImageFeatures, Targets, TextFeatures
from methods.method import Method
from methods.parts.adapters import image_adapters
from methods.parts.branches import branch_losses, encode_branches, fuse
from methods.parts.branches_config import CrossAttentionConfig
from methods.parts.cross_attention import HEAD_WIDTH
from methods.parts.heads import Disentangler
from methods.parts.prompts import SoftPrompts


@dataclass
class AttendedImages(ImageFeatures):
    """Also what texts attend to, as the method keeps it (keys and values).

    In training that is of the worker's own images, while the features are of the whole global batch.
    """

    memory: Any = None
    # Logits of primitives, with the texts they belong to: computed once for all tiles of pairs.
    kept: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


@dataclass
class CountedText(TextFeatures):
    """Also the number of candidates of all tiles together."""

    candidates: int = 0


def candidate_texts(text: TextFeatures, index: int) -> Tensor:
    """Texts of a candidate, its attribute and its object before they meet an image, [3, D]."""
    assert text.attribute is not None and text.object is not None
    attribute, obj = text.pairs[index].tolist()
    return torch.stack([text.pair[index], text.attribute[attribute], text.object[obj]])


class CrossAttentionMethod(Method):
    """Learned prompts and adapters with three branches, whose text features attend to the image.

    A subclass defines what texts attend to (``image_features``, ``memory``) and what they become (``cosines``). In training each worker
    attends for its own images.
    """

    per_primitive = ("prompts.table",)

    config: CrossAttentionConfig

    def __init__(self, space: CompositionSpace, clip: Clip, config: CrossAttentionConfig):
        super().__init__(space, clip, config)
        c = config
        self.prompts = SoftPrompts(clip.text, self.attribute_names, self.object_names, c.attr_dropout, True)
        self.adapters = image_adapters(clip, config)
        self.disentanglers = nn.ModuleDict({b: Disentangler(clip.dim, c.head_dropout) for b in ("attribute", "object")})

    def attention_heads(self, name: str) -> int:
        """The number of heads in a field, where 0 stands for heads of width 64; UsageError if they do not divide the width."""
        heads = getattr(self.config, name) or max(1, self.clip.dim // HEAD_WIDTH)
        if self.clip.dim % heads:
            raise self.config.refused(name, f"{heads} heads do not divide the joint width {self.clip.dim}")
        return heads

    # -- what a subclass writes ------------------------------------------------------------------------------------
    def memory(self, features: Tensor) -> Any:
        """Return the attended tokens from ``image_features`` [b, L, D] whose first token is the class token."""
        raise NotImplementedError

    def cosines(self, images: Sequence[Tensor], texts: Sequence[Tensor], memory: Any) -> list[Tensor]:
        """Cosines [b, n] of unit image features [b, D] with the texts [n, D] that each image moved, a branch at a place.

        The branches are pair, attribute and object, or only the pair branch.
        """
        raise NotImplementedError

    # -- images, text and scores -----------------------------------------------------------------------------------
    def embed_images(self, features_BD: Tensor) -> AttendedImages:
        """The three branches of the class token, and what texts attend to."""
        class_BD = features_BD[:, 0]
        mlps = cast(list[Disentangler], list(self.disentanglers.values()))
        # In the precision of the features, whatever autocast made of the MLPs: cosines need their digits.
        attribute_BD, object_BD = (unit(mlp(class_BD).to(class_BD.dtype)) for mlp in mlps)
        own = self.comm.own_rows(features_BD) if self.training else features_BD
        return AttendedImages(unit(class_BD), attribute_BD, object_BD, self.memory(own))

    def encode_compositions(self, pairs_P2: Tensor) -> CountedText:
        """Text features of index pairs before they meet an image: [P, D], [A, D], [O, D]."""
        pairs_P2 = pairs_P2.to(self.clip.device)
        return CountedText(pairs_P2, *encode_branches(self, self.prompts, pairs_P2), candidates=len(pairs_P2))

    def logits(self, images: ImageFeatures, text: TextFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled cosines with the texts that each image moved; in training of the whole global batch, each worker its share."""
        assert isinstance(images, AttendedImages)
        assert images.attribute is not None and images.object is not None
        assert text.attribute is not None and text.object is not None
        kept = images.kept
        known = kept is not None and kept[0] is text.attribute and kept[1] is text.object
        branches = slice(1 if known else 3)
        features = [images.pair, images.attribute, images.object][branches]
        texts = [text.pair, text.attribute, text.object][branches]
        if self.training:
            self.comm.seed_own()
            features, texts = [self.comm.own_rows(x) for x in features], [self.comm.common(t) for t in texts]

        def attend(part: slice) -> Tensor:
            memory = tree_map(lambda x: x[part], images.memory)
            return torch.cat(self.cosines([x[part] for x in features], texts, memory), dim=1)

        if self.training and self.comm.parts > 1:
            columns = [len(t) for t in texts]
            cosines = list(self.comm.in_parts(attend, len(features[0]), self.clip.device).split(columns, dim=1))
        else:
            cosines = self.cosines(features, texts, images.memory)
        if self.training:
            cosines = [self.comm.gather(x, len(images.pair)) for x in cosines]
        out = [self.clip.logit_scale * x for x in cosines]
        if known and kept is not None:
            return out[0], kept[2], kept[3]
        if not torch.is_grad_enabled():
            images.kept = (text.attribute, text.object, out[1], out[2])
        return out[0], out[1], out[2]

    def scores(self, images: ImageFeatures, text: TextFeatures) -> Tensor:
        """Composition logit plus product of primitive probabilities, [B, P]."""
        assert isinstance(text, CountedText)
        return fuse(*self.logits(images, text), text.pairs, self.config, 1 if self.validating else text.candidates)

    # -- training --------------------------------------------------------------------------------------------------
    def begin_epoch(self, epoch: int) -> None:
        """Training mode; with ``train_mode=reference`` what the public loops leave of it after their first validation."""
        super().begin_epoch(epoch)
        if epoch and self.config.train_mode == "reference":
            for part in self.children():  # not the method itself: workers still share their work
                part.eval()

    def losses(self, images: ImageFeatures, text: TextFeatures, targets: Targets) -> dict[str, Tensor]:
        """Cross-entropies of the three branches."""
        return branch_losses(self.logits(images, text), targets, self.config.loss_weights)
