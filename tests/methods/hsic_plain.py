"""HSIC one dependency at a time, with autograd's own gradients: what the batched form must equal."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def plain_kernel(x_BD):
    x_BD = F.normalize(x_BD.double(), dim=-1)
    square_B = (x_BD * x_BD).sum(1)
    distance_BB = (square_B[:, None] + square_B - 2 * x_BD @ x_BD.T).abs()
    B, d = len(distance_BB), distance_BB.detach()
    values, _ = torch.cat([d[torch.tril_indices(B, B, -1).unbind()].repeat(4), d.diagonal()]).sort()
    median = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    m = (median if median > 1e-12 else values.mean()).clamp(min=0.01)
    return (-distance_BB / (2 * m**2)).exp()


def biased(k, l):
    k, l = (x - x.mean(1, keepdim=True) for x in (k, l))
    return (k * l.T).mean()


def unbiased(k, l):
    n = len(k)
    k, l = (x * (1 - torch.eye(n, dtype=x.dtype)) for x in (k, l))
    total = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ l.sum(0))
    return total / (n * (n - 3))


def plain_hsic(x_BD, y_BD, estimator):
    if len(x_BD) < (4 if estimator == "unbiased" else 2):
        return (x_BD.sum() + y_BD.sum()) * 0.0
    k, l, h = plain_kernel(x_BD), plain_kernel(y_BD), {"biased": biased, "unbiased": unbiased}[estimator]
    xx, yy, xy = h(k, k), h(l, l), h(k, l)
    if torch.minimum(xx, yy) <= (1e-8 if estimator == "unbiased" else 1e-20):
        return (xy * 0.0).to(x_BD.dtype)
    return (xy / (xx * yy).sqrt()).to(x_BD.dtype)
