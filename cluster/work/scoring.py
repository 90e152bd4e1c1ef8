"""Scoring a split: batches cut once and dealt out whole, pairs in tiles, each worker reduced to a few numbers an image."""

from __future__ import annotations

import numpy as np
import torch

from cluster.work.comm import Group
from cluster.work.progress import Progress, quiet
from cluster.work.source import Source
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
    batches = evaluation_batches(len(rows), eval_batch)
    mine = [(i, batches[i], np.unique(batches[i])) for i in range(comm.rank, len(batches), comm.world)]
    own = np.concatenate([np.empty(0, np.int64), *(images for _, _, images in mine)])
    # One for all batches: small arrays that stayed from each would split the heap's holes, which then no longer hold what texts that attend
    # to images need (70 MB a batch, never given back).
    accumulator = (
        ExtremesAccumulator(candidates, source.split.pairs[rows[own]], topk, rows[own], source.split.name) if mine else None
    )
    done = 0
    for i, places, unpadded in mine:
        images = method.image_side(source.image_features(rows[places]))
        filled, start = slice(done, done + len(unpadded)), 0
        for tile in tiles:
            scores_Bp = method.scores(images, text.tile(start, start + len(tile)))[: len(unpadded)]
            assert accumulator is not None
            accumulator.update(filled, tile, scores_Bp.float().cpu().numpy())
            start += len(tile)
        done = filled.stop
        progress(f"scoring {source.split.name} images", min((i + 1) * eval_batch, len(rows)), len(rows))
    method.train(was_training)
    found = comm.gather_objects(None if accumulator is None else accumulator.result())
    return Extremes.concatenate([part for part in found if part is not None])
