"""A method with its candidates encoded once, which names what images show: the part of prediction that needs no cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.work.adapting import Stream
from cluster.work.feature_loader import arithmetic, autocast
from cluster.work.photographs import HALF, Photograph, Photographs, Preparation
from cluster.work.profile import Profile
from cluster.work.request import BATCH, PredictConfig
from cluster.work.scoring import PAIR_TILE
from czsl import __version__
from czsl.clip.known import known_clip
from czsl.clip.towers import Towers
from czsl.compositions import index_pairs, label_of
from czsl.data.files.predictions import failed
from czsl.data.inputs import ImageSource, as_source
from czsl.data.kept_features import FeatureStore, store_file
from czsl.data.paths import photographs_limit
from czsl.evaluation.operating import OperatingPoint
from czsl.precision import allow_tf32, fitting
from czsl.retrieval.index import CompositionIndex
from czsl.retrieval.topk import top_compositions
from czsl.runs.run import Run
from czsl.spaces import space_from_json
from methods.adaptation.state_file import load_state, save_state
from methods.building import build
from methods.features import ImageFeatures
from methods.fingerprint import fingerprint
from methods.loading import load
from methods.method import Method
from methods.parts.ranking import Ranking, rank_found
from methods.points import point_for

FOUND = 100  # compositions to query an index for; probabilities of primitives are among these


class Predictor:
    """An actor of Ray Data, or used directly.

    Parameters
    ----------
    config : PredictConfig
    device : torch device
    threads : int, default 0
        Number of threads that read and decode images, one for each core by default; no result depends on it.
    keep : bool, default False
        Keep the images' features in the cache folder and use those that are there.
    profile : Profile, optional
        Measures the phases.
    """

    def __init__(
        self, config: PredictConfig, device: torch.device, threads: int = 0, keep: bool = False, profile: Profile | None = None
    ):
        if config.threads:
            torch.set_num_threads(config.threads)
        self.profile = profile or Profile()
        with self.profile.phase("model"):
            self.config, run = config, None if config.run is None else Run(config.run)
            self.precision = fitting(device) if run is None else run.precision_on(device)
            allow_tf32(device, "auto" if run is None else run.config.precision)
            self.method = _method(config, keep, self.precision).to(device).eval()
            self.decode = self.method.decode.changed(config.orientation, config.background)
            space = self.method.space
            self.index = CompositionIndex.load(config.index) if config.index else None
            self.store = self._store(device) if keep else None
        self.threads = threads
        if self.index is not None:
            self.pairs = self.index.pairs
        elif config.pairs is not None:
            self.pairs = index_pairs(config.pairs, space.attributes, space.objects)
        else:
            self.pairs = space.pairs(config.open_world)
        with torch.inference_mode(), self.profile.phase("candidates"):
            encoded = self.pairs[:0] if self.index is not None else self.pairs
            self.text = self.method.encode_compositions(torch.from_numpy(encoded.copy()).to(device))
        self.point = OperatingPoint()
        if config.run is not None:
            layer = config.adapt.key if config.adapt else ""
            self.point = point_for(Run(config.run), config.checkpoint, config.open_world, config.bias, layer)
        elif not isinstance(config.bias, str):
            self.point = self.point.given(config.bias)
        self.unseen = self.method.unseen(self.pairs)
        asked = index_pairs(config.wanted or (), space.attributes, space.objects)
        self.wanted = space.locate(asked, self.pairs).tolist()
        self.stream = Stream(self.method, config.adapt, self.text) if config.adapt else None
        if self.stream is not None and config.state is not None:
            load_state(Path(config.state), self.stream.state, self._origin())

    def _store(self, device: torch.device) -> FeatureStore:
        """The features that earlier questions left: of the same tower, precision and preprocessing."""
        config, method = self.config, self.method
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        made_by = "" if type(method).image_features is Method.image_features and method.adapters is None else method.name
        if made_by and config.run is not None:
            made_by += fingerprint(Run(config.run), config.checkpoint)
        facts = (__version__, torch.__version__, method.clip.sha256, arithmetic(device, self.precision), card, made_by)
        how = (method.cache_key, self.decode.key, "fast-jpeg" if config.fast_jpeg else "")
        return FeatureStore(store_file(*facts, *how), photographs_limit())

    def predict(self, source: ImageSource | Path, names: list[str]) -> list[dict[str, Any]]:
        """A record for each of these images of a source (or below a folder); one that cannot be read costs only itself."""
        return next(self.records(source, [names])) if names else []

    def save_state(self) -> None:
        """Keep the state of the adaptation in the file that the settings name."""
        if self.stream is not None and self.config.state is not None:
            save_state(Path(self.config.state), self.stream.state, self._origin())

    def _origin(self) -> dict[str, str]:
        """Origin of a stored state, besides the adaptation."""
        assert self.config.adapt is not None
        space, config = self.method.space, self.config
        candidates = json.dumps([list(space.attributes), list(space.objects), self.pairs.tolist()])
        model = fingerprint(Run(config.run), config.checkpoint) if config.run else self.method.clip.sha256
        return {
            "adaptation": self.config.adapt.layer,
            "weights": model,
            "candidates": hashlib.sha256(candidates.encode()).hexdigest(),
        }

    def records(self, source: ImageSource | Path, batches: Iterable[list[str]]) -> Iterator[list[dict[str, Any]]]:
        """Records of each batch of at most `BATCH` images, in order."""
        return map(self.named, self.photographs(source, batches))

    def photographs(self, source: ImageSource | Path, batches: Iterable[list[str]]) -> Iterator[list[Photograph]]:
        """Images of each batch with their features, in order; the next ones are read while one is computed."""
        method, size = self.method, self.method.clip.image_size if self.config.fast_jpeg else None
        how = Preparation(method.prepare, self.decode, bool(method.cache_key), size)
        photographs = Photographs(
            how, self._features, halves=self._halves, store=self.store, threads=self.threads, profile=self.profile
        )
        return photographs.batches(as_source(source), batches)

    def named(self, batch: list[Photograph]) -> list[dict[str, Any]]:
        """Records of a batch of images that have their features; with an adaptation, batches come in the stream's order."""
        with self.profile.phase("ranking"):
            return self._records(batch)

    @torch.inference_mode()
    def _features(self, prepared: Mapping[str, Tensor]) -> Tensor:
        with autocast(self.method.clip.device, self.precision):
            return self.method.image_features(prepared)

    @torch.inference_mode()
    def _records(self, batch: list[Photograph]) -> list[dict[str, Any]]:
        good = [p for p in batch if p.features is not None]
        records = {p.name: self._failed(p) for p in batch if p.error is not None}
        if good:
            size = HALF if self._halves and len(good) <= HALF else BATCH
            padded = np.stack([p.features for p in good + [good[-1]] * (size - len(good)) if p.features is not None])
            images = self.method.embed_images(torch.from_numpy(padded).to(self.method.clip.device))
            found = self._scored(images, len(good)) if self.index is None else self._retrieved(images, len(good))
            reduced = {"decoding": "fast-jpeg"} if self.config.fast_jpeg else {}
            records |= {p.name: {"image": p.name, **r, **reduced, "error": None} for p, r in zip(good, found, strict=True)}
        return [records[p.name] for p in batch]

    def _failed(self, p: Photograph) -> dict[str, Any]:
        assert p.error is not None
        reason = f"{p.error.kind}: {p.error.reason}" if p.error.reason else p.error.kind
        return failed(p.name, reason, list(self.method.space.vocabulary))

    @property
    def _halves(self) -> bool:
        """Return whether a small batch may be padded to half the size: on a CPU products of 16 rows and of 32 end in the same digits."""
        return self.method.clip.device.type == "cpu"

    def _scored(self, images: ImageFeatures, count: int) -> list[dict[str, Any]]:
        """Records of the first ``count`` images from the scores of all candidates."""
        ranking = Ranking(self.pairs, self.method.space, self.config.top, self.point, self.unseen)
        wanted: dict[int, Tensor] = {}
        adapted_BP = self.stream.scores(images, count) if self.stream is not None else None
        for start in range(0, len(self.text), PAIR_TILE):
            if adapted_BP is None:
                scores_Bp = self.method.scores(images, self.text.tile(start, start + PAIR_TILE))[:count].float()
            else:
                scores_Bp = adapted_BP[:, start : start + PAIR_TILE].float()
            ranking.add(scores_Bp, self.method.log_weights(scores_Bp))
            wanted |= {p: scores_Bp[:, p - start] for p in self.wanted if start <= p < start + PAIR_TILE}
        records = ranking.records()
        detected = None if self.config.reject is None else ranking.detectors()[self.config.reject[0]]
        self._judge(records, ranking.confidence(), detected)
        for (a, o), p in zip(self.config.wanted or (), self.wanted, strict=True):
            unseen = torch.tensor([bool(self.unseen[p])], device=wanted[p].device)
            prob_B = ranking.probability(self.method.log_weights(wanted[p][:, None]), unseen)[:, 0]
            for record, score, prob in zip(records, wanted[p].tolist(), prob_B.tolist(), strict=True):
                calibrated = score + self.point.bias * bool(self.unseen[p])
                found = {**label_of(a, o), "score": score, "calibrated": calibrated, "prob": prob}
                record.setdefault("wanted", []).append(found)
        return records

    def _judge(self, records: list[dict[str, Any]], confidence_B: Tensor, detected_B: Tensor | None) -> None:
        """Note in each record whether its best composition is sure, if requested, and the operating point."""
        config = self.config
        for b, record in enumerate(records):
            doubts = []
            if config.min_prob is not None:
                doubts.append(float(confidence_B[b]) < config.min_prob)
            if config.reject is not None and detected_B is not None:
                record["rejected"] = float(detected_B[b]) < config.reject[1]
                doubts.append(record["rejected"])
            if doubts:
                record["sure"] = not any(doubts)
            record["operating_point"] = self.point.brief()

    def _retrieved(self, images: ImageFeatures, count: int) -> list[dict[str, Any]]:
        """Records of the first ``count`` images from the best candidates that the index finds."""
        assert self.index is not None
        asked = self.method.retrieval_query(images, self.text, len(self.pairs))
        parts = [None if x is None else _numpy(x)[:count] for x in (asked.query, asked.attribute, asked.object)]
        # Few candidates are all ranked, so that the probabilities are among all of them.
        k = len(self.pairs) if len(self.pairs) <= PAIR_TILE else max(FOUND, self.config.top)
        assert parts[0] is not None
        found = top_compositions(
            self.index,
            parts[0],
            parts[1],
            parts[2],
            k=k,
            probes=self.config.probes,
            probability=asked.probability,
            combine=asked.combine,
            bias=None if not self.point.bias else (self.point.bias, self.unseen),
        )
        calibrated_Bn, unseen_Bn = torch.from_numpy(found.scores), self.unseen[found.places]
        scores_Bn = torch.from_numpy(found.plain)
        if asked.bias:  # a model's own constant, e.g. SigLIP's
            scores_Bn, calibrated_Bn = scores_Bn + asked.bias, calibrated_Bn + asked.bias
        weights_Bn = self.method.log_weights(scores_Bn)
        values, space = (scores_Bn, calibrated_Bn, weights_Bn), self.method.space
        records, confidence_B = rank_found(values, self.pairs[found.places], unseen_Bn, space, self.config.top, self.point)
        self._judge(records, confidence_B, None)
        for record, visited in zip(records, found.visited, strict=True):
            record["retrieval"] = {"exact": found.exact, "visited": round(float(visited), 4)}
        return records


def _numpy(x: Tensor):
    return x.float().cpu().numpy()


def _method(config: PredictConfig, keep: bool, precision: str) -> Method:
    """The method of the settings; with ``keep`` a CLIP that nothing is computed with stays on the disk."""
    if config.run is None:
        assert config.space is not None
        clip = _towers(config.clip, config.clip_weights, keep)
        clip.compute_in(precision)
        return build("zero-shot", space_from_json(config.space), clip, {})
    run = Run(config.run)
    # Other methods take words from the text tower when they are built.
    known = _towers(run.config.clip, run.config.clip_weights, keep) if keep and run.config.method == "zero-shot" else None
    method = load(run, config.checkpoint, known, precision)
    return method if config.space is None else method.for_space(space_from_json(config.space))


def _towers(name: str, weights: str | None, keep: bool) -> Towers:
    def load_now() -> Towers:
        from czsl.clip.loading import load_clip  # open_clip takes a second to import

        return load_clip(name, weights, features=True)

    return known_clip(name, weights, load_now) if keep else load_now()
