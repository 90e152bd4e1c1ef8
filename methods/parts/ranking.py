"""From scores to answers: the best compositions of an image and the marginals of its attributes and objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from czsl.compositions import CompositionSpace
from czsl.evaluation.operating import OperatingPoint, Scaling


def top_pairs(scores_BP: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best scores and their indices, [B, k] each: score descending, then index ascending."""
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
    point : OperatingPoint, optional
        Bias and scales of probabilities; by default scores are ranked as they are, and probabilities are shares of exp(log-weight).
    unseen_P : bool array [P], optional
        The candidates that training never saw, which the point's biases are added to; default: none.
    """

    def __init__(
        self,
        pairs_P2: np.ndarray,
        space: CompositionSpace,
        k: int,
        point: OperatingPoint | None = None,
        unseen_P: np.ndarray | None = None,
    ):
        self._pairs_P2, self._space, self._k, self._done = np.ascontiguousarray(pairs_P2), space, k, 0
        self._point = point or OperatingPoint()
        self._unseen_P = np.zeros(len(pairs_P2), bool) if unseen_P is None else np.asarray(unseen_P, bool)
        self._best: list[Tensor] = []  # calibrated score, score, log-weight and place, [B, k] each
        self._max_B1 = self._peak_B1 = torch.empty(0)  # the largest log-weight, and the largest one scaled
        self._sums: dict[Scaling, Tensor] = {}  # of the weights relative to the largest, [B, 1]
        self._sides: list[Tensor] = []  # the same sum by attribute [B, A] and by object [B, O]

    def add(self, scores_Bp: Tensor, log_weights_Bp: Tensor) -> None:
        """The next tile: scores [B, p], and the logarithms of what probabilities are proportional to, float64 [B, p]."""
        B, p = scores_Bp.shape
        part, device = slice(self._done, self._done + p), scores_Bp.device
        pairs_p2 = torch.from_numpy(self._pairs_P2[part]).to(device)
        unseen_p = torch.from_numpy(self._unseen_P[part]).to(device, torch.float64)
        calibrated_Bp = scores_Bp.double() + self._point.bias * unseen_p
        values, places = top_pairs(calibrated_Bp, self._k)
        tile = [values, scores_Bp.gather(1, places), log_weights_Bp.gather(1, places), places + self._done]
        max_B1 = log_weights_Bp.amax(1, keepdim=True)
        if not self._best:
            self._max_B1, self._best = max_B1, tile
            self._peak_B1 = torch.full_like(max_B1, -torch.inf)
            self._sums = {scaling: max_B1.new_zeros(B, 1) for scaling in self._point.scalings}
            self._sides = [max_B1.new_zeros(B, n) for n in (self._space.num_attributes, self._space.num_objects)]
        else:  # what is kept stands before the tile, so ties keep their order
            joined = [torch.cat([old, new], 1) for old, new in zip(self._best, tile, strict=True)]
            values, order = top_pairs(joined[0], self._k)
            self._best = [values, *(x.gather(1, order) for x in joined[1:])]
            max_B1 = torch.maximum(max_B1, self._max_B1)
        weights = {}
        for scaling in self._sums:
            shrunk_B1 = ((self._max_B1 - max_B1) / scaling.temperature).exp()
            scaled_Bp = (log_weights_Bp - max_B1) / scaling.temperature + scaling.bias * unseen_p
            weights[scaling] = (shrunk_B1, scaled_Bp.exp())
            self._sums[scaling] = self._sums[scaling] * shrunk_B1 + weights[scaling][1].sum(1, keepdim=True)
            if scaling == self._point.composition:
                peak_B1 = (scaled_Bp + max_B1 / scaling.temperature).amax(1, keepdim=True)
                self._peak_B1 = torch.maximum(self._peak_B1, peak_B1)
        for c, scaling in enumerate((self._point.attribute, self._point.object)):
            shrunk_B1, weights_Bp = weights[scaling]
            self._sides[c] = (self._sides[c] * shrunk_B1).index_add_(1, pairs_p2[:, c], weights_Bp)
        self._max_B1, self._done = max_B1, self._done + p

    def probability(self, log_weights_Bn: Tensor, unseen_n: Tensor | None = None) -> Tensor:
        """Probabilities [B, n] of some candidates from their log-weights and whether each is unseen, when all tiles are in."""
        scaling = self._point.composition
        bias = 0.0 if unseen_n is None else scaling.bias * unseen_n.to(log_weights_Bn)
        return ((log_weights_Bn - self._max_B1) / scaling.temperature + bias).exp() / self._sums[scaling]

    def confidence(self) -> Tensor:
        """Probability of each image's best composition, float64 [B], when all tiles are in."""
        best_B1 = self._best[3][:, :1]
        unseen_B1 = torch.from_numpy(self._unseen_P[best_B1.cpu().numpy()]).to(best_B1.device)
        return self.probability(self._best[2][:, :1], unseen_B1)[:, 0]

    def detectors(self) -> dict[str, Tensor]:
        """By detector of :mod:`czsl.evaluation.rejection`, its value for each image, float64 [B]."""
        scaling = self._point.composition
        energy_B1 = self._sums[scaling].log() + self._max_B1 / scaling.temperature
        values = {"probability": (self._peak_B1 - energy_B1).exp(), "score": self._best[0][:, :1], "energy": energy_B1}
        return {name: value[:, 0] for name, value in values.items()}

    def records(self) -> list[dict[str, Any]]:
        """One record per image: its k best compositions, attributes and objects (or classes), best first."""
        if not self._best:
            return []
        calibrated_Bk, scores_Bk, log_weights_Bk, places_Bk = self._best
        unseen_Bk = torch.from_numpy(self._unseen_P[places_Bk.cpu().numpy()]).to(places_Bk.device)
        prob_Bk = self.probability(log_weights_Bk, unseen_Bk)
        side_scalings = (self._point.attribute, self._point.object)
        sides = [side / self._sums[scaling] for side, scaling in zip(self._sides, side_scalings, strict=True)]
        pairs_Bk2 = self._pairs_P2[places_Bk.cpu().numpy()]
        return _records((scores_Bk, calibrated_Bk, prob_Bk), pairs_Bk2, sides, self._space, self._k)


def rank_found(
    found: tuple[Tensor, Tensor, Tensor],
    pairs_Bn2: np.ndarray,
    unseen_Bn: np.ndarray,
    space: CompositionSpace,
    k: int,
    point: OperatingPoint,
) -> tuple[list[dict[str, Any]], Tensor]:
    """The same records from the n best candidates of each image, best first, and the probability of the best one, [B].

    ``found`` are their scores, scores with bias and log-weights, [B, n] each. Probabilities are among these n.
    """
    scores_Bn, calibrated_Bn, log_weights_Bn = found
    unseen = torch.from_numpy(unseen_Bn).to(log_weights_Bn)
    probs = [(log_weights_Bn / s.temperature + s.bias * unseen).softmax(1) for s in point.scalings]
    pairs, sides = torch.from_numpy(pairs_Bn2), []
    for column, count in enumerate((space.num_attributes, space.num_objects)):
        prob_Bn = probs[1 + column]
        sides.append(prob_Bn.new_zeros(len(prob_Bn), count).scatter_add_(1, pairs[:, :, column], prob_Bn))
    values = tuple(x[:, :k] for x in (scores_Bn, calibrated_Bn, probs[0]))
    return _records(values, pairs_Bn2[:, :k], sides, space, k), probs[0][:, 0]


def _records(
    values: tuple[Tensor, ...], pairs_Bk2: np.ndarray, sides: list[Tensor], space: CompositionSpace, k: int
) -> list[dict[str, Any]]:
    named = {}
    for (kind, names), prob_BX in zip(space.vocabulary.items(), sides[-len(space.vocabulary) :], strict=True):
        named_Bk, index_Bk = (x.cpu() for x in top_pairs(prob_BX, k))
        named[kind] = [
            [{"name": names[i], "prob": round(p, 6)} for p, i in zip(ps, ids, strict=True)]
            for ps, ids in zip(named_Bk.tolist(), index_Bk.tolist(), strict=True)
        ]
    records = []
    for b, rows in enumerate(zip(*(x.cpu().tolist() for x in values), strict=True)):
        predictions = [
            {**space.label(pair), "score": score, "calibrated": calibrated, "prob": round(prob, 6)}
            for score, calibrated, prob, pair in zip(*rows, pairs_Bk2[b], strict=True)
        ]
        records.append({"predictions": predictions, **{kind: rows[b] for kind, rows in named.items()}})
    return records
