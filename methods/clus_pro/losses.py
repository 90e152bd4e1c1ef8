"""Losses of ClusPro: prototype contrast and decorrelation of the branches.

Letters: S branches, B images, M prototypes (all primitives), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MASKED_ELEMENTS = 1 << 24  # of one chunk of prototypes under per-image dropout masks
LEAST_BANDWIDTH, LEAST_SELF = 0.01, 1e-8


def prototype_contrast(z_SBD: Tensor, rows_MD: Tensor, targets_SB: Tensor, tau: float, dropout: float) -> Tensor:
    """Cross-entropy of each image's own prototype among all (eq. 10), the sum over branches of the mean over images.

    Parameters
    ----------
    z_SBD : float tensor
        Anchors, of any length.
    rows_MD : float tensor
        Prototypes behind the branch MLPs, before dropout.
    targets_SB : int64 tensor
        Row of each image's own prototype.
    tau : float
    dropout : float
        The public program copies the prototypes for each image before the MLP, so each image sees its own dropout masks on
        them; the branches share these masks. Copies change nothing before the dropout, so one row a prototype is computed and
        only the masked cosine is done for each image: exact, in chunks of images whose masks are drawn again in the backward pass.
    """
    z_SBD = F.normalize(z_SBD, dim=-1)
    if dropout == 0:
        logits_SBM = z_SBD @ F.normalize(rows_MD, dim=-1).T
    else:
        size = max(1, MASKED_ELEMENTS // max(1, rows_MD.numel()))
        chunks = [checkpoint(_masked_cosines, z, rows_MD, dropout, use_reentrant=False) for z in z_SBD.split(size, dim=1)]
        logits_SBM = torch.cat(chunks, dim=1)
    return F.cross_entropy((logits_SBM / tau).flatten(0, 1), targets_SB.flatten()) * len(z_SBD)


def _masked_cosines(z_SbD: Tensor, rows_MD: Tensor, dropout: float) -> Tensor:
    keep_bMD = torch.rand(z_SbD.shape[1], *rows_MD.shape, device=rows_MD.device) >= dropout
    rows_bMD = F.normalize(rows_MD * keep_bMD, dim=-1)
    return torch.einsum("sbd,bmd->sbm", z_SbD, rows_bMD)


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
    least = 4 if estimator == "unbiased" else 2
    if least > B:
        return (x_BD.sum() + y_BD.sum()) * 0.0
    kernels = [_kernel(x_BD), _kernel(y_BD)]
    h = _biased if estimator == "biased" else _unbiased
    xx, yy, xy = h(kernels[0], kernels[0]), h(kernels[1], kernels[1]), h(kernels[0], kernels[1])
    # Where one side hardly varies (all images at one prototype, say) there is nothing to decorrelate.
    varies = torch.minimum(xx, yy) > (LEAST_SELF if estimator == "unbiased" else 0.0)
    return torch.where(varies, xy / torch.where(varies, xx * yy, 1.0).sqrt(), 0.0).to(x_BD.dtype)


def _kernel(x_BD: Tensor) -> Tensor:
    x_BD = F.normalize(x_BD.double(), dim=-1)  # the estimator takes small differences of large sums
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
    return median.clamp(min=LEAST_BANDWIDTH)


def _biased(k: Tensor, l: Tensor) -> Tensor:
    k, l = k - k.mean(1, keepdim=True), l - l.mean(1, keepdim=True)
    return (k * l.T).mean()


def _unbiased(k: Tensor, l: Tensor) -> Tensor:
    n = len(k)
    off = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k, l = k * off, l * off
    total = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ l.sum(0))
    return total / (n * (n - 3))
