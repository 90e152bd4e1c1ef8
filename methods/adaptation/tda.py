"""TDA (Karmanov et al.: Efficient Test-Time Adaptation of Vision-Language Models, CVPR 2024): two caches, no gradient.

Letters: P candidates, C candidates that have cache entries, M entries per candidate, V candidates an uncertain image speaks against.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from methods.adaptation.adaptation import Adaptation, entropy_of
from methods.adaptation.cache import ClassCache, doubled
from methods.adaptation.config import TdaConfig


class Tda(Adaptation[TdaConfig]):
    """State: a positive cache, and a negative one whose entries keep the candidates they speak against.

    Every entry is a key of its own. One product [C M, D] x [D] per image and cache.
    """

    def __init__(self, text_PD: Tensor, scale: float, config: TdaConfig):
        super().__init__(text_PD, scale, config)
        self.positive, self.negative = ClassCache(config.shots, text_PD), ClassCache(config.negative_shots, text_PD)
        # Probabilities above mask_low: no more than 1 / mask_low of them. P stands for none.
        self._max_classes = min(int(1 / config.mask_low) + 1, len(text_PD))
        self._against = torch.full((16, config.negative_shots, self._max_classes), len(text_PD), device=text_PD.device)

    def shift(self, x_D: Tensor, cos_P: Tensor) -> Tensor:
        """Return what is added to the scaled cosines [P] of one unit image, and adapt to it."""
        c, z_P = self.config, self.scale * cos_P
        entropy, label = float(entropy_of(z_P)), int(z_P.argmax())
        self.positive.add(label, x_D, entropy)
        share = entropy / math.log2(len(z_P)) if len(z_P) > 1 else 0.0
        if c.negative and c.entropy_low < share < c.entropy_high:
            self._speak_against(self.negative.add(label, x_D, entropy), z_P)
        out_P = z_P.new_zeros(len(z_P) + 1)
        out_P.index_add_(0, self.positive.classes, self._affinity(self.positive, x_D, c.alpha, c.beta).sum(dim=1))
        if len(self.negative):
            weight_CM1 = self._affinity(self.negative, x_D, c.negative_alpha, c.negative_beta)[..., None]
            against_CMV = self._against[: len(self.negative)]
            out_P.index_add_(0, against_CMV.flatten(), -weight_CM1.expand(against_CMV.shape).flatten())
        return out_P[:-1]

    def _affinity(self, cache: ClassCache, x_D: Tensor, alpha: float, beta: float) -> Tensor:
        """Weighted affinity of an image to each entry, [C, M]; 0 without one."""
        return self.config.weight(alpha, self.scale) * torch.exp(-beta * (1 - cache.entries @ x_D)) * cache.filled

    def _speak_against(self, taken: tuple[int, int] | None, z_P: Tensor) -> None:
        """Note the candidates of an entry that was just taken."""
        if taken is None:
            return
        p_P = z_P.softmax(dim=0)
        found_V = ((p_P > self.config.mask_low) & (p_P < self.config.mask_high)).nonzero()[:, 0][: self._max_classes]
        while len(self._against) < len(self.negative):
            self._against = doubled(self._against)
        self._against[taken] = len(z_P)
        self._against[taken][: len(found_V)] = found_V

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` continues the stream."""
        return {
            "images": torch.tensor(self.images),
            **self.positive.state("positive_"),
            **self.negative.state("negative_"),
            "negative_against": self._against[: len(self.negative)],
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a state; ValueError or KeyError if it does not hold together."""
        self.images = int(state["images"])
        self.positive.restore(state, "positive_", len(self.text))
        self.negative.restore(state, "negative_", len(self.text))
        against = state["negative_against"]
        if against.shape != (len(self.negative), *self._against.shape[1:]) or against.dtype != torch.int64:
            raise ValueError("a negative cache of another shape")
        if len(against) and not 0 <= int(against.min()) <= int(against.max()) <= len(self.text):
            raise ValueError("a negative cache of other candidates")
        while len(self._against) < len(against):
            self._against = doubled(self._against)
        self._against[: len(against)] = against.to(self._against.device)
