"""Three branches (pair, attribute, object): what Troika (CVPR 2024) brought and the methods after it keep.

Letters: B images, P pairs, A attributes, O objects, D joint width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from methods.method import Method, MethodConfig
from methods.parts.prompts import SoftPrompts
from methods.sides import Targets

REFERENCE_CHUNK = 1024  # pairs a text chunk of the public test programs


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
        """Of pair, attribute and object."""
        return self.pair_loss_weight, self.attr_loss_weight, self.obj_loss_weight


def encode_branches(method: Method, prompts: SoftPrompts, pairs_P2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L2-normalised text features of the branches, [P, D], [A, D] and [O, D], under one mask of the learned words."""
    words = prompts.words()
    pair_PD = method.encode_prompts(prompts.pairs(words, pairs_P2))
    attribute_AD, object_OD = (method.encode_prompts(tree) for tree in prompts.primitives(words))
    return pair_PD, attribute_AD, object_OD


def branch_losses(
    logits: tuple[Tensor, Tensor | None, Tensor | None], targets: Targets, weights: tuple[float, float, float]
) -> dict[str, Tensor]:
    """Weighted cross-entropies of the three branches."""
    targets.note(logits[0])
    names, labels = ("pair", "attr", "obj"), (targets.pair, targets.attribute, targets.object)
    return {
        name: weight * F.cross_entropy(x, y)
        for name, x, y, weight in zip(names, logits, labels, weights, strict=True)
        if x is not None
    }


def primitive_terms(attr_BA: Tensor, obj_BO: Tensor, config: BranchesConfig, candidates: int) -> tuple[Tensor, Tensor]:
    """Weighted probabilities of the primitives from their logits, [B, A] and [B, O]; their product joins the composition term.

    Parameters
    ----------
    attr_BA, obj_BO : float tensor
        Logits of all primitives.
    config : BranchesConfig
        Inference weights and ``primitive_repeat``.
    candidates : int
        Pairs of all tiles together, from which the public test programs' chunks are counted.
    """
    chunks = math.ceil(candidates / REFERENCE_CHUNK) if config.primitive_repeat == "reference" else 1
    return config.attr_inference_weight / chunks * attr_BA.softmax(1), config.obj_inference_weight / chunks * obj_BO.softmax(1)


def fuse(pair_BP: Tensor, attr_BA: Tensor, obj_BO: Tensor, pairs_P2: Tensor, config: BranchesConfig, candidates: int) -> Tensor:
    """Composition term [B, P] plus product of primitive probabilities, [B, P]; see :func:`primitive_terms`."""
    attr_BA, obj_BO = primitive_terms(attr_BA, obj_BO, config, candidates)
    return config.pair_inference_weight * pair_BP + attr_BA[:, pairs_P2[:, 0]] * obj_BO[:, pairs_P2[:, 1]]
