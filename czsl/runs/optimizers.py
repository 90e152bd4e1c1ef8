"""Optimizers of a run, by the name in its settings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class ReferenceAdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay as the public programs that bring their own have it.

    Unlike torch's AdamW, eps (1e-6) joins sqrt(v) before the bias correction, and decay acts on the stepped weights
    (Loshchilov, Hutter: Decoupled Weight Decay Regularization, ICLR 2019, in the form of the early BERT programs).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-6})

    @torch.no_grad()
    def step(self, closure=None):
        """One step over all parameters that have a gradient."""
        if closure is not None:
            raise ValueError("this optimizer takes no closure")
        for group in self.param_groups:
            (b1, b2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                state["step"] += 1
                t, mean, square = float(state["step"]), state["exp_avg"], state["exp_avg_sq"]
                mean.lerp_(p.grad, 1 - b1)
                square.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                size = lr * math.sqrt(1 - b2**t) / (1 - b1**t)
                p.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-size)
                p.mul_(1 - lr * group["weight_decay"])


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": functools.partial(torch.optim.Adam, fused=True),
    "adamw": ReferenceAdamW,
}


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer by its name: ``adam`` (torch's fused one, decay in the gradient) or ``adamw`` (:class:`ReferenceAdamW`)."""
    return OPTIMIZERS[name](parameters, lr=lr, weight_decay=weight_decay)
