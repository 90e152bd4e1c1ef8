"""The dependence of two sets of features of the same images (HSIC), which ClusPro's decorrelation loss lowers.

Several dependencies are computed together: one takes some 150 small operations, and a GPU starts each for all at once.

Letters: S dependencies, N sets of features, B images, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from czsl.clip.lean import SHORTEST

MIN_BANDWIDTH = 0.01
MIN_SELF = {"biased": 1e-20, "unbiased": 1e-8}  # of a side that varies; what is below it comes from rounding
MIN_DISTANCE = 1e-12  # of images that differ


def normalised_hsic(x: Tensor, y: Tensor, estimator: str) -> Tensor:
    """Dependence of two sets of features of the same images: HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)).

    Rows are L2-normalised; the kernel is exp(-d^2 / (2 m^2)) with m the median of the squared distances (as in the public program).

    Parameters
    ----------
    x, y : float tensor [..., B, D]
        Leading dimensions count dependencies.
    estimator : {"biased", "unbiased"}
        ``biased`` is the public form; in small batches it is near 1 for independent features. ``unbiased`` (Song et al., JMLR 2012,
        eq. 5) is 0 for them on average and can be negative. It needs four images; with fewer the term is 0.

    Returns
    -------
    float tensor [...]
    """
    counts, (B, D), unbiased = x.shape[:-2], x.shape[-2:], estimator == "unbiased"
    if (4 if unbiased else 2) > B:
        return (x.sum((-2, -1)) + y.sum((-2, -1))) * 0.0
    k_NBB = _Kernels.apply(torch.cat([x.reshape(-1, B, D), y.reshape(-1, B, D)]), not unbiased)
    S = len(k_NBB) // 2
    if not unbiased:
        k_NBB = k_NBB - k_NBB.mean(2, keepdim=True)
    # HSIC(x, x), HSIC(y, y) and HSIC(x, y) of all
    sides = torch.cat([k_NBB, k_NBB[:S]]), torch.cat([k_NBB, k_NBB[S:]])
    xx, yy, xy = (_unbiased(*sides) if unbiased else (sides[0] * sides[1].mT).mean((1, 2))).split(S)
    # Where one side hardly varies (all images at one prototype, say) there is nothing to decorrelate.
    varies = torch.minimum(xx, yy) > MIN_SELF[estimator]
    found_S = torch.where(varies, xy / torch.where(varies, xx * yy, 1.0).sqrt(), 0.0)
    return found_S.to(x.dtype).reshape(counts)


def _unbiased(k_SBB: Tensor, l_SBB: Tensor) -> Tensor:
    """Estimates [S] from kernels without their diagonals."""
    n = k_SBB.shape[1]
    k_columns, l_columns = k_SBB.sum(1), l_SBB.sum(1)
    total = (k_SBB * l_SBB).sum((1, 2)) + k_columns.sum(1) * l_columns.sum(1) / ((n - 1) * (n - 2))
    return (total - (k_columns * l_columns).sum(1) * (2 / (n - 2))) / (n * (n - 3))


class _Kernels(torch.autograd.Function):
    """Kernels float64 [N, B, B] of features [N, B, D]; the bandwidth takes part in no gradient. ``diagonal`` False: it is zero.

    They are float64 because the estimators take small differences of large sums.
    """

    @staticmethod
    def forward(ctx: Any, x_NBD: Tensor, diagonal: bool) -> Tensor:
        x = x_NBD.double()
        length_NB1 = torch.linalg.vector_norm(x, dim=2, keepdim=True).clamp_min(SHORTEST)
        u = x / length_NB1
        square_NB = (u * u).sum(2)
        distance = torch.baddbmm(square_NB[:, :, None] + square_NB[:, None], u, u.mT, alpha=-2).abs_()
        falls_N11 = -0.5 / _bandwidths(distance).square()[:, None, None]
        k_NBB = (distance * falls_N11).exp_()
        if not diagonal:
            k_NBB.diagonal(dim1=1, dim2=2).zero_()
        ctx.save_for_backward(u, length_NB1, falls_N11, k_NBB)
        ctx.dtype = x_NBD.dtype
        return k_NBB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        u, length_NB1, falls_N11, k_NBB = ctx.saved_tensors
        # An image's distance from itself is 0 whatever its features, so the diagonal adds nothing below.
        e = grad * k_NBB * falls_N11
        e = e + e.mT
        grad_u = torch.baddbmm(u * e.sum(2, keepdim=True), e, u, beta=2, alpha=-2)
        along = (grad_u * u).sum(2, keepdim=True)
        return (torch.addcmul(grad_u, along, u, value=-1) / length_NB1).to(ctx.dtype), None


def _bandwidths(distance_NBB: Tensor) -> Tensor:
    """Medians [N] of the distances within the images stacked twice (so each pair counts four times and each image once with itself)."""
    B = distance_NBB.shape[1]
    below = torch.tril_indices(B, B, -1, device=distance_NBB.device)
    values = torch.cat([distance_NBB[:, below[0], below[1]].repeat(1, 4), distance_NBB.diagonal(dim1=1, dim2=2)], dim=1).sort()[0]
    n = values.shape[1]
    median = (values[:, (n - 1) // 2] + values[:, n // 2]) / 2
    return torch.where(median > MIN_DISTANCE, median, values.mean(1)).clamp(min=MIN_BANDWIDTH)
