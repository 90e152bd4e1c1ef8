"""A method with its candidates encoded once, which names what images show: the part of prediction that needs no cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.work.scoring import PAIR_TILE
from czsl.clip.backbone import load_clip
from czsl.compositions import index_pairs, label_of
from czsl.data.files.predictions import failed
from czsl.data.images import BadImage, decode, read_image_file
from czsl.retrieval.index import CompositionIndex
from czsl.retrieval.topk import top_compositions
from czsl.runs.run import Run
from czsl.spaces import space_from_json
from methods.building import build
from methods.loading import load
from methods.method import Method
from methods.parts.ranking import Ranking, rank_found
from methods.sides import ImageSide

BATCH = 32  # files a batch: fixed and padded, so that scores depend neither on the folder nor on the number of workers
HALF = 16
FOUND = 100  # compositions an index is asked for; probabilities of primitives are among these


@dataclass(frozen=True)
class Request:
    """What to predict with, as plain data that travels to the workers.

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


class Predictor:
    """An actor of Ray Data, or used directly.

    Parameters
    ----------
    request : Request
    device : torch device
    """

    def __init__(self, request: Request, device: torch.device):
        if request.threads:
            torch.set_num_threads(request.threads)
        self.request, self.method = request, _method(request).to(device).eval()
        space = self.method.space
        self.index = CompositionIndex.load(request.index) if request.index else None
        if self.index is not None:
            self.pairs = self.index.pairs
        elif request.pairs is not None:
            self.pairs = index_pairs(request.pairs, space.attributes, space.objects)
        else:
            self.pairs = space.pairs(request.open_world)
        with torch.inference_mode():
            encoded = self.pairs[:0] if self.index is not None else self.pairs
            self.text = self.method.encode_compositions(torch.from_numpy(encoded.copy()).to(device))
        asked = index_pairs(request.wanted or (), space.attributes, space.objects)
        self.wanted = space.locate(asked, self.pairs).tolist()

    @torch.inference_mode()
    def predict(self, root: Path, names: list[str]) -> list[dict[str, Any]]:
        """A record for each file below the root; one that cannot be read costs itself alone."""
        prepared, good, records = [], [], {}
        for name in names:
            try:
                prepared.append(self.method.prepare(decode(read_image_file(root / name)), name))
                good.append(name)
            except BadImage as error:
                reason = f"{error.kind}: {error.reason}" if error.reason else error.kind
                records[name] = failed(name, reason, list(self.method.space.vocabulary))
        if good:
            padded = prepared + [prepared[-1]] * (self._padded(len(prepared)) - len(prepared))
            images = self.method.encode_images({key: torch.stack([p[key] for p in padded]) for key in padded[0]})
            found = self._scored(images, len(good)) if self.index is None else self._retrieved(images, len(good))
            records |= {name: {"image": name, **record, "error": None} for name, record in zip(good, found, strict=True)}
        return [records[name] for name in names]

    def _padded(self, count: int) -> int:
        """Images to compute for ``count``: on a CPU products of 16 rows and of 32 end in the same digits, so few images cost half."""
        return HALF if count <= HALF and self.method.clip.device.type == "cpu" else BATCH

    def _scored(self, images: ImageSide, count: int) -> list[dict[str, Any]]:
        """Records of the first ``count`` images from the scores of all candidates."""
        ranking = Ranking(self.pairs, self.method.space, self.request.top)
        wanted: dict[int, Tensor] = {}
        for start in range(0, len(self.text), PAIR_TILE):
            scores_Bp = self.method.scores(images, self.text.tile(start, start + PAIR_TILE))[:count].float()
            ranking.add(scores_Bp, self.method.log_weights(scores_Bp))
            wanted |= {p: scores_Bp[:, p - start] for p in self.wanted if start <= p < start + PAIR_TILE}
        records = ranking.records()
        for (a, o), p in zip(self.request.wanted or (), self.wanted, strict=True):
            prob_B = ranking.probability(self.method.log_weights(wanted[p][:, None]))[:, 0]
            for record, score, prob in zip(records, wanted[p].tolist(), prob_B.tolist(), strict=True):
                record.setdefault("wanted", []).append({**label_of(a, o), "score": score, "prob": prob})
        return records

    def _retrieved(self, images: ImageSide, count: int) -> list[dict[str, Any]]:
        """Records of the first ``count`` images from the best candidates that the index finds."""
        assert self.index is not None
        asked = self.method.retrieval_query(images, self.text, len(self.pairs))
        parts = [None if x is None else _numpy(x)[:count] for x in (asked.query, asked.attribute, asked.object)]
        # Few candidates are all ranked, so that the probabilities are among all of them.
        k = len(self.pairs) if len(self.pairs) <= PAIR_TILE else max(FOUND, self.request.top)
        assert parts[0] is not None
        found = top_compositions(
            self.index,
            parts[0],
            parts[1],
            parts[2],
            k=k,
            probes=self.request.probes,
            probability=asked.probability,
            combine=asked.combine,
        )
        scores_Bn = torch.from_numpy(found.scores)
        prob_Bn = self.method.probabilities(scores_Bn)
        records = rank_found(scores_Bn, prob_Bn, self.pairs[found.places], self.method.space, self.request.top)
        for record, visited in zip(records, found.visited, strict=True):
            record["retrieval"] = {"exact": found.exact, "visited": round(float(visited), 4)}
        return records


def _numpy(x: Tensor):
    return x.float().cpu().numpy()


def _method(request: Request) -> Method:
    if request.run is None:
        assert request.space is not None
        clip = load_clip(request.clip, request.clip_weights)
        return build("zero-shot", space_from_json(request.space), clip, {})
    method = load(Run(request.run), request.checkpoint)
    return method if request.space is None else method.for_space(space_from_json(request.space))
