"""Settings that methods with three branches share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from methods.config import MethodConfig


@dataclass
class BranchesConfig(MethodConfig):
    """Fields of methods with three branches.

    adapter_dim: bottleneck width of the adapters in the image tower; 0 leaves the tower frozen.
    adapter_dropout: dropout inside the adapters.
    attr_dropout: dropout on the table of learned words.
    head_dropout: dropout of the MLPs of the primitive branches.
    pair_loss_weight: weight of the composition branch's cross-entropy.
    attr_loss_weight: the same of the attribute branch.
    obj_loss_weight: the same of the object branch.
    pair_inference_weight: weight of the composition term of the fused score.
    attr_inference_weight: the same of attribute probabilities.
    obj_inference_weight: the same of object probabilities.
    primitive_repeat: ``reference`` divides the product of primitive probabilities by the squared number of text chunks, as the public
        test programs do. Their training loops do not, so validation during training never divides.
    """

    fractions: ClassVar[tuple[str, ...]] = ("adapter_dropout", "attr_dropout", "head_dropout")
    positive: ClassVar[tuple[str, ...]] = ()

    adapter_dim: int = 64
    adapter_dropout: float = 0.1
    attr_dropout: float = 0.3
    head_dropout: float = 0.5
    pair_loss_weight: float = 1.0
    attr_loss_weight: float = 1.0
    obj_loss_weight: float = 1.0
    pair_inference_weight: float = 1.0
    attr_inference_weight: float = 1.0
    obj_inference_weight: float = 1.0
    primitive_repeat: Literal["correct", "reference"] = "correct"

    def __post_init__(self):
        super().__post_init__()
        for name in self.fractions:
            if not 0 <= getattr(self, name) <= 1:
                raise self.refused(name, "it must lie between 0 and 1")
        for name in self.positive:
            if not getattr(self, name) > 0:
                raise self.refused(name, "it must be above 0")
        if self.adapter_dim < 0:
            raise self.refused("adapter_dim", "it must be 0 (no adapters) or more")

    @property
    def loss_weights(self) -> tuple[float, float, float]:
        """Return the weights of pair, attribute and object."""
        return self.pair_loss_weight, self.attr_loss_weight, self.obj_loss_weight


@dataclass
class CrossAttentionConfig(BranchesConfig):
    """Fields of methods whose texts attend to the image.

    train_mode: ``correct``, or ``reference``: from the second epoch on no dropout and running batch statistics, as in the public loops
        of Troika and MSCI, whose first validation leaves training mode for good.
    """

    train_mode: Literal["correct", "reference"] = "correct"
