"""The contract of an adaptation: unit images come one after the other, each gets its scores and leaves its trace in the state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor

from methods.adaptation.config import AdaptationConfig

C = TypeVar("C", bound=AdaptationConfig)


class Adaptation(ABC, Generic[C]):
    """State of an adaptation over one list of candidates. No label is ever given to it.

    Parameters
    ----------
    text_PD : float tensor
        Unit text features of the candidates.
    scale : float
        Factor of the cosines in the scores.
    config : AdaptationConfig
    """

    def __init__(self, text_PD: Tensor, scale: float, config: C):
        self.text, self.scale, self.config = text_PD, scale, config
        self.images = 0  # seen so far

    @torch.no_grad()
    def shifts(self, unit_BD: Tensor) -> Tensor:
        """Return what is added to the scaled cosines [B, P] of unit images [B, D], which come in this order."""
        cos_BP = unit_BD @ self.text.T
        for x_D, cos_P in zip(unit_BD, cos_BP, strict=True):
            cos_P.copy_(self.shift(x_D, cos_P))
            self.images += 1
        return cos_BP

    @abstractmethod
    def shift(self, x_D: Tensor, cos_P: Tensor) -> Tensor:
        """Return what is added to the scaled cosines [P] of one unit image, and adapt to it."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` continues the stream."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a state; ValueError or KeyError if it does not hold together."""


def entropy_of(z_P: Tensor) -> Tensor:
    """Entropy of softmax(z) in nats."""
    log_P = z_P.log_softmax(dim=0)
    return -(log_P.exp() * log_P).sum()
