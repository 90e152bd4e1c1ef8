"""Settings of DFSP; `presets.yaml` names useful combinations and `README.md` gives their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from methods.config import MethodConfig


@dataclass
class DFSPConfig(MethodConfig):
    """Fields of DFSP.

    attr_dropout: dropout on the table of learned words.
    fusion_dropout: dropout on the guide and inside the MLPs of the self-attention blocks.
    fusion_layers: self-attention blocks of images, and of texts.
    residual: share of CLIP's own feature in an embedding, of images and texts; the rest is the fused feature.
    prompt_loss_weight: weight of the cross-entropy of the features before fusion.
    primitive_loss_weight: weight of the cross-entropies of attributes and of objects.
    padding: ``none``, or ``reference``: the fusion also sees the empty token after each prompt, as in the public program.
    """

    label: ClassVar[str] = "DFSP"
    about: ClassVar[str] = "Learned prompts; image tokens attend to the decomposed texts of attributes and objects."
    adaptable: ClassVar[bool] = True

    attr_dropout: float = 0.3
    fusion_dropout: float = 0.3
    fusion_layers: int = 1
    residual: float = 0.8
    prompt_loss_weight: float = 0.1
    primitive_loss_weight: float = 0.01
    padding: Literal["none", "reference"] = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.fusion_layers < 1:
            raise self.refused("fusion_layers", "it must be 1 or more")
        if not 0 <= self.residual <= 1:
            raise self.refused("residual", "it is a share between 0 and 1")
        for name in ("prompt_loss_weight", "primitive_loss_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise self.refused(name, "it must be 0 or more")
