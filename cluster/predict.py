"""Prediction over folders: in this process, or whole batches of files dealt out to the workers of a cluster through Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cluster.answers import question
from cluster.machines.dealing import PredictionJob, dealt_out, encoded_out
from cluster.machines.launch import check_packages
from cluster.machines.nodes import NodeRequest
from cluster.work.predictor import BATCH, PredictConfig, Predictor
from cluster.work.profile import Profile
from cluster.work.progress import Notice, Progress, quiet, unnoticed
from cluster.work.threads import cpu_threads, threads_for
from czsl import __version__
from czsl.clip.weights import is_folder, weight_files
from czsl.data.files.predictions import Partial, inputs_sha256
from czsl.data.inputs import ImageSource, as_source
from czsl.gpus import own_device
from czsl.runs.run import Run


def predict_files(
    config: PredictConfig,
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

    The source's files must be visible on every node. ``where`` are the arguments of :meth:`cluster.machines.nodes.NodeRequest.of`,
    ``progress`` and ``notice`` are called about the nodes; the answers do not depend on the number of workers. Batches that ``partial`` (of
    :func:`partial_of` for the same settings and files) holds are read back instead of computed; new ones are added to it.

    ``keep``: image features are kept in the cache folder of each node, and those that are there are used: a second question about the
    same images encodes only new ones. ``profile`` measures a worker in this process.
    """
    source = as_source(source)
    batches = [names[i : i + BATCH] for i in range(0, len(names), BATCH)]
    if partial is not None:
        for records in partial.batches():
            yield from records
        batches = batches[partial.done :]
    job = PredictionJob(_pinned(config), source, batches, NodeRequest.of(**where), progress, notice, keep)
    for records in _computed(job, profile):
        if partial is not None:
            partial.add(records)
        yield from records


def partial_of(out: Path, config: PredictConfig, source: ImageSource | Path, names: list[str]) -> Partial:
    """Return the partial results next to ``out`` of an interrupted prediction of the same files, weights and options."""
    given = [x for x in (config.clip, config.clip_weights) if x]
    weights = [Path(x) for x in given if Path(x).is_file()] + [w for x in given if is_folder(x) for w in weight_files(Path(x))]
    facts = {
        "czsl": __version__,
        "batch": BATCH,
        "fields": "score prob",  # of a composition in a record
        "clip": [(str(w), w.stat().st_size, w.stat().st_mtime_ns) for w in weights],
        **question(_pinned(config)),
    }
    return Partial(out, inputs_sha256(as_source(source), names, **facts))


def _pinned(config: PredictConfig) -> PredictConfig:
    """With a number of threads that does not depend on the workers."""
    threads = threads_for(Run(config.run)) if config.run else torch.get_num_threads()
    return replace(config, threads=threads)


def _computed(job: PredictionJob, profile: Profile | None = None) -> Iterator[list[dict[str, Any]]]:
    """Records of each batch, in order."""
    if not job.batches:
        return
    if not job.request.local and not job.config.adapt:
        yield from dealt_out(job)
        return
    check_packages()
    if profile is not None:
        profile.started()
    with cpu_threads(job.config.threads):
        predictor = Predictor(job.config, own_device(), keep=job.keep, profile=profile)
        if job.request.local:
            yield from predictor.records(job.source, job.batches)
        else:  # workers encode; the images are one stream, which adapts here
            yield from map(predictor.named, encoded_out(job))
        predictor.save_state()
