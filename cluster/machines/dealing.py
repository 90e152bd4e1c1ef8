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


class _Actor:
    """What Ray Data starts on each worker: a row is a whole batch of file names, so that batches are the same everywhere."""

    def __init__(self, request: Request, source: ImageSource, placement: Placement):
        self.source, self.error = source, ""
        try:
            check_packages()
            device = torch.device("cuda" if placement.gpu else "cpu")
            self.predictor = Predictor(request, device)
        except CzslError as error:  # travels as words: Ray would wrap it in a page of its own
            self.error = json.dumps(error_in_words(error))

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            out = [self.error or json.dumps(self.predictor.predict(self.source, json.loads(names))) for names in rows["names"]]
        except CzslError as error:
            out = [json.dumps(error_in_words(error))] * len(rows["index"])
        return {"index": rows["index"], "records": np.array(out, dtype=object)}


def dealt_out(
    request: Request, source: ImageSource, batches: list[list[str]], ask: Ask, progress: Progress, notice: Notice
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
        rows = [{"index": i, "names": json.dumps(batch)} for i, batch in enumerate(batches)]
        workers = min(placement.workers, len(batches))
        with warnings.catch_warnings():
            # Ray is about to rename the way in which max_restarts is given.
            warnings.simplefilter("ignore", DeprecationWarning)
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_args=(request, source, placement),
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
                yield records
                due += 1
