"""Settings of Troika."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from methods.parts.branches_config import CrossAttentionConfig


@dataclass
class TroikaConfig(CrossAttentionConfig):
    """Fields of Troika.

    traction_layers: cross-attention layers, shared by the three branches.
    traction_heads: their heads; 0 for heads of width 64.
    traction_dropout: dropout after the attention, inside and after the MLP.
    traction_scale: initial weight of what a text makes of the image, one number a channel.
    patch_norm: the norm of the image's tokens: ``once`` for all branches, or ``cumulative``, once more for each branch (pair,
        attribute, object), as the public program does.
    """

    fractions: ClassVar[tuple[str, ...]] = (*CrossAttentionConfig.fractions, "traction_dropout")
    positive: ClassVar[tuple[str, ...]] = ("traction_layers",)

    about: ClassVar[str] = "Learned prompts and adapters with three branches, whose text features attend to the image."

    traction_layers: int = 2
    traction_heads: int = 0
    traction_dropout: float = 0.1
    traction_scale: float = 0.1
    patch_norm: Literal["once", "cumulative"] = "once"

    def __post_init__(self):
        super().__post_init__()
        if self.traction_heads < 0:
            raise self.refused("traction_heads", "it must be 0 or more")
