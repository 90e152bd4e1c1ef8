"""Synthetic candidate sets (label noise), drawn around the true labels of training images.

What is drawn for an image is a function of (seed, image id): neither the order of the images nor which others there are matters.
Letters: N images, C seen pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from czsl.data.files.partial_labels import Origin, PartialLabels, padded, split_sha256
from czsl.data.table import Dataset
from czsl.errors import DataError, UsageError

KINDS = ("uniform", "pair", "semantic")
SEMANTIC_TEMPERATURE = 0.05


def distractor_rates(kind: str, q: float, count: int, similarity_CC: np.ndarray | None = None) -> Callable[[int], np.ndarray]:
    """For a true label, the probability with which each label joins its candidate labels, float64 [C] (0 for the true one).

    Parameters
    ----------
    kind : str
        ``uniform``: q for every wrong label. ``pair``: q for the next label (the first one after the last), 0 for others.
        ``semantic``: (C - 1) q * softmax of the similarity / 0.05 over the wrong labels, at most 1: as many distractors as
        ``uniform`` expects, less what the limit cuts off, with most of them equal.
    q : float
        In [0, 1].
    count : int
        C.
    similarity_CC : float array, optional
        Cosines of the labels' texts, for ``semantic``.
    """

    def rates(label: int) -> np.ndarray:
        p_C = np.zeros(count)
        if kind == "uniform":
            p_C[:] = q
        elif kind == "pair":
            p_C[(label + 1) % count] = q
        else:
            assert similarity_CC is not None
            logits_C = similarity_CC[label].astype(np.float64) / SEMANTIC_TEMPERATURE
            logits_C[label] = -np.inf
            p_C = np.exp(logits_C - logits_C.max())
            p_C = np.minimum(1, (count - 1) * q * p_C / p_C.sum())
        p_C[label] = 0
        return p_C

    return rates


def generator(seed: int, image_id: str) -> np.random.Generator:
    """The draws of one image."""
    key = hashlib.blake2b(f"{seed}\n{image_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64)))


def draw(rng: np.random.Generator, label: int, rates_C: np.ndarray, force_one: bool, noise_rate: float) -> np.ndarray:
    """One candidate set, ascending.

    ``force_one``: if no distractor was drawn, draw one uniformly. ``noise_rate``: how often the true label leaves the set
    (a set that would be empty gets a wrong one).
    """
    C = len(rates_C)
    inside_C = rng.random(C) < rates_C
    # Drawn whether used or not, so that the switches leave the other draws as they are.
    other, leaves = (label + 1 + int(rng.integers(max(C - 1, 1)))) % C, rng.random() < noise_rate
    inside_C[label] = not leaves
    if C > 1 and ((force_one and not inside_C.sum() - inside_C[label]) or not inside_C.any()):
        inside_C[other] = True
    return np.flatnonzero(inside_C)


def make_partial_labels(
    data: Dataset,
    kind: str,
    q: float,
    seed: int,
    *,
    force_one: bool = False,
    noise_rate: float = 0.0,
    similarity_CC: np.ndarray | None = None,
) -> PartialLabels:
    """Candidate sets of the training images of a dataset; see :func:`distractor_rates` and :func:`draw`.

    Raises
    ------
    UsageError
        An unknown kind, a rate outside [0, 1], or ``semantic`` without similarities [C, C].
    DataError
        A training image whose pair is not among the training pairs, or a space with fewer than two of these.
    """
    space, split = data.space, data.split("train")
    count = len(space.train_pairs)
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}", "candidate sets cannot be drawn that way", f"one of: {', '.join(KINDS)}")
    for name, value in (("q", q), ("noise rate", noise_rate)):
        if not 0 <= value <= 1:
            raise UsageError(f"the {name} is {value}", "it is a probability", "give a number between 0 and 1")
    if kind == "semantic" and (similarity_CC is None or similarity_CC.shape != (count, count)):
        raise UsageError(
            "semantic candidate labels need similarities",
            f"an array [{count}, {count}] of the seen pairs",
            f"give an array [{count}, {count}] of the seen pairs",
        )
    true_N = space.locate(split.pairs, space.train_pairs)
    if count < 2 or (true_N < 0).any():
        raise DataError(
            f"{data.name} cannot be given candidate labels",
            f"{count} seen pairs, {(true_N < 0).sum()} images outside them",
            "give a dataset with two seen pairs or more and all training images labelled with them",
        )
    rates = distractor_rates(kind, q, count, similarity_CC)
    sets = [draw(generator(seed, i), c, rates(c), force_one, noise_rate) for i, c in zip(split.ids, true_N.tolist(), strict=True)]
    return PartialLabels(padded(sets), Origin(kind, q, seed, data.sha256, split_sha256(split.ids), force_one, noise_rate))
