"""Prediction over folders: whole batches of files dealt out to the workers of a cluster through Ray Data."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.launch import check_packages, error_from_words, error_in_words
from cluster.session import Placement, place, session
from czsl.clip.backbone import load_clip
from czsl.compositions import CompositionSpace, index_pairs
from czsl.data.images import BadImage, decode, read_image_file
from czsl.data.predictions import failed
from czsl.errors import CzslError
from czsl.runs.run import Run
from methods.building import build
from methods.loading import load
from methods.method import Method
from methods.parts.ranking import rank_compositions

BATCH = 32  # files a batch: fixed and padded, so that scores depend neither on the folder nor on the number of workers
PAIR_TILE = 4096


@dataclass(frozen=True)
class Request:
    """What to predict with, as plain data that travels to the workers.

    run : run folder, or None for zero-shot CLIP
    checkpoint : of the run
    clip, clip_weights : without a run
    space : label space in JSON form; without one, the run's own
    pairs : candidate pairs as names; without them, the closed world of the space
    open_world : all pairs of the space
    top : how many compositions, attributes and objects to name
    """

    run: str | None = None
    checkpoint: str = "best"
    clip: str = "tiny"
    clip_weights: str | None = None
    space: dict[str, Any] | None = None
    pairs: list[list[str]] | None = field(default=None, repr=False)
    open_world: bool = False
    top: int = 5


class Predictor:
    """A method with its candidates encoded once; an actor of Ray Data, or used directly.

    Parameters
    ----------
    request : Request
    device : torch device
    threads : int
        CPU threads; 0 leaves torch's own choice.
    """

    def __init__(self, request: Request, device: torch.device, threads: int = 0):
        if threads:
            torch.set_num_threads(threads)
        self.request, self.method = request, _method(request).to(device).eval()
        space = self.method.space
        if request.pairs is not None:
            self.pairs = index_pairs(request.pairs, space.attributes, space.objects)
        else:
            self.pairs = space.pairs(request.open_world)
        with torch.inference_mode():
            self.text = self.method.encode_compositions(torch.from_numpy(self.pairs.copy()).to(device))

    @torch.inference_mode()
    def predict(self, root: Path, names: list[str]) -> list[dict[str, Any]]:
        """A record for each file below the root; one that cannot be read costs itself alone."""
        prepared, good, records = [], [], {}
        for name in names:
            try:
                prepared.append(self.method.prepare(decode(read_image_file(root / name)), name))
                good.append(name)
            except BadImage as error:
                records[name] = failed(name, f"{error.kind}: {error.reason}" if error.reason else error.kind)
        if good:
            padded = prepared + [prepared[-1]] * (BATCH - len(prepared))
            batch = {key: torch.stack([p[key] for p in padded]) for key in padded[0]}
            images = self.method.encode_images(batch)
            tiles = [self.text.tile(s, s + PAIR_TILE) for s in range(0, len(self.text), PAIR_TILE)]
            scores_BP = torch.cat([self.method.scores(images, tile) for tile in tiles], dim=1)[: len(good)].float()
            found = rank_compositions(scores_BP, self.pairs, self.method.space, self.request.top)
            records |= {name: {"image": name, **record, "error": None} for name, record in zip(good, found, strict=True)}
        return [records[name] for name in names]


def _method(request: Request) -> Method:
    if request.run is None:
        assert request.space is not None
        clip = load_clip(request.clip, request.clip_weights)
        return build("zero-shot", CompositionSpace.from_json(request.space), clip, {})
    method = load(Run(request.run), request.checkpoint)
    return method if request.space is None else method.for_space(CompositionSpace.from_json(request.space))


class _Actor:
    """What Ray Data starts on each worker: a row is a whole batch of file names, so that batches are the same everywhere."""

    def __init__(self, request: Request, root: str, placement: Placement):
        self.root, self.error = Path(root), ""
        try:
            check_packages()
            device = torch.device("cuda" if placement.gpu else "cpu")
            self.predictor = Predictor(request, device, placement.threads)
        except CzslError as error:  # travels as words: Ray would wrap it in a page of its own
            self.error = json.dumps(error_in_words(error))

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.error:
            out = [self.error] * len(rows["index"])
        else:
            out = [json.dumps(self.predictor.predict(self.root, json.loads(names))) for names in rows["names"]]
        return {"index": rows["index"], "records": np.array(out, dtype=object)}


def predict_files(
    request: Request,
    root: Path,
    names: list[str],
    *,
    nodes: int = 1,
    workers_per_node: int | None = None,
    address: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of files below a root, in the order of ``names``, as they become ready.

    The root must be visible on every node. The answers do not depend on the number of workers.
    """
    batches = [names[i : i + BATCH] for i in range(0, len(names), BATCH)]
    with session(address) as ray:
        placement = place(ray, nodes, workers_per_node)
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters comes back as records
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        rows = [{"index": i, "names": json.dumps(batch)} for i, batch in enumerate(batches)]
        workers = min(placement.workers, len(batches))
        with warnings.catch_warnings():
            # Ray is about to rename the way in which max_restarts is given.
            warnings.simplefilter("ignore", DeprecationWarning)
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_args=(request, str(root), placement),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=placement.threads if not placement.gpu else 1,
                num_gpus=1 if placement.gpu else 0,
                # On this machine alone a worker that died would die again; Ray prints an error line for any that may restart.
                **({} if address or placement.spread else {"max_restarts": 0}),
            )
        waiting: dict[int, str] = {}
        due = 0
        for row in dataset.iter_rows():
            waiting[int(row["index"])] = row["records"]
            while due in waiting:
                records = json.loads(waiting.pop(due))
                if isinstance(records, dict):
                    raise error_from_words(records)
                yield from records
                due += 1
