"""Scoring a split as one stream that adapts: features by all workers, the stream by the first, the same result on every one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.progress import Progress, quiet
from cluster.work.scoring import PAIR_TILE, Collector
from czsl.data.batches import evaluation_batches
from czsl.errors import DataError
from czsl.evaluation import Candidates, Extremes, ExtremesAccumulator
from methods.adaptation.adaptation import Adaptation
from methods.adaptation.plan import Plan
from methods.adaptation.registry import adaptation_class
from methods.features import ImageFeatures, TextFeatures
from methods.method import Method
from methods.registry import check_adaptable

MAX_LOGITS = 1 << 26  # of a block of images with all candidates: 256 MiB


class Stream:
    """A method whose scores adapt from block to block.

    Parameters
    ----------
    method : Method
    plan : Plan
    text : TextFeatures
        Text features of the pairs that compete.
    more_PD : Tensor, optional
        Text features of further pairs that take part in the adaptation and get no scores (``released``).

    Raises
    ------
    UsageError
        A method that cannot be adapted.
    """

    def __init__(self, method: Method, plan: Plan, text: TextFeatures, more_PD: Tensor | None = None):
        check_adaptable(method.name)
        self.method, self.text = method, text
        texts = text.pair if more_PD is None else torch.cat([text.pair, more_PD])
        self.state: Adaptation = adaptation_class(plan.name)(texts, method.pair_scale, plan.settings)

    def scores(self, images: ImageFeatures, count: int) -> Tensor:
        """Return scores [count, P] of the first images of a padded batch, which come in this order; the rest is not looked at."""
        starts = range(0, len(self.text), PAIR_TILE)
        tiles = [self.method.logits(images, self.text.tile(s, s + PAIR_TILE))[0] for s in starts]
        unit_bD = images.pair[:count].to(self.state.text.dtype)
        if not bool(unit_bD.isfinite().all()):
            raise DataError(
                "image features hold NaN or infinity", "one such image would spoil all that follow", "look at the CLIP"
            )
        shifts_bP = self.state.shifts(unit_bD)[:, : len(self.text)]
        pair_BP = torch.cat(tiles, dim=1)
        pair_BP[:count] += shifts_bP
        return self.method.rescored(pair_BP, images, self.text)[:count]


def reduce_stream(
    method: Method,
    plan: Plan,
    loader: FeatureLoader,
    candidates: Candidates,
    eval_batch: int,
    comm: Group,
    progress: Progress = quiet,
    topk: int = 1,
    text: TextFeatures | None = None,
    collectors: Sequence[Callable[[np.ndarray, np.ndarray], Collector]] = (),
) -> tuple[Extremes, list[list[Any]]]:
    """Extremes of a whole split and the results of collectors, as :func:`cluster.work.scoring.reduce_split` has them.

    The state starts from nothing and is dropped at the end. Labels reach only the collectors, after the scores.
    """
    was_training = method.training
    method.eval()
    rows = np.arange(len(loader.split))
    with torch.inference_mode():
        features_ND = loader.features if loader.features is not None else loader.encode(rows, eval_batch)
        found = None
        if comm.rank == 0:
            found = _run(method, plan, features_ND, loader, candidates, eval_batch, progress, topk, text, collectors)
    method.train(was_training)
    return comm.from_first(found)


def _run(
    method: Method,
    plan: Plan,
    features_ND: Tensor,
    loader: FeatureLoader,
    candidates: Candidates,
    eval_batch: int,
    progress: Progress,
    topk: int,
    text: TextFeatures | None,
    collectors: Sequence[Callable[[np.ndarray, np.ndarray], Collector]],
) -> tuple[Extremes, list[list[Any]]]:
    order, labels = plan.order(len(features_ND)), loader.split.pairs
    if text is None:
        text = _encoded(method, candidates.pairs[candidates.order])
    rest = np.setdiff1d(np.arange(len(candidates.pairs)), candidates.order)
    more_PD = _encoded(method, candidates.pairs[rest]).pair if plan.settings.released and len(rest) else None
    stream, tiles = Stream(method, plan, text, more_PD), list(candidates.tiles(PAIR_TILE))
    accumulator = ExtremesAccumulator(candidates, labels, topk, source=loader.split.name)
    collecting = [make(labels, np.arange(len(labels))) for make in collectors]
    size = max(16, min(eval_batch, MAX_LOGITS // max(len(text), 1)))
    for places in evaluation_batches(len(order), size):
        rows, count = order[places], len(np.unique(places))
        images = method.embed_images(features_ND[torch.from_numpy(rows)].to(method.clip.device, method.clip.mean.dtype))
        scores_bP = stream.scores(images, count).float()
        as_numpy, start = scores_bP.cpu().numpy(), 0
        log_weights_bP = method.log_weights(scores_bP).cpu().numpy() if collecting else None
        for tile in tiles:
            cut = slice(start, start + len(tile))
            accumulator.update(rows[:count], tile, as_numpy[:, cut])
            for collector in collecting:
                assert log_weights_bP is not None
                collector.update(rows[:count], tile, log_weights_bP[:, cut], as_numpy[:, cut])
            start = cut.stop
        progress(f"{plan.name} on {loader.split.name} images", int(places[-1]) + 1, len(order))
    return accumulator.result(), [[collector.result()] for collector in collecting]


def _encoded(method: Method, pairs_P2: np.ndarray) -> TextFeatures:
    return method.encode_compositions(torch.from_numpy(pairs_P2.copy()).to(method.clip.device))
