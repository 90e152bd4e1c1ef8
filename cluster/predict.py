"""Prediction over folders: in this process, or whole batches of files dealt out to the workers of a cluster through Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cluster.machines.dealing import Work, dealt_out, encoded_out
from cluster.machines.here import own_device
from cluster.machines.launch import check_packages
from cluster.machines.nodes import Ask
from cluster.work.predictor import BATCH, Predictor, Request
from cluster.work.profile import Profile
from cluster.work.progress import Notice, Progress, quiet, unnoticed
from cluster.work.threads import cpu_threads, threads_for
from czsl import __version__
from czsl.clip.weights import is_folder, weight_files
from czsl.data.files.predictions import Partial, question_of
from czsl.data.inputs import ImageSource, as_source
from czsl.runs.run import Run
from methods.fingerprint import fingerprint
from methods.loading import point_for


def predict_files(
    request: Request,
    source: ImageSource | Path,
    names: list[str],
    *,
    partial: Partial | None = None,
    progress: Progress = quiet,
    notice: Notice = unnoticed,
    keep: bool = True,
    profile: Profile | None = None,
    **where: Any,
) -> Iterator[dict[str, Any]]:
    """Records of images of a source (or below a folder), in the order of ``names``, as they become ready.

    The source's files must be visible on every node. ``where`` are the arguments of :meth:`cluster.machines.nodes.Ask.of`, ``progress`` and
    ``notice`` are called about the nodes; the answers do not depend on the number of workers. Batches that ``partial`` (of
    :func:`partial_of` for the same request and files) holds are read back instead of computed; new ones are added to it.

    ``keep``: image features are kept in the cache folder of each node, and those that are there are used: a second question about the
    same images encodes only new ones. ``profile`` measures a worker in this process.
    """
    source = as_source(source)
    batches = [names[i : i + BATCH] for i in range(0, len(names), BATCH)]
    if partial is not None:
        for records in partial.batches():
            yield from records
        batches = batches[partial.done :]
    work = Work(_pinned(request), source, batches, Ask.of(**where), progress, notice, keep)
    for records in _computed(work, profile):
        if partial is not None:
            partial.add(records)
        yield from records


def partial_of(out: Path, request: Request, source: ImageSource | Path, names: list[str]) -> Partial:
    """Return the partial results next to ``out`` of an interrupted prediction of the same files, weights and options."""
    given = [x for x in (request.clip, request.clip_weights) if x]
    weights = [Path(x) for x in given if Path(x).is_file()] + [w for x in given if is_folder(x) for w in weight_files(Path(x))]
    index = Path(request.index) / "index.json" if request.index else None
    facts = {
        "czsl": __version__,
        "batch": BATCH,
        "fields": "score prob",  # of a composition in a record
        "request": asdict(_pinned(request)),
        "run": fingerprint(Run(request.run), request.checkpoint) if request.run else None,
        "clip": [(str(w), w.stat().st_size, w.stat().st_mtime_ns) for w in weights],
        "index": index.read_text(encoding="utf-8") if index else None,
        "point": point_for(Run(request.run), request.checkpoint, request.open_world, request.bias).to_json()
        if request.run
        else None,
    }
    return Partial(out, question_of(as_source(source), names, **facts))


def _pinned(request: Request) -> Request:
    """With a number of threads that does not depend on the workers."""
    threads = threads_for(Run(request.run)) if request.run else torch.get_num_threads()
    return replace(request, threads=threads)


def _computed(work: Work, profile: Profile | None = None) -> Iterator[list[dict[str, Any]]]:
    """Records of each batch, in order."""
    if not work.batches:
        return
    if not work.ask.local and not work.request.adapt:
        yield from dealt_out(work)
        return
    check_packages()
    if profile is not None:
        profile.started()
    with cpu_threads(work.request.threads):
        predictor = Predictor(work.request, own_device(), keep=work.keep, profile=profile)
        if work.ask.local:
            yield from predictor.records(work.source, work.batches)
        else:  # workers encode; the images are one stream, which adapts here
            yield from map(predictor.named, encoded_out(work))
        predictor.save_state()
