"""Image-sentence matching: accuracies on pairs and quadruples of ComVG, SVO-Probes, Winoground and VL-Checklist, and retrieval.

A score of NaN marks an image that cannot be read: every item with it counts as wrong. Letters: N images, C captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from czsl.data.files.match import MatchItem

Scores = Mapping[tuple[str, str], float]  # (image, caption) -> score
RECALLS = (1, 5, 10)


def right_answers(kind: str, items: Sequence[MatchItem], scores: Scores) -> dict[str, np.ndarray]:
    """Return which items are right, bool [items] by measure; a tie is wrong.

    Parameters
    ----------
    kind : {"comvg", "svo", "winoground", "vl-checklist"}
        ``winoground``: text score (each image prefers its own caption), image score (each caption its own image), group score (both);
        otherwise accuracy.
    items : sequence of MatchItem
    scores : mapping
        Scores of all images and captions of an item; NaN if one is missing.
    """

    def score(image: str, caption: str) -> float:
        return scores.get((image, caption), float("nan"))

    if kind == "winoground":
        s = np.array([[[score(i, c) for i in item.images] for c in item.captions] for item in items]).reshape(-1, 2, 2)
        text = (s[:, 0, 0] > s[:, 1, 0]) & (s[:, 1, 1] > s[:, 0, 1])
        image = (s[:, 0, 0] > s[:, 0, 1]) & (s[:, 1, 1] > s[:, 1, 0])
        return {"text": text, "image": image, "group": text & image}
    if kind == "vl-checklist":
        pairs = [(score(item.images[0], item.captions[0]), score(item.images[0], item.captions[1])) for item in items]
    else:
        pairs = [(score(item.images[0], item.captions[0]), score(item.images[1], item.captions[0])) for item in items]
    return {"accuracy": np.array([right > wrong for right, wrong in pairs], dtype=bool)}


def reranked(first: Sequence[float], second: Mapping[int, float], depth: int) -> list[int]:
    """Candidates, best first: by ``first``, of which the ``depth`` best are put in the order of ``second``.

    Where one of those has no second score the first order stays. Candidates without a first score (NaN) come last; ties keep their
    order.
    """
    known = np.nan_to_num(np.asarray(first, dtype=float), nan=-np.inf)
    order = np.argsort(-known, kind="stable").tolist()
    head = [i for i in order[:depth] if known[i] > -np.inf]
    if all(i in second for i in head):
        order[: len(head)] = sorted(head, key=lambda i: -second[i])
    return order


def recalls(ranks: Sequence[int | None]) -> dict[str, float]:
    """R@1, R@5 and R@10 from ranks (from 1) of what belongs to each question; None: it cannot be found."""
    return {f"R@{k}": float(np.mean([rank is not None and rank <= k for rank in ranks])) if ranks else 0.0 for k in RECALLS}


def difference_interval(ours: np.ndarray, theirs: np.ndarray, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean difference of two answers to the same items, by bootstrap of the items."""
    difference = ours.astype(float) - theirs.astype(float)
    values, counts = np.unique(difference, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(difference), counts / len(difference), size=resamples)
    low, high = np.quantile(draws @ values / len(difference), [0.025, 0.975])
    return float(low), float(high)
