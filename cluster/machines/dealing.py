"""Whole batches of files dealt out to the workers of a cluster through Ray Data."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cluster.machines.jobs import tell_waiting
from cluster.machines.launch import check_packages, error_from_words, error_in_words
from cluster.machines.nodes import NodeRequest, await_placement
from cluster.machines.session import joins, session
from cluster.work.photographs import Photograph
from cluster.work.placement import Placement
from cluster.work.predictor import Predictor
from cluster.work.progress import Notice, Progress
from cluster.work.request import PredictConfig, for_encoding
from czsl.data.images import BadImage
from czsl.data.inputs import ImageSource
from czsl.errors import CzslError

BatchFunction = Callable[[Predictor, ImageSource, list[list[str]]], tuple[str, bytes]]

MAX_TOGETHER = 8  # batches in a row: while one is computed, the threads read the next


@dataclass(frozen=True)
class PredictionJob:
    """A prediction that workers share.

    config : settings of the prediction
    source, batches : the images, as whole batches of file names
    request : the nodes and workers
    progress, notice : called while nodes are awaited, and with what the user should read about them
    keep : image features are kept in the cache folder of each node
    """

    config: PredictConfig
    source: ImageSource
    batches: list[list[str]]
    request: NodeRequest
    progress: Progress
    notice: Notice
    keep: bool = True


class _Actor:
    """Actor that Ray Data starts on each worker: a row is a few whole batches of file names, so that batches are the same everywhere.

    ``function`` makes a text and an array of the batches of a row; an error travels as a text only.
    """

    def __init__(self, config: PredictConfig, source: ImageSource, placement: Placement, keep: bool, function: BatchFunction):
        self.source, self.function, self.error = source, function, ""
        try:
            check_packages()
            device = torch.device("cuda" if placement.gpu else "cpu")
            # Beside a GPU all of the node's cores may read, on a CPU those of the worker.
            self.predictor = Predictor(config, device, 0 if placement.gpu else placement.threads, keep)
        except CzslError as error:  # travels as words: Ray would wrap it in a page of its own
            self.error = json.dumps(error_in_words(error))

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            answers = [self._of(json.loads(batches)) for batches in rows["batches"]]
        except CzslError as error:
            answers = [(json.dumps(error_in_words(error)), b"")] * len(rows["index"])
        texts, arrays = (np.array(column, dtype=object) for column in zip(*answers, strict=True))
        return {"index": rows["index"], "text": texts, "array": arrays}

    def _of(self, batches: list[list[str]]) -> tuple[str, bytes]:
        return (self.error, b"") if self.error else self.function(self.predictor, self.source, batches)


def dealt_out(job: PredictionJob) -> Iterator[list[dict[str, Any]]]:
    """Records of each batch of file names, in order, as they become ready."""
    for text, _ in _dealt(_records, job):
        yield from text


def encoded_out(job: PredictionJob) -> Iterator[list[Photograph]]:
    """Images of each batch of file names with their features, in order, as they become ready."""
    for text, array in _dealt(_photographs, replace(job, config=for_encoding(job.config))):
        features = iter(np.load(io.BytesIO(array), allow_pickle=False) if array else ())
        for batch in text:
            yield [
                Photograph(name, features=next(features)) if error is None else Photograph(name, error=BadImage(*error))
                for name, error in batch
            ]


def _records(predictor: Predictor, source: ImageSource, batches: list[list[str]]) -> tuple[str, bytes]:
    return json.dumps(list(predictor.records(source, batches))), b""


def _photographs(predictor: Predictor, source: ImageSource, batches: list[list[str]]) -> tuple[str, bytes]:
    """Names and errors of the images, and the features [n, ...] of those without an error."""
    found = list(predictor.photographs(source, batches))
    errors = [[(p.name, None if p.error is None else (p.error.kind, p.error.reason)) for p in batch] for batch in found]
    features, file = [p.features for batch in found for p in batch if p.features is not None], io.BytesIO()
    if features:
        np.save(file, np.stack(features), allow_pickle=False)
    return json.dumps(errors), file.getvalue()


def _dealt(function: BatchFunction, job: PredictionJob) -> Iterator[tuple[list[Any], bytes]]:
    """Answers to each row of batches, in order; an error of a worker is raised here."""
    with session(job.request.address) as connected:
        placement = await_placement(connected, job.request, on_wait=lambda state: tell_waiting(state, job.progress))
        if placement.note:
            job.notice(placement.note)
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # records hold what matters
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        workers = min(placement.workers, len(job.batches))
        some = max(1, min(MAX_TOGETHER, len(job.batches) // (4 * workers)))
        parts = [job.batches[i : i + some] for i in range(0, len(job.batches), some)]
        rows = [{"index": i, "batches": json.dumps(part)} for i, part in enumerate(parts)]
        with warnings.catch_warnings():
            # Ray is about to rename the way in which max_restarts is given.
            warnings.simplefilter("ignore", DeprecationWarning)
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_args=(job.config, job.source, placement, job.keep, function),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=placement.threads if not placement.gpu else 1,
                num_gpus=1 if placement.gpu else 0,
                # On a single machine a worker that died would die again; Ray prints an error line for any that may restart.
                **({} if joins(job.request.address) or placement.spread else {"max_restarts": 0}),  # type: ignore[arg-type]
            )
        waiting: dict[int, tuple[str, bytes]] = {}
        due = 0
        for row in dataset.iter_rows():
            waiting[int(row["index"])] = row["text"], row["array"]
            while due in waiting:
                text, array = waiting.pop(due)
                found = json.loads(text)
                if isinstance(found, dict):
                    raise error_from_words(found)
                yield found, array
                due += 1
