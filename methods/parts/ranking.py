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


def marginals(scores_BP: Tensor, labels_P: Tensor, count: int) -> Tensor:
    """Probability of each primitive [B, count]: the softmax over candidate pairs, summed over the pairs that contain it."""
    prob_BP = scores_BP.double().softmax(dim=1)
    return prob_BP.new_zeros(len(scores_BP), count).index_add_(1, labels_P, prob_BP)


def rank_compositions(scores_BP: Tensor, pairs_P2: np.ndarray, space: CompositionSpace, k: int) -> list[dict[str, Any]]:
    """One record an image: its k best compositions, attributes and objects, best first."""
    pairs = torch.from_numpy(np.ascontiguousarray(pairs_P2)).to(scores_BP.device)
    values_Bk, places_Bk = (x.cpu() for x in top_pairs(scores_BP, k))
    sides = []
    for column, names in ((0, space.attributes), (1, space.objects)):
        prob_Bk, index_Bk = (x.cpu() for x in top_pairs(marginals(scores_BP, pairs[:, column], len(names)), k))
        sides.append(
            [
                [{"name": names[i], "prob": round(p, 6)} for p, i in zip(ps, ids, strict=True)]
                for ps, ids in zip(prob_Bk.tolist(), index_Bk.tolist(), strict=True)
            ]
        )
    records = []
    for b in range(len(scores_BP)):
        found = zip(values_Bk[b].tolist(), pairs_P2[places_Bk[b].numpy()], strict=True)
        predictions = [{"attr": space.attributes[a], "obj": space.objects[o], "score": score} for score, (a, o) in found]
        records.append({"predictions": predictions, "attributes": sides[0][b], "objects": sides[1][b]})
    return records
