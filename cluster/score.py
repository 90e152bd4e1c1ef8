"""Scoring a split: batches cut once and dealt out whole, pairs in tiles, each worker reduced to a few numbers an image."""

from __future__ import annotations

import numpy as np
import torch

from cluster.comm import Group
from cluster.source import Progress, Source, quiet
from czsl.data.batches import evaluation_batches
from czsl.evaluation import Candidates, Extremes, ExtremesAccumulator
from methods.method import Method
from methods.sides import TextSide

PAIR_TILE = 4096  # fixed, because the last bits of a score change with the width of its tile


@torch.inference_mode()
def encode_candidates(method: Method, candidates: Candidates) -> TextSide:
    """The text side of the pairs that compete, in the order of their tiles."""
    was_training = method.training
    method.eval()
    pairs = torch.from_numpy(candidates.pairs[candidates.order]).to(method.clip.device)
    text = method.encode_compositions(pairs)
    method.train(was_training)
    return text


@torch.inference_mode()
def score_split(
    method: Method,
    source: Source,
    candidates: Candidates,
    rows: np.ndarray,
    eval_batch: int,
    comm: Group,
    progress: Progress = quiet,
    topk: int = 1,
    text: TextSide | None = None,
) -> Extremes:
    """Extremes of the images ``rows`` of a split, identical on every worker and for any number of workers.

    Parameters
    ----------
    method : Method
    source : Source
    candidates : Candidates
        Competing pairs and their groups.
    rows : int array [N]
        Which images of the split.
    eval_batch : int
        Images a batch; the last batch is padded to it.
    topk : int, default 1
        Best seen and unseen pairs kept for each image.
    text : TextSide, optional
        What :func:`encode_candidates` made of these candidates, where several splits share them.
    """
    was_training = method.training
    method.eval()
    tiles = list(candidates.tiles(PAIR_TILE))
    text = encode_candidates(method, candidates) if text is None else text
    labels = source.split.pairs[rows]
    batches = evaluation_batches(len(rows), eval_batch)
    parts = []
    for i in range(comm.rank, len(batches), comm.world):
        places = batches[i]
        images = method.image_side(source.image_features(rows[places]))
        own = np.unique(places)
        accumulator = ExtremesAccumulator(candidates, labels[own], k=topk, index=rows[own], source=source.split.name)
        start = 0
        for tile in tiles:
            scores_Bp = method.scores(images, text.tile(start, start + len(tile)))[: len(own)]
            accumulator.update(slice(0, len(own)), tile, scores_Bp.float().cpu().numpy())
            start += len(tile)
        parts.append(accumulator.result())
        progress(f"scoring {source.split.name} images", min((i + 1) * eval_batch, len(rows)), len(rows))
    method.train(was_training)
    return Extremes.concatenate([part for share in comm.gather_objects(parts) for part in share])
