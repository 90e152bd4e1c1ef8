"""Whole batches of files dealt out to the workers of a cluster through Ray Data."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cluster.machines.jobs import tell_waiting
from cluster.machines.launch import check_packages, error_from_words, error_in_words
from cluster.machines.nodes import Ask, await_placement
from cluster.machines.session import joins, session
from cluster.work.placement import Placement
from cluster.work.predictor import Predictor, Request
from cluster.work.progress import Notice, Progress
from czsl.data.inputs import ImageSource
from czsl.errors import CzslError

MOST_TOGETHER = 8  # batches in a row: while one is computed, the threads read the next


class _Actor:
    """Actor that Ray Data starts on each worker: a row is a few whole batches of file names, so that batches are the same everywhere."""

    def __init__(self, request: Request, source: ImageSource, placement: Placement, keep: bool):
        self.source, self.error = source, ""
        try:
            check_packages()
            device = torch.device("cuda" if placement.gpu else "cpu")
            # Beside a GPU all of the node's cores may read, on a CPU those of the worker.
            self.predictor = Predictor(request, device, 0 if placement.gpu else placement.threads, keep)
        except CzslError as error:  # travels as words: Ray would wrap it in a page of its own
            self.error = json.dumps(error_in_words(error))

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            out = [self.error or json.dumps(self._records(json.loads(batches))) for batches in rows["batches"]]
        except CzslError as error:
            out = [json.dumps(error_in_words(error))] * len(rows["index"])
        return {"index": rows["index"], "records": np.array(out, dtype=object)}

    def _records(self, batches: list[list[str]]) -> list[list[dict[str, Any]]]:
        return list(self.predictor.records(self.source, batches))


def dealt_out(
    request: Request,
    source: ImageSource,
    batches: list[list[str]],
    ask: Ask,
    progress: Progress,
    notice: Notice,
    keep: bool = True,
) -> Iterator[list[dict[str, Any]]]:
    """Records of each batch of file names, in order, as they become ready."""
    with session(ask.address) as connected:
        placement = await_placement(connected, ask, on_wait=lambda state: tell_waiting(state, progress))
        if placement.note:
            notice(placement.note)
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters comes back as records
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        workers = min(placement.workers, len(batches))
        some = max(1, min(MOST_TOGETHER, len(batches) // (4 * workers)))
        parts = [batches[i : i + some] for i in range(0, len(batches), some)]
        rows = [{"index": i, "batches": json.dumps(part)} for i, part in enumerate(parts)]
        with warnings.catch_warnings():
            # Ray is about to rename the way in which max_restarts is given.
            warnings.simplefilter("ignore", DeprecationWarning)
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_args=(request, source, placement, keep),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=placement.threads if not placement.gpu else 1,
                num_gpus=1 if placement.gpu else 0,
                # On this machine alone a worker that died would die again; Ray prints an error line for any that may restart.
                **({} if joins(ask.address) or placement.spread else {"max_restarts": 0}),  # type: ignore[arg-type]
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
