"""Frozen text features of prompts, kept for the few lists of pairs that come again and again (training, validation)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LISTS_KEPT, LONGEST_KEPT = 3, 16_384  # pair lists and their pairs whose words are kept


class KeptWords:
    """Text features by list of pairs.

    Parameters
    ----------
    encode : callable
        Gives the features [P, D] of index pairs [P, 2].
    """

    def __init__(self, encode: Callable[[Tensor], Tensor]):
        self._encode = encode
        self._kept: dict[bytes, Tensor] = {}

    def clear(self) -> None:
        """Forget all of them: device or precision changed."""
        self._kept = {}

    @torch.no_grad()
    def __call__(self, pairs_P2: Tensor) -> Tensor:
        """Features [P, D] of index pairs [P, 2]; those of the last few short lists are kept."""
        key = pairs_P2.cpu().numpy().tobytes()
        if key in self._kept:
            return self._kept[key]
        words_PD = self._encode(pairs_P2)
        if len(pairs_P2) <= LONGEST_KEPT:
            self._kept = {**dict(list(self._kept.items())[1 - LISTS_KEPT :]), key: words_PD}
        return words_PD
