"""The settings of a prediction, as plain data. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from methods.adaptation.plan import Plan

BATCH = 32  # files per batch: fixed and padded, so that scores depend neither on the folder nor on the number of workers


@dataclass(frozen=True)
class PredictConfig:
    """Settings of a prediction, as plain data that travels to the workers.

    run : run folder, or None for zero-shot CLIP
    checkpoint : of the run
    clip, clip_weights : without a run
    space : label space in JSON form; without one, the run's own
    pairs : candidate pairs as names (of a class: ``["", "dog"]``); without them, the closed world of the space
    wanted : pairs as names, of the candidates: each record gets their score and probability among the candidates
    open_world : all pairs of the space
    index : folder of a composition index of the run, asked instead of scoring all pairs
    probes : cells of the index to visit, if not all that matter
    top : how many compositions, attributes and objects to name
    threads : CPU threads; 0 leaves torch's own choice
    orientation, background : how images are decoded (`czsl.data.photographs`), if not as the run remembers
    bias : on unseen pairs: ``val`` (the run's operating point, nothing without one), ``none`` or a number
    min_prob : records say whether the best composition is at least this probable (``sure``)
    adapt : an adaptation while testing: the images are one stream, in the given order
    state : file with the adaptation's state, which continues an earlier stream and is written at the end of this one
    reject : a detector of :mod:`czsl.evaluation.rejection` and the value below which an image shows no candidate (``rejected``)
    fast_jpeg : large JPEGs are decoded at a fraction of their size, which changes their pixels; records say so
    """

    run: str | None = None
    checkpoint: str = "best"
    clip: str = "tiny"
    clip_weights: str | None = None
    space: dict[str, Any] | None = None
    pairs: list[list[str]] | None = field(default=None, repr=False)
    wanted: list[list[str]] | None = None
    open_world: bool = False
    index: str | None = None
    probes: int | None = None
    top: int = 5
    threads: int = 0
    orientation: str | None = None
    background: str | None = None
    bias: str | float = "val"
    min_prob: float | None = None
    adapt: Plan | None = None
    state: str | None = None
    reject: tuple[str, float] | None = None
    fast_jpeg: bool = False


def for_encoding(config: PredictConfig) -> PredictConfig:
    """The settings of a predictor that only encodes images: it has no candidates."""
    return replace(config, pairs=[], wanted=None, open_world=False, index=None, adapt=None, state=None, bias="none")
