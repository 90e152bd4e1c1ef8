"""Scoring a split: batches cut once and dealt out whole, pairs in tiles, each worker reduced to a few numbers per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.progress import Progress, quiet
from czsl.data.batches import evaluation_batches
from czsl.evaluation import Candidates, Extremes, ExtremesAccumulator
from methods.features import TextFeatures
from methods.method import Method

PAIR_TILE = 4096  # fixed, because the last bits of a score change with the width of its tile


@torch.inference_mode()
def encode_candidates(method: Method, candidates: Candidates) -> TextFeatures:
    """The text features of the pairs that compete, in the order of their tiles."""
    was_training = method.training
    method.eval()
    pairs = torch.from_numpy(candidates.pairs[candidates.order]).to(method.clip.device)
    text = method.encode_compositions(pairs)
    method.train(was_training)
    return text


class Collector(Protocol):
    """Consumer of a split's tiles in addition to the extremes: :class:`czsl.evaluation.sums.SumsAccumulator` and its like."""

    def update(self, rows, pairs, log_weights_Bp: np.ndarray, scores_Bp: np.ndarray) -> None:
        """Take in log-weights and scores [B, p] of images (indices of the labels) for columns of the candidates."""

    def result(self) -> Any:
        """Return what is gathered from all workers."""


def score_split(
    method: Method,
    loader: FeatureLoader,
    candidates: Candidates,
    rows: np.ndarray,
    eval_batch: int,
    comm: Group,
    progress: Progress = quiet,
    topk: int = 1,
    text: TextFeatures | None = None,
) -> Extremes:
    """Extremes of the images ``rows`` of a split, identical on every worker and for any number of workers.

    Parameters
    ----------
    method : Method
    loader : FeatureLoader
    candidates : Candidates
        Competing pairs and their groups.
    rows : int array [N]
        Which images of the split.
    eval_batch : int
        Images in a batch; the last batch may be smaller (:func:`evaluation_batches`).
    topk : int, default 1
        Best seen and unseen pairs kept for each image.
    text : TextFeatures, optional
        What :func:`encode_candidates` made of these candidates, where several splits share them.
    """
    return reduce_split(method, loader, candidates, rows, eval_batch, comm, progress, topk, text)[0]


@torch.inference_mode()
def reduce_split(
    method: Method,
    loader: FeatureLoader,
    candidates: Candidates,
    rows: np.ndarray,
    eval_batch: int,
    comm: Group,
    progress: Progress = quiet,
    topk: int = 1,
    text: TextFeatures | None = None,
    collectors: Sequence[Callable[[np.ndarray, np.ndarray], Collector]] = (),
) -> tuple[Extremes, list[list[Any]]]:
    """:func:`score_split`, and for each of ``collectors`` the results of all workers.

    A collector is made from the labels [n, 2] of a worker's images and their indices [n] in the split.
    """
    was_training = method.training
    method.eval()
    tiles = list(candidates.tiles(PAIR_TILE))
    text = encode_candidates(method, candidates) if text is None else text
    batches = evaluation_batches(len(rows), eval_batch)
    mine = [(i, batches[i], np.unique(batches[i])) for i in range(comm.rank, len(batches), comm.world)]
    own = np.concatenate([np.empty(0, np.int64), *(images for _, _, images in mine)])
    # One for all batches: small arrays that stayed from each would split the heap's holes, which then no longer hold what texts that attend
    # to images need (70 MB per batch, never given back).
    accumulator = (
        ExtremesAccumulator(candidates, loader.split.pairs[rows[own]], topk, rows[own], loader.split.name) if mine else None
    )
    collecting = [make(loader.split.pairs[rows[own]], rows[own]) for make in collectors] if mine else []
    done = 0
    for i, places, unpadded in mine:
        images = method.embed_images(loader.image_features(rows[places]))
        filled, start = slice(done, done + len(unpadded)), 0
        for tile in tiles:
            scores_Bp = method.scores(images, text.tile(start, start + len(tile)))[: len(unpadded)]
            assert accumulator is not None
            as_numpy = scores_Bp.float().cpu().numpy()
            accumulator.update(filled, tile, as_numpy)
            if collecting:
                log_weights_Bp = method.log_weights(scores_Bp.float()).cpu().numpy()
                for collector in collecting:
                    collector.update(filled, tile, log_weights_Bp, as_numpy)
            start += len(tile)
        done = filled.stop
        progress(f"scoring {loader.split.name} images", min((i + 1) * eval_batch, len(rows)), len(rows))
    method.train(was_training)
    found = comm.gather_objects(None if accumulator is None else accumulator.result())
    extremes = Extremes.concatenate([part for part in found if part is not None])
    if not collectors:
        return extremes, []
    shares = [share for share in comm.gather_objects([c.result() for c in collecting]) if share]
    return extremes, [[share[i] for share in shares] for i in range(len(collectors))]
