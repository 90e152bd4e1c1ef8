"""From scores to answers: the best compositions of an image and the marginals of its attributes and objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from czsl.compositions import CompositionSpace


def top_pairs(scores_BP: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best scores and their places, [B, k] each: score descending, then place ascending."""
    k = min(k, scores_BP.shape[1])
    order_Bk = torch.argsort(scores_BP, dim=1, descending=True, stable=True)[:, :k]
    return scores_BP.gather(1, order_Bk), order_Bk


class Ranking:
    """The k best candidates of B images and the marginals of their primitives, from tiles of scores: nothing of size B x P is kept.

    Parameters
    ----------
    pairs_P2 : int array [P, 2]
        The candidates, in the order of the tiles.
    space : CompositionSpace
    k : int
    """

    def __init__(self, pairs_P2: np.ndarray, space: CompositionSpace, k: int):
        self._pairs_P2, self._space, self._k, self._done = np.ascontiguousarray(pairs_P2), space, k, 0
        self._best: tuple[Tensor, Tensor, Tensor] | None = None  # values, places and log-weights, [B, k]
        self._most_B1 = self._sum_B1 = torch.empty(0)  # the largest log-weight, and the sum of the weights relative to it
        self._sides: list[Tensor] = []  # the same sum by attribute [B, A] and by object [B, O]

    def add(self, scores_Bp: Tensor, log_weights_Bp: Tensor) -> None:
        """The next tile: scores [B, p], and the logarithms of what probabilities are proportional to, float64 [B, p]."""
        B, p = scores_Bp.shape
        pairs_p2 = torch.from_numpy(self._pairs_P2[self._done : self._done + p]).to(scores_Bp.device)
        values, places = top_pairs(scores_Bp, self._k)
        weights = log_weights_Bp.gather(1, places)
        most_B1 = log_weights_Bp.amax(1, keepdim=True)
        if self._best is None:
            self._most_B1, self._sum_B1 = most_B1, most_B1.new_zeros(B, 1)
            self._sides = [most_B1.new_zeros(B, n) for n in (self._space.num_attributes, self._space.num_objects)]
        else:  # what is kept stands before the tile, so ties keep their order
            new = (values, places + self._done, weights)
            values, places, weights = (torch.cat(both, 1) for both in zip(self._best, new, strict=True))
            values, order = top_pairs(values, self._k)
            places, weights = places.gather(1, order), weights.gather(1, order)
            most_B1 = torch.maximum(most_B1, self._most_B1)
        shrunk_B1, weights_Bp = (self._most_B1 - most_B1).exp(), (log_weights_Bp - most_B1).exp()
        self._sum_B1 = self._sum_B1 * shrunk_B1 + weights_Bp.sum(1, keepdim=True)
        self._sides = [(s * shrunk_B1).index_add_(1, pairs_p2[:, c], weights_Bp) for c, s in enumerate(self._sides)]
        self._best, self._most_B1, self._done = (values, places, weights), most_B1, self._done + p

    def probability(self, log_weights: Tensor) -> Tensor:
        """Probabilities [B, ...] of some candidates from their log-weights, when all tiles are in."""
        return (log_weights - self._most_B1).exp() / self._sum_B1

    def records(self) -> list[dict[str, Any]]:
        """One record an image: its k best compositions, attributes and objects (or classes), best first."""
        if self._best is None:
            return []
        prob_Bk = self.probability(self._best[2])
        values_Bk, places_Bk = (x.cpu() for x in self._best[:2])
        sides = [side / self._sum_B1 for side in self._sides]
        return _records(values_Bk, prob_Bk, self._pairs_P2[places_Bk.numpy()], sides, self._space, self._k)


def rank_found(
    scores_Bn: Tensor, prob_Bn: Tensor, pairs_Bn2: np.ndarray, space: CompositionSpace, k: int
) -> list[dict[str, Any]]:
    """The same records from the n best candidates of each image, best first; probabilities are among these n."""
    pairs, sides = torch.from_numpy(pairs_Bn2), []
    for column, count in enumerate((space.num_attributes, space.num_objects)):
        sides.append(prob_Bn.new_zeros(len(prob_Bn), count).scatter_add_(1, pairs[:, :, column], prob_Bn))
    return _records(scores_Bn[:, :k], prob_Bn[:, :k], pairs_Bn2[:, :k], sides, space, k)


def _records(
    scores_Bk: Tensor, prob_Bk: Tensor, pairs_Bk2: np.ndarray, sides: list[Tensor], space: CompositionSpace, k: int
) -> list[dict[str, Any]]:
    named = {}
    for (kind, names), prob_BX in zip(space.vocabulary.items(), sides[-len(space.vocabulary) :], strict=True):
        named_Bk, index_Bk = (x.cpu() for x in top_pairs(prob_BX, k))
        named[kind] = [
            [{"name": names[i], "prob": round(p, 6)} for p, i in zip(ps, ids, strict=True)]
            for ps, ids in zip(named_Bk.tolist(), index_Bk.tolist(), strict=True)
        ]
    records = []
    for b, (scores, probs) in enumerate(zip(scores_Bk.tolist(), prob_Bk.tolist(), strict=True)):
        found = zip(scores, probs, pairs_Bk2[b], strict=True)
        predictions = [{**space.label(pair), "score": score, "prob": round(prob, 6)} for score, prob, pair in found]
        records.append({"predictions": predictions, **{kind: rows[b] for kind, rows in named.items()}})
    return records
