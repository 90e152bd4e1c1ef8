"""Prediction over folders: whole batches of files dealt out to the workers of a cluster through Ray Data."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.machines.jobs import placed
from cluster.machines.launch import check_packages, error_from_words, error_in_words
from cluster.machines.nodes import Ask
from cluster.machines.session import joins, session
from cluster.work.placement import Placement
from cluster.work.predictor import BATCH, Predictor, Request
from cluster.work.progress import Notice, Progress, quiet, unnoticed
from cluster.work.threads import threads_for
from czsl import __version__
from czsl.clip.weights import is_folder, weight_files
from czsl.data.files.predictions import Partial, question_of
from czsl.errors import CzslError
from czsl.runs.run import Run
from methods.loading import fingerprint


class _Actor:
    """What Ray Data starts on each worker: a row is a whole batch of file names, so that batches are the same everywhere."""

    def __init__(self, request: Request, root: str, placement: Placement):
        self.root, self.error = Path(root), ""
        try:
            check_packages()
            device = torch.device("cuda" if placement.gpu else "cpu")
            self.predictor = Predictor(request, device)
        except CzslError as error:  # travels as words: Ray would wrap it in a page of its own
            self.error = json.dumps(error_in_words(error))

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            out = [self.error or json.dumps(self.predictor.predict(self.root, json.loads(names))) for names in rows["names"]]
        except CzslError as error:
            out = [json.dumps(error_in_words(error))] * len(rows["index"])
        return {"index": rows["index"], "records": np.array(out, dtype=object)}


def predict_files(
    request: Request,
    root: Path,
    names: list[str],
    *,
    partial: Partial | None = None,
    progress: Progress = quiet,
    notice: Notice = unnoticed,
    **where: Any,
) -> Iterator[dict[str, Any]]:
    """Records of files below a root, in the order of ``names``, as they become ready.

    The root must be visible on every node. ``where`` are the arguments of :meth:`cluster.machines.nodes.Ask.of`, ``progress`` and
    ``notice`` are told about the nodes; the answers do not depend on the number of workers. Batches that ``partial`` (of
    :func:`partial_of` for the same request and files) holds are read back instead of computed; new ones are added to it.
    """
    batches = [names[i : i + BATCH] for i in range(0, len(names), BATCH)]
    if partial is not None:
        for records in partial.batches():
            yield from records
        batches = batches[partial.done :]
    for records in _computed(_pinned(request), root, batches, Ask.of(**where), progress, notice):
        if partial is not None:
            partial.add(records)
        yield from records


def partial_of(out: Path, request: Request, root: Path, names: list[str]) -> Partial:
    """What an interrupted prediction of the same files with the same weights and options left beside ``out``."""
    given = [x for x in (request.clip, request.clip_weights) if x]
    weights = [Path(x) for x in given if Path(x).is_file()] + [w for x in given if is_folder(x) for w in weight_files(Path(x))]
    index = Path(request.index) / "index.json" if request.index else None
    facts = {
        "czsl": __version__,
        "batch": BATCH,
        "request": asdict(_pinned(request)),
        "run": fingerprint(Run(request.run), request.checkpoint) if request.run else None,
        "clip": [(str(w), w.stat().st_size, w.stat().st_mtime_ns) for w in weights],
        "index": index.read_text(encoding="utf-8") if index else None,
    }
    return Partial(out, question_of(root, names, **facts))


def _pinned(request: Request) -> Request:
    """With a number of threads that does not depend on the workers."""
    threads = threads_for(Run(request.run)) if request.run else torch.get_num_threads()
    return replace(request, threads=threads)


def _computed(
    request: Request, root: Path, batches: list[list[str]], ask: Ask, progress: Progress, notice: Notice
) -> Iterator[list[dict[str, Any]]]:
    """Records of each batch, in order."""
    if not batches:
        return
    with session(ask.address) as ray:
        placement = placed(ray, ask, 0, progress, notice)
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
                **({} if joins(ask.address) or placement.spread else {"max_restarts": 0}),
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
