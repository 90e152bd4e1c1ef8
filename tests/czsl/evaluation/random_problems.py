"""Small random problems, ties included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from czsl.compositions import CompositionSpace


@dataclass
class Problem:
    space: CompositionSpace
    pairs: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    feasibility: np.ndarray
    open_world: bool

    @property
    def seen(self):
        return self.space.seen_mask(self.pairs)

    @property
    def allowed(self):
        return np.ones(len(self.pairs), bool) if self.open_world else self.space.split_mask(self.pairs, "test")

    @property
    def true(self):
        return self.space.locate(self.labels, self.pairs)

    def inputs(self):
        return {
            "scores": self.scores,
            "labels": self.labels,
            "space": self.space,
            "pairs": self.pairs,
            "open_world": self.open_world,
        }


def make_problem(seed: int, kind: str = "ties", open_world: bool = False, images: int = 10) -> Problem:
    """At least three seen and three unseen pairs of the split, an image of each group, pairs in random order.

    ``ties``: scores on a grid of 1/2; ``cosine``: on a grid of 1e-5, equal only after +1000; ``smooth``: all different; ``negative``:
    a grid around 0.
    """
    rng = np.random.default_rng(seed)
    A, O = rng.integers(3, 5, size=2)
    keys = rng.permutation(A * O)
    pair = lambda chosen: np.stack(divmod(chosen, O), axis=1)  # noqa: E731
    train, test, val = keys[:3], np.append(keys[3:6], keys[0]), np.append(keys[6:8], keys[1])
    space = CompositionSpace(
        tuple(f"a{i}" for i in range(A)), tuple(f"o{i}" for i in range(O)), pair(train), pair(val), pair(test)
    )
    pairs = rng.permutation(space.pairs(open_world))
    labels = pair(np.concatenate([train[:1], test[:1], rng.choice(np.append(train, test), images - 2)]))
    shape = (images, len(pairs))
    scores = {
        "ties": lambda: rng.integers(20, 24, shape) / 2,
        "cosine": lambda: 0.2 + rng.integers(0, 30, shape) * 1e-5,
        "smooth": lambda: rng.normal(20, 3, shape),
        "negative": lambda: rng.integers(-2, 3, shape) / 2,
    }[kind]()
    feasibility = np.where(space.seen_mask(pairs), 0, rng.integers(-3, 8, len(pairs)) / 8)
    return Problem(space, pairs, scores.astype(np.float32), labels, feasibility.astype(np.float32), open_world)


def problems(kinds=("ties", "cosine", "smooth", "negative"), worlds=(False, True)):
    return st.builds(
        make_problem,
        st.integers(0, 2**32 - 1),
        st.sampled_from(kinds),
        st.sampled_from(worlds),
        st.integers(2, 12),
    )
