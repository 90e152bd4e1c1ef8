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


def marginals(prob_BP: Tensor, labels_P: Tensor, count: int) -> Tensor:
    """Probability of each primitive [B, count]: the sum over the candidate pairs that contain it."""
    return prob_BP.new_zeros(len(prob_BP), count).index_add_(1, labels_P, prob_BP)


def rank_compositions(
    scores_BP: Tensor, prob_BP: Tensor, pairs_P2: np.ndarray, space: CompositionSpace, k: int
) -> list[dict[str, Any]]:
    """One record an image from its scores and probabilities: its k best compositions, attributes and objects (or classes), best first."""
    pairs = torch.from_numpy(np.ascontiguousarray(pairs_P2)).to(scores_BP.device)
    values_Bk, places_Bk = (x.cpu() for x in top_pairs(scores_BP, k))
    sides = [marginals(prob_BP, pairs[:, c], n) for c, n in enumerate((space.num_attributes, space.num_objects))]
    return _records(values_Bk, pairs_P2[places_Bk.numpy()], sides, space, k)


def rank_found(
    scores_Bn: Tensor, prob_Bn: Tensor, pairs_Bn2: np.ndarray, space: CompositionSpace, k: int
) -> list[dict[str, Any]]:
    """The same records from the n best candidates of each image, best first; probabilities are among these n."""
    pairs, sides = torch.from_numpy(pairs_Bn2), []
    for column, count in enumerate((space.num_attributes, space.num_objects)):
        sides.append(prob_Bn.new_zeros(len(prob_Bn), count).scatter_add_(1, pairs[:, :, column], prob_Bn))
    return _records(scores_Bn[:, :k], pairs_Bn2[:, :k], sides, space, k)


def _records(
    scores_Bk: Tensor, pairs_Bk2: np.ndarray, sides: list[Tensor], space: CompositionSpace, k: int
) -> list[dict[str, Any]]:
    named = {}
    for (kind, names), prob_BX in zip(space.vocabulary.items(), sides[-len(space.vocabulary) :], strict=True):
        prob_Bk, index_Bk = (x.cpu() for x in top_pairs(prob_BX, k))
        named[kind] = [
            [{"name": names[i], "prob": round(p, 6)} for p, i in zip(ps, ids, strict=True)]
            for ps, ids in zip(prob_Bk.tolist(), index_Bk.tolist(), strict=True)
        ]
    records = []
    for b, scores in enumerate(scores_Bk.tolist()):
        found = zip(scores, pairs_Bk2[b], strict=True)
        predictions = [{**space.label(pair), "score": score} for score, pair in found]
        records.append({"predictions": predictions, **{kind: rows[b] for kind, rows in named.items()}})
    return records
