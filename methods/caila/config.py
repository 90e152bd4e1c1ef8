"""Settings of CAILA; `README.md` gives their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from methods.config import MethodConfig


@dataclass
class CAILAConfig(MethodConfig):
    """Fields of CAILA. With ``names=reference`` labels of the public data sets are spelled as its program spells them.

    reduction: width of a layer divided by the width of its adapters.
    fusion_start: first layer of the image tower that sees both streams of tokens; 0 for the middle of the tower.
    text_adapters: adapters in the text tower as well (False: the public file "vision only").
    image_dropout: dropout on the fused image feature after its norm, in training.
    primitive_scale: initial scale of the attribute and object logits, as a multiple of CLIP's own.
    crop: the square that is cut out of an image: CLIP's ``clip``, or ``reference``, which resizes the short side to 8/7 of the square's
        side first (256 for 224) and bilinearly.
    """

    about: ClassVar[str] = "Adapters inside both towers for attributes, objects and their fusion; takes the public checkpoints."
    adaptable: ClassVar[bool] = True

    reduction: int = 4
    fusion_start: int = 0
    text_adapters: bool = True
    image_dropout: float = 0.5
    primitive_scale: float = 1.0
    crop: Literal["clip", "reference"] = "clip"

    def __post_init__(self):
        super().__post_init__()
        if self.reduction < 1:
            raise self.refused("reduction", "it must be 1 or more")
        if self.fusion_start < 0:
            raise self.refused("fusion_start", "it must be 0 (the middle of the tower) or a layer")
        if not 0 <= self.image_dropout < 1:
            raise self.refused("image_dropout", "it must lie between 0 and 1")
        if not self.primitive_scale > 0:
            raise self.refused("primitive_scale", "it must be above 0")
