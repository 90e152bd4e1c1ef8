"""The prototype contrast, a loss of ClusPro.

Letters: S branches, B images, M prototypes (all primitives), D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from czsl.clip.lean import unit

# Elements of one chunk of prototypes under per-image dropout masks: what a CPU's cache holds, what fills a GPU.
MASKED_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}


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
