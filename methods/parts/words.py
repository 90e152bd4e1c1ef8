"""Frozen text features of prompts, kept for the few lists of pairs that come again and again (training, validation)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from czsl.clip.towers import Towers

LISTS_KEPT, MAX_KEPT = 3, 16_384  # pair lists and their pairs whose words are kept


class KeptWords:
    """Text features by list of pairs.

    Parameters
    ----------
    clip : Towers
        Where they come from; on another device or in another precision they are made again.
    encode : callable
        Gives the features [P, D] of index pairs [P, 2].
    """

    def __init__(self, clip: Towers, encode: Callable[[Tensor], Tensor]):
        self._clip, self._encode = clip, encode
        self._kept: dict[tuple[bytes, torch.device, torch.dtype], Tensor] = {}

    @torch.no_grad()
    def __call__(self, pairs_P2: Tensor) -> Tensor:
        """Features [P, D] of index pairs [P, 2]; those of the last few short lists are kept."""
        key = (pairs_P2.cpu().numpy().tobytes(), self._clip.device, self._clip.mean.dtype)
        if key in self._kept:
            return self._kept[key]
        words_PD = self._encode(pairs_P2.to(self._clip.device)).to(self._clip.mean.dtype)
        if len(pairs_P2) <= MAX_KEPT:
            self._kept = {**dict(list(self._kept.items())[1 - LISTS_KEPT :]), key: words_PD}
        return words_PD
