"""DFSP (Lu, Guo, Liu, Guo: Decomposed Soft Prompt Guided Fusion Enhancing for Compositional Zero-Shot Learning, CVPR 2023), t2i.

Letters: B images, b images of this worker, P pairs, A attributes, O objects, n their sum, L visual tokens (class token first), V visual
width, T text tokens, W text width, D joint width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from czsl.clip.backbone import Clip
from czsl.clip.lean import unit
from czsl.clip.prompt_tree import PromptTree
from czsl.compositions import CompositionSpace
from methods.dfsp.config import DFSPConfig
from methods.features import ImageFeatures, Targets, TextFeatures
from methods.method import TEXT_CHUNK, Method
from methods.parts.blocks import AttentionBlock
from methods.parts.cross_attention import HEAD_WIDTH
from methods.parts.prompts import SoftPrompts

END = 6  # place of the end token in "<start> a photo of ATTRIBUTE OBJECT <end>"


@dataclass
class PlainImages(ImageFeatures):
    """Also ``plain`` [B, D]: CLIP's own unit features."""

    plain: Tensor | None = None


@dataclass
class PlainText(TextFeatures):
    """Also ``plain`` [P, D]: unit features of the prompts before fusion; None outside training."""

    plain: Tensor | None = None


def _blocks(width: int, count: int, dropout: float) -> nn.ModuleList:
    heads = max(1, width // HEAD_WIDTH)
    return nn.ModuleList(AttentionBlock(width, heads, cross=False, dropout=dropout) for _ in range(count))


def _first(blocks: nn.ModuleList, x_BTW: Tensor, place: int) -> Tensor:
    """One token [B, W] after self-attention blocks; the last block computes no other."""
    for block in blocks[:-1]:
        x_BTW = block(x_BTW, x_BTW)
    return blocks[-1](x_BTW[:, place : place + 1], x_BTW)[:, 0]


class DFSP(Method):
    """Learned prompts whose decomposed texts guide the image: its tokens attend to one guide [L, V], the same for all images.

    The guide is made of the mean texts of each attribute and object over the training pairs. A step costs an encoding of these pairs, the
    image tower forth, and one and a half transformer blocks an image. Scores are inner products, so an index can hold the pairs. It
    keeps the guide while it predicts.
    """

    name, title, Config = "dfsp", "DFSP", DFSPConfig
    per_primitive = ("prompts.table", "mixing")

    config: DFSPConfig
    averages: Tensor
    padded: Tensor
    guide: Tensor | None

    def __init__(self, space: CompositionSpace, clip: Clip, config: DFSPConfig):
        super().__init__(space, clip, config)
        c, tower, W = config, clip.visual, clip.text.width
        L, V = tower.vit.positional_embedding.shape
        n, T = space.num_attributes + space.num_objects, END + 1 + (c.padding == "reference")
        self.prompts = SoftPrompts(
            clip.text, self.attribute_names, self.object_names, c.attr_dropout, learn_context=True, branches=("pair",)
        )
        # From the tokens of mean texts to the guide: first their width, then how much of each token goes to each place.
        self.widen = nn.Linear(W, V)
        bound = 1 / math.sqrt(n * T)
        self.mixing = nn.Parameter(torch.empty(n, T, L).uniform_(-bound, bound))
        self.mixing_bias = nn.Parameter(torch.empty(L).uniform_(-bound, bound))
        self.guide_dropout = nn.Dropout(c.fusion_dropout)
        self.cross = AttentionBlock(V, max(1, V // HEAD_WIDTH))
        self.image_blocks, self.text_blocks = (_blocks(w, c.fusion_layers, c.fusion_dropout) for w in (V, W))
        # Rows [n, P] that average over the training pairs of an attribute or object; zero for one without any.
        pairs_P2 = torch.from_numpy(space.train_pairs.copy())
        rows = F.one_hot(pairs_P2[:, 0], space.num_attributes), F.one_hot(pairs_P2[:, 1], space.num_objects)
        counts_nP = torch.cat(rows, dim=1).T.to(self.mixing.dtype)
        self.register_buffer("averages", counts_nP / counts_nP.sum(1, keepdim=True).clamp_min(1), persistent=False)
        self.register_buffer("padded", clip.text.embed_tokens(torch.tensor(0)).clone(), persistent=False)
        # Kept while nothing is trained; with `carried` that of the label space in which the method was trained.
        self.register_buffer("guide", None, persistent=False)
        self.carried = False
        self._of_step: Tensor | None = None
        self.register_load_state_dict_post_hook(lambda *_: self._forget())

    # -- the guide -------------------------------------------------------------------------------------------------
    def _forget(self) -> None:
        if not self.carried:
            self.guide = None

    def train(self, mode: bool = True) -> Self:
        """Training changes what the guide is made of."""
        if mode or mode != self.training:
            self._forget()
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self._forget()
        return super()._apply(fn, recurse)

    def _guide_of(self, tokens_PTW: Tensor) -> Tensor:
        """The guide [L, V] of the tokens of all training pairs."""
        means_nTW = (self.averages.to(tokens_PTW.dtype) @ tokens_PTW.flatten(1)).unflatten(1, tokens_PTW.shape[1:])
        wide_nTV = self.widen(means_nTW)
        guide_LV = torch.einsum("ntl,ntv->lv", self.mixing, wide_nTV.to(self.mixing.dtype)) + self.mixing_bias[:, None]
        return self.guide_dropout(guide_LV)

    def guidance(self) -> Tensor:
        """The guide [L, V] of the words as they stand."""
        if self.guide is not None:
            return self.guide
        pairs_P2 = self.train_pairs
        if self.training:
            return self._guide_of(self._tokens(pairs_P2))
        with torch.inference_mode(False), torch.no_grad():
            self.guide = self._guide_of(self._tokens(pairs_P2))
        return self.guide

    # -- images ----------------------------------------------------------------------------------------------------
    def image_features(self, batch: Mapping[str, Any]) -> Tensor:
        """All tokens [B, L, V] after the tower's last block."""
        with torch.no_grad():
            return self.clip.visual.unprojected(self.clip.normalise(batch["images"])).to(self.clip.mean.dtype)

    def embed_images(self, features_BD: Tensor) -> PlainImages:
        """CLIP's own feature and the fused one, weighted; in training each worker fuses its own images."""
        plain_BD = self._to_joint(features_BD[:, 0])
        guide_LV = self._of_step if self.training and self._of_step is not None else self.guidance()
        self._of_step, own_bLV = None, features_BD
        if self.training:
            self.comm.seed_own()
            own_bLV, guide_LV = self.comm.own_rows(features_BD), self.comm.common(guide_LV)

        def fused(part: slice) -> Tensor:
            x_bLV = self.cross(own_bLV[part], guide_LV.expand(len(own_bLV[part]), -1, -1))
            return self._to_joint(_first(self.image_blocks, x_bLV, 0))

        fused_bD = self.comm.in_parts(fused, len(own_bLV), self.clip.device)
        fused_BD = self.comm.gather(fused_bD, len(features_BD)) if self.training else fused_bD
        return PlainImages(self._mixed(plain_BD, fused_BD), plain=unit(plain_BD))

    def _to_joint(self, x_BV: Tensor) -> Tensor:
        return self.clip.visual.project(x_BV).to(self.clip.mean.dtype)

    def _mixed(self, plain: Tensor, fused: Tensor) -> Tensor:
        return unit(self.config.residual * plain + (1 - self.config.residual) * fused)

    # -- text ------------------------------------------------------------------------------------------------------
    def _tokens(self, pairs_P2: Tensor) -> Tensor:
        """Tokens [P, T, W] of the pairs' prompts after the text tower's last block."""
        tree = self.prompts.pairs(self.prompts.words(), pairs_P2)
        if self.config.padding == "reference":
            last_P1 = torch.full_like(tree.ends[:, :1], len(tree.tokens))
            tree = PromptTree(
                tree.trunk,
                tree.branches,
                torch.cat([tree.tokens, self.padded[None]]),
                torch.cat([tree.ends, last_P1], dim=1),
                tree.parents,
            )
        return self.encode_texts(lambda rows: self.clip.text.tree_tokens(tree.part(rows)), len(tree))

    def _texts(self, tokens_PTW: Tensor) -> tuple[Tensor, Tensor]:
        """Text features with fusion and before it, unit vectors [P, D] each."""
        text, dtype = self.clip.text, self.clip.mean.dtype
        plain_PD = text.project(tokens_PTW[:, END]).to(dtype)
        fused_PD = text.project(_first(self.text_blocks, tokens_PTW, END)).to(dtype)
        return self._mixed(plain_PD, fused_PD), unit(plain_PD)

    def encode_compositions(self, pairs_P2: Tensor) -> PlainText:
        """Text features of index pairs; in training these are the training pairs, and the guide follows from the same words."""
        pairs_P2 = pairs_P2.to(self.clip.device)
        if self.training:
            tokens_PTW = self._tokens(pairs_P2)
            self._of_step = self._guide_of(tokens_PTW)  # for the images of the same step
            pair_PD, plain_PD = self._texts(tokens_PTW)
            return PlainText(pairs_P2, pair_PD, plain=plain_PD)
        starts = range(0, max(len(pairs_P2), 1), TEXT_CHUNK)
        return PlainText(pairs_P2, torch.cat([self._texts(self._tokens(pairs_P2[s : s + TEXT_CHUNK]))[0] for s in starts]))

    # -- training --------------------------------------------------------------------------------------------------
    def losses(self, images: ImageFeatures, text: TextFeatures, targets: Targets) -> dict[str, Tensor]:
        """Cross-entropies of pairs with fusion and before it, and of attributes and objects, whose logits are means over their pairs."""
        assert isinstance(images, PlainImages) and isinstance(text, PlainText)
        assert images.plain is not None and text.plain is not None
        c, pair_BP = self.config, self.logits(images, text)[0]
        plain_BP = self.clip.logit_scale * images.plain @ text.plain.T
        targets.note(pair_BP)
        averages_nP = self.averages.to(plain_BP.dtype)
        absent_n = averages_nP.sum(1) == 0  # of no training pair: never the answer
        means_Bn = (plain_BP @ averages_nP.T).masked_fill(absent_n, torch.finfo(plain_BP.dtype).min / 4)
        attr_BA, obj_BO = means_Bn.tensor_split([self.space.num_attributes], dim=1)
        return {
            "pair": F.cross_entropy(pair_BP, targets.pair),
            "prompt": c.prompt_loss_weight * F.cross_entropy(plain_BP, targets.pair),
            "attr": c.primitive_loss_weight * F.cross_entropy(attr_BA, targets.attribute),
            "obj": c.primitive_loss_weight * F.cross_entropy(obj_BO, targets.object),
        }

    # -- other label spaces ----------------------------------------------------------------------------------------
    def for_space(self, space: CompositionSpace) -> Self:
        """The same on other labels; images keep the guide of the labels that were trained."""
        was_training = self.training
        guide_LV = self.eval().guidance().clone()
        self.train(was_training)
        other = super().for_space(space)
        other.guide, other.carried = guide_LV, True
        return other
