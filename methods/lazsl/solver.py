"""Entropic transport between the regions of an image and the phrases of a candidate, for many candidates at once.

Letters: Q problems (an image and a candidate each), N phrases, R regions. The similarity s [Q, N, R] is that of the regions only: the
whole image's similarity to a phrase shifts a column of the cost, which changes no plan. With strength = theta / eps a plan maximises
<T, s> - sum(T log T) / strength; regions hold ``mass``, phrases take ``weight``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.parts.transport import entropic_plan

TOLERANCE = 1e-5  # of what a region holds; the score is then off by that times the spread of s, which is below float32
MAX_ROUNDS = 100


def plan_of(
    solver: str, similarity_QNR: Tensor, weight_QN: Tensor, mass_QR: Tensor, strength: float, tolerance: float = TOLERANCE
) -> Tensor:
    """Plans [Q, N, R] of a solver.

    Parameters
    ----------
    solver : {"sinkhorn", "log", "second_order", "uniform"}
    similarity_QNR : float tensor
    weight_QN, mass_QR : float tensor
        Weights and masses of sum 1. A mass may be 0 (padding), a weight may not.
    strength : float
        theta / eps.
    tolerance : float
        Where ``sinkhorn`` stops; see :func:`scaling_plan`.
    """
    if solver == "sinkhorn":
        return scaling_plan(similarity_QNR, weight_QN, mass_QR, strength, tolerance)
    if solver == "log":
        plan = entropic_plan(-similarity_QNR.mT, 1 / strength, mass_QR > 0, weight_QN)
        return plan.mT.to(similarity_QNR.dtype)
    product = weight_QN[:, :, None] * mass_QR[:, None]
    return product if solver == "uniform" else product * (1 + strength * interaction(similarity_QNR, weight_QN, mass_QR))


def scaling_plan(
    similarity_QNR: Tensor, weight_QN: Tensor, mass_QR: Tensor, strength: float, tolerance: float = TOLERANCE
) -> Tensor:
    """Plans by Sinkhorn scaling, in the precision of the similarity; phrases get their weight to the last digits.

    A problem stops by itself, where every region gives its mass up to a relative ``tolerance`` or after 100 rounds, and then keeps
    its values, so that its plan does not depend on the others.
    """
    # In place, since fresh memory costs more here than the arithmetic.
    kernel = (similarity_QNR - similarity_QNR.amax((1, 2), keepdim=True)).mul_(strength).exp_()
    v_QN1 = torch.ones_like(weight_QN)[:, :, None]
    given_QR1 = torch.bmm(kernel.mT, v_QN1)
    mass_QR1, weight_QN1 = mass_QR[:, :, None], weight_QN[:, :, None]
    limit_QR1 = tolerance * mass_QR1
    u_QR1 = mass_QR1 / given_QR1
    for _ in range(MAX_ROUNDS):
        v_QN1 = weight_QN1 / torch.bmm(kernel, u_QR1)
        given_QR1 = torch.bmm(kernel.mT, v_QN1)
        moving_Q11 = (torch.addcmul(mass_QR1, u_QR1, given_QR1, value=-1).abs_() > limit_QR1).any(1, keepdim=True)
        if not moving_Q11.any():
            break
        u_QR1 = torch.where(moving_Q11, mass_QR1 / given_QR1, u_QR1)
    return kernel.mul_(v_QN1).mul_(u_QR1.mT)


def interaction(similarity_QNR: Tensor, weight_QN: Tensor, mass_QR: Tensor) -> Tensor:
    """The similarity without its row and column means (weighted), [Q, N, R].

    To first order in strength the plan is the product of its margins times 1 + strength * this, and its margins stay exact.
    """
    over_regions = similarity_QNR @ mass_QR[:, :, None]
    over_phrases = weight_QN[:, None] @ similarity_QNR
    return similarity_QNR - over_regions - over_phrases + weight_QN[:, None] @ over_regions
