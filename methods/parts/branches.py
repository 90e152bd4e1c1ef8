"""Three branches (pair, attribute, object): what Troika (CVPR 2024) brought and the methods after it keep.

Letters: B images, P pairs, A attributes, O objects, D joint width.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from methods.features import Targets, TextFeatures
from methods.method import Method
from methods.parts.branches_config import BranchesConfig
from methods.parts.prompts import SoftPrompts

REFERENCE_CHUNK = 1024  # pairs a text chunk of the public test programs


def pair_texts(method: Method, prompts: SoftPrompts, pairs_P2: Tensor) -> TextFeatures:
    """Text features of index pairs with the composition branch only, [P, D]."""
    pairs_P2 = pairs_P2.to(method.clip.device)
    return TextFeatures(pairs_P2, method.encode_prompts(prompts.pairs(prompts.words(), pairs_P2)))


def encode_branches(method: Method, prompts: SoftPrompts, pairs_P2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L2-normalised text features of the branches, [P, D], [A, D] and [O, D], under one mask of the learned words."""
    words = prompts.words()
    pair_PD, attribute_AD, object_OD = method.encode_prompt_sets([prompts.pairs(words, pairs_P2), *prompts.primitives(words)])
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
