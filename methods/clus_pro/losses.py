"""Losses of ClusPro: prototype contrast and decorrelation of the branches.

Letters: S branches, B images, M prototypes (all primitives), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from czsl.clip.lean import unit

# Elements of one chunk of prototypes under per-image dropout masks: what a CPU's cache holds, what fills a GPU.
MASKED_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}
MIN_BANDWIDTH, MIN_SELF = 0.01, 1e-8


def prototype_contrast(z_SBD: Tensor, rows_MD: Tensor, targets_SB: Tensor, tau: float, dropout: float) -> Tensor:
    """Cross-entropy of each image's own prototype among all (eq. 10), the sum over branches of the mean over images.

    Parameters
    ----------
    z_SBD : float tensor
        Anchors, of any length.
    rows_MD : float tensor
        Prototypes after the branch MLPs, before dropout.
    targets_SB : int64 tensor
        Row of each image's own prototype.
    tau : float
    dropout : float
        The public program copies the prototypes for each image before the MLP, so each image sees its own dropout masks on
        them; the branches share these masks. Copies change nothing before the dropout, so one row a prototype is computed and
        only the masked cosine is done for each image: exact, in chunks of images whose masks are drawn again in the backward pass.
    """
    z_SBD = unit(z_SBD)
    if dropout == 0:
        logits_SBM = z_SBD @ unit(rows_MD).T
    else:
        seed = int(torch.randint(2**62, ()))
        logits_SBM = MaskedCosines.apply(z_SBD, rows_MD, dropout, seed)
    return F.cross_entropy((logits_SBM / tau).flatten(0, 1), targets_SB.flatten()) * len(z_SBD)


def masks(images: int, rows_MD: Tensor, dropout: float, seed: int) -> Iterator[tuple[slice, Tensor]]:
    """Dropout masks [b, M, D] (1: kept) of chunks of images, in the type of the rows; a function of the arguments only.

    Sixteen random bits decide an element, so the dropout is exact to 2^-16.
    """
    M, D = rows_MD.shape
    chunk = max(1, MASKED_ELEMENTS[rows_MD.device.type] // (M * D))
    generator = torch.Generator(rows_MD.device).manual_seed(seed)
    threshold = round(dropout * 2**16) - 2**15
    for start in range(0, images, chunk):
        b = min(chunk, images - start)
        words = torch.empty(-(-b * M * D // 4), dtype=torch.long, device=rows_MD.device)
        lanes = words.random_(-(2**63), None, generator=generator).view(torch.int16)
        # Comparing floats in place is ten times quicker than comparing integers.
        yield slice(start, start + b), lanes[: b * M * D].view(b, M, D).to(rows_MD.dtype).ge_(threshold)


class MaskedCosines(torch.autograd.Function):
    """Cosines [S, B, M] of unit anchors [S, B, D] with rows [M, D] under a dropout mask for each image; 0 if all is dropped.

    Neither masks nor masked rows [B, M, D] are kept: the backward pass draws the masks again.
    """

    @staticmethod
    def forward(ctx: Any, z_SBD: Tensor, rows_MD: Tensor, dropout: float, seed: int) -> Tensor:
        """See the class."""
        S, B, _ = z_SBD.shape
        cosines_SBM = z_SBD.new_empty(S, B, len(rows_MD))
        inverse_BM = z_SBD.new_empty(B, len(rows_MD))
        for some, kept_bMD in masks(B, rows_MD, dropout, seed):
            kept_bMD *= rows_MD
            inverse_bM = kept_bMD.square().sum(-1).rsqrt()
            inverse_BM[some] = inverse_bM.masked_fill_(inverse_bM.isinf(), 0)
            cosines_SBM[:, some] = torch.bmm(z_SBD[:, some].transpose(0, 1), kept_bMD.mT).transpose(0, 1) * inverse_BM[some]
        ctx.save_for_backward(z_SBD, rows_MD, cosines_SBM, inverse_BM)
        ctx.dropout, ctx.seed = dropout, seed
        return cosines_SBM

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of anchors and rows."""
        z_SBD, rows_MD, cosines_SBM, inverse_BM = ctx.saved_tensors
        # d cos = inverse d(z . kr) - cos inverse^2 kr . d(kr), k the mask and r the row.
        products_SBM = grads[0] * inverse_BM
        lengths_BM = (grads[0] * cosines_SBM).sum(0) * inverse_BM.square()
        grad_z, grad_rows = torch.empty_like(z_SBD), torch.zeros_like(rows_MD)
        for some, kept_bMD in masks(z_SBD.shape[1], rows_MD, ctx.dropout, ctx.seed):
            products_bSM, z_bSD = products_SBM[:, some].transpose(0, 1), z_SBD[:, some].transpose(0, 1)
            grad_bMD = torch.bmm(products_bSM.mT, z_bSD).addcmul_(lengths_BM[some, :, None], rows_MD, value=-1)
            grad_rows += grad_bMD.mul_(kept_bMD).sum(0)
            grad_z[:, some] = torch.bmm(products_bSM, kept_bMD.mul_(rows_MD)).transpose(0, 1)
        return grad_z, grad_rows, None, None


def normalised_hsic(x_BD: Tensor, y_BD: Tensor, estimator: str) -> Tensor:
    """Dependence of two sets of features of the same images: HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), a scalar.

    Rows are L2-normalised; the kernel is exp(-d^2 / (2 m^2)) with m the median of the squared distances (as in the public program).

    Parameters
    ----------
    estimator : {"biased", "unbiased"}
        ``biased`` is the public form; in small batches it is near 1 for independent features. ``unbiased`` (Song et al., JMLR 2012,
        eq. 5) is 0 for them on average and can be negative. It needs four images; with fewer the term is 0.
    """
    B = len(x_BD)
    minimum = 4 if estimator == "unbiased" else 2
    if minimum > B:
        return (x_BD.sum() + y_BD.sum()) * 0.0
    prepare, h = ESTIMATORS[estimator]
    x, y = prepare(_kernel(x_BD)), prepare(_kernel(y_BD))
    xx, yy, xy = h(x, x), h(y, y), h(x, y)
    # Where one side hardly varies (all images at one prototype, say) there is nothing to decorrelate.
    varies = torch.minimum(xx, yy) > (MIN_SELF if estimator == "unbiased" else 0.0)
    return torch.where(varies, xy / torch.where(varies, xx * yy, 1.0).sqrt(), 0.0).to(x_BD.dtype)


def _kernel(x_BD: Tensor) -> Tensor:
    x_BD = unit(x_BD.double())  # the estimator takes small differences of large sums
    square_B = (x_BD * x_BD).sum(1)
    distance_BB = (square_B[:, None] + square_B - 2 * x_BD @ x_BD.T).abs()
    m = _bandwidth(distance_BB.detach())
    return (-distance_BB / (2 * m**2)).exp()


def _bandwidth(distance_BB: Tensor) -> Tensor:
    """Median of the distances within the images stacked twice (so each pair counts four times and each image once with itself)."""
    B = len(distance_BB)
    low = distance_BB[torch.tril_indices(B, B, -1).unbind()]
    values, _ = torch.cat([low.repeat(4), distance_BB.diagonal()]).sort()
    median = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    median = torch.where(median > 0, median, values.mean())
    return median.clamp(min=MIN_BANDWIDTH)


def _centred(k: Tensor) -> Tensor:
    return k - k.mean(1, keepdim=True)


def _biased(k: Tensor, l: Tensor) -> Tensor:
    return (k * l.T).mean()


def _without_diagonal(k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A kernel without its diagonal, the sums of its columns, and the sum of all."""
    k = k * (1 - torch.eye(len(k), dtype=k.dtype, device=k.device))
    return k, k.sum(0), k.sum()


def _unbiased(x: tuple[Tensor, Tensor, Tensor], y: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    (k, k_columns, k_sum), (l, l_columns, l_sum) = x, y
    n = len(k)
    total = (k * l).sum() + k_sum * l_sum / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k_columns @ l_columns)
    return total / (n * (n - 3))


# How a kernel is prepared, and the estimate from two prepared kernels.
ESTIMATORS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any, Any], Tensor]]] = {
    "biased": (_centred, _biased),
    "unbiased": (_without_diagonal, _unbiased),
}
