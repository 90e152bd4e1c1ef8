"""The training loop of one worker: a plain function of (run, communicator, device), so that Ray only has to start it."""

from __future__ import annotations

import math
import os
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch

from cluster.work.ahead import prepared_ahead, side_of
from cluster.work.augmentation import check_loop
from cluster.work.calibration import Calibration, choose_point
from cluster.work.comm import Group
from cluster.work.estimate import check_training
from cluster.work.feature_loader import FeatureLoader, autocast
from cluster.work.gradients import GradientAverage
from cluster.work.labels import disambiguation, hard_labels, make_confidences, read_labels, start_confidences
from cluster.work.memory import agreed_room, holders, out_of_memory
from cluster.work.precision import agreed_precision
from cluster.work.saving import restore, save
from cluster.work.trainer import Trainer
from cluster.work.validation import LOGGED, figure_of, judged, validation
from czsl.clip.captured import Graphs, replayed_passes
from czsl.clip.compiled import compiled_functions, use_of
from czsl.data.batches import epoch_batches, stratified
from czsl.data.table import open_data
from czsl.errors import CzslError
from czsl.runs import checkpoint
from czsl.runs.files import write_json
from czsl.runs.optimizers import make_optimizer
from czsl.runs.run import Run
from methods.building import build, clip_for
from methods.loading import load

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
PROGRESS_EVERY_S = 0.5


class NonFiniteLossError(CzslError):
    """The loss is NaN or infinite; repeating the step would not cure it."""


class StopAskedError(Exception):
    """A stop was requested before the first step; results computed until then remain in the caches."""


def train_worker(run: Run, comm: Group, device: torch.device) -> str:
    """Train to the end or until a stop is requested; return ``done`` or ``stopped``.

    A run with checkpoints continues from the newest valid one.

    Raises
    ------
    GpuMemoryError
        If the GPU of a worker has too little free memory, before anything is computed, or if a step does not fit.
    NonFiniteLossError
        If the loss is not finite; names the step and images of the batch. The last checkpoint is unchanged.
    """
    try:
        trainer = prepare(run, comm, device)
    except StopAskedError:
        run.log({"event": "end", "status": "stopped", "step": 0, "time": round(time.time(), 3)})
        return "stopped"
    write_json(run.path / f"worker-{comm.rank}.json", {"pid": os.getpid(), "host": socket.gethostname(), "device": str(device)})
    restore(trainer)
    trainer.log(
        event="start",
        steps=trainer.total_steps,
        images=len(trainer.rows),
        workers=comm.world,
        batch=trainer.config.batch,
        precision=trainer.precision,
    )
    if trainer.step == 0:
        if trainer.method.confidences is not None:
            start_confidences(trainer.method.confidences, trainer.config, trainer.method, trainer.data, comm, trainer.progress)
        initialise(trainer)
    if not trainer.epochs:  # the initialisation is the final result
        validate_and_save(trainer)
    while trainer.epoch < trainer.epochs and not trainer.waited_enough:
        if train_epoch(trainer):
            save(trainer)
            end(trainer, "stopped")
            return "stopped"
        trainer.epoch, trainer.place = trainer.epoch + 1, 0
        validate_and_save(trainer)
    choose_operating_point(trainer)
    end(trainer, "done")
    return "done"


def choose_operating_point(t: Trainer) -> None:
    """Choose the bias and the calibration of the run's answers, from all validation images at the best checkpoint.

    A failure here does not fail the training: the operating point is then chosen when it is first needed.
    """
    if not len(t.val.split):
        return
    # A float64 run trains with other towers than predictions use.
    clip = None if t.precision == "float64" else t.method.clip
    method = lambda: load(t.run, "best", clip).to(t.device)  # noqa: E731
    t.method.eval()
    try:
        point = choose_point(t.run, Calibration(), method, t.comm, t.progress)
    except (CzslError, StopAskedError) as error:
        t.log(event="operating_point", error=str(error) or type(error).__name__)
        return
    t.log(event="operating_point", **point.brief(), **{"for": point.aim})


def end(t: Trainer, status: str) -> None:
    """Log the final status and the peak memory of any worker."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gpu = torch.cuda.max_memory_allocated() if t.device.type == "cuda" else 0
    memory = [max(values) for values in zip(*t.comm.gather_objects((own, gpu)), strict=True)]
    t.log(event="end", status=status, peak_memory_bytes=memory[0], peak_gpu_bytes=memory[1])


def prepare(run: Run, comm: Group, device: torch.device) -> Trainer:
    """Load data and CLIP, build the method and its optimizer, identically on every worker."""
    config = run.config
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    precision = agreed_precision(run, comm, device)
    data = open_data(config.data, config.decode)
    labels = read_labels(run, data, comm)
    clip = clip_for(config.method, config.model, config.clip, config.clip_weights)
    method = build(config.method, data.space, clip, config.model)
    room = lambda: check_training(config, precision, device, method, comm.world, labels)  # noqa: E731
    agreed_room(room, comm)
    method = method.to(device).to(DTYPES[precision])
    clip.compute_in(precision)
    method.comm, comm.parts = comm, config.accumulate
    check_loop(config, method.frozen_images, method.trains)
    clip.visual.checkpointing = config.checkpoint_blocks
    trained = [p for p in method.parameters() if p.requires_grad]
    # A parameter group, because torch rejects an empty list of parameters, and a method without steps has no parameters.
    optimizer = make_optimizer(config.optimizer, [{"params": trained}], config.lr, config.weight_decay)

    last = [0.0]

    def progress(what: str, done: int, total: int) -> None:
        if comm.world == 1 and run.stop_file.exists():  # several workers first have to agree on a step
            raise StopAskedError
        if comm.rank == 0 and (done >= total or time.monotonic() - last[0] > PROGRESS_EVERY_S):
            last[0] = time.monotonic()
            run.log({"event": "progress", "what": what, "done": done, "total": total, "step": 0})

    train_split, val_split = data.split("train"), data.split("val")
    rows, val_rows = np.arange(len(train_split)), stratified(val_split.attr, val_split.obj, config.val_per_pair, config.seed)
    if labels is None:
        rows = stratified(train_split.attr, train_split.obj, config.train_per_pair, config.seed)
    augments = config.augments(method.frozen_images)

    def loader(name: str, used: Any, keep: bool) -> FeatureLoader:
        part = used if len(used) < len(data.split(name)) else None
        return FeatureLoader(method, data, name, comm, config.eval_batch, progress, precision, keep, part, config.pixels)

    train, val = loader("train", rows, keep=not augments), loader("val", val_rows, keep=True)
    if augments and config.augment_copies:
        train.keep_copies(config.seed, min(config.augment_copies, max(config.epochs, 1)), config.eval_batch)
    if labels is not None:
        method.confidences = make_confidences(labels, config, method, device)
    if comm.rank == 0 and not run.environment():
        run.write_environment(
            seed=config.seed, workers=comm.world, threads=torch.get_num_threads(), device=str(device),
            precision=precision, data_sha256=data.sha256,
            clip_sha256=clip.sha256, clip=clip.architecture, trainable=sum(p.numel() for p in trained),
            partial_labels_sha256=labels.sha256 if labels else None,
            started_from=checkpoint.load(start).state["from"] if (start := checkpoint.newest_valid(run.start)) else None,
        )  # fmt: skip
    use = use_of(str(config.compile), device, config.checkpoint_blocks or config.accumulate > 1)
    compiled = all(comm.gather_objects(use.compiled))  # all workers compute in the same form
    if use.note and comm.rank == 0:
        run.log({"event": "note", "note": use.note, "step": 0})
    average, graphs = GradientAverage(trained, comm), Graphs(device) if use.replayed else None
    return Trainer(
        run, config, comm, device, data, method, optimizer, average, train, val, rows, val_rows, labels, progress, precision,
        compiled, graphs,
    )  # fmt: skip


def train_epoch(t: Trainer) -> bool:
    """Train on the remaining batches of the current epoch; return True if a stop was requested."""
    t.method.begin_epoch(t.epoch)
    if t.method.confidences is not None:
        t.method.confidences.frozen = t.epoch < t.config.label_warmup
    batches = epoch_batches(t.config.seed, t.epoch, len(t.rows), t.config.batch)
    left = [t.rows[rows_B] for rows_B in batches[t.place :]]
    side = side_of(t.device, None if t.graphs is None else t.graphs.quiet)
    coming = closing(prepared_ahead(lambda rows_B: own_batch(t, rows_B), left, side))
    with coming as prepared:
        return _train_batches(t, left, prepared, len(batches))


def _train_batches(t: Trainer, batches: Sequence[Any], prepared: Iterator[dict[str, Any]], steps: int) -> bool:
    """Train on batches, given as rows and as this worker's prepared images; ``steps`` of the whole epoch."""
    seconds, images = 0.0, 0
    for rows_B in batches:
        lr = t.config.learning_rate(t.step, steps)
        for group in t.optimizer.param_groups:
            group["lr"] = lr
        began = time.perf_counter()
        losses, stop = train_step(t, rows_B, prepared)
        seconds, images = seconds + time.perf_counter() - began, images + len(rows_B)
        t.log(event="step", epoch=t.epoch, lr=lr, **losses, images_per_s=round(images / seconds, 1))
        if stop:
            return True
    return False


def own_batch(t: Trainer, rows_B: Any) -> dict[str, Any]:
    """Prepare this worker's images of a global batch, with the labels of all its images."""
    own = rows_B[t.comm.share(len(rows_B))]
    batch = t.train.batch(own, (t.config.seed, t.epoch) if t.config.augments(t.method.frozen_images) else None)
    if t.method.confidences is not None:  # the step gets no labels: candidate labels are found by an image's index in the split
        return {**batch, "index": torch.from_numpy(rows_B)}
    split = t.train.split
    pair = t.data.space.locate(split.pairs[rows_B], t.data.space.train_pairs)
    return batch | {k: torch.from_numpy(v) for k, v in (("attr", split.attr[rows_B]), ("obj", split.obj[rows_B]), ("pair", pair))}


def train_step(t: Trainer, rows_B: Any, prepared: Iterator[dict[str, Any]] | None = None) -> tuple[dict[str, float], bool]:
    """One optimizer step on a global batch; if the GPU runs out of memory, the error names settings that need less.

    ``prepared`` gives what :func:`own_batch` makes of the rows, if that is made ahead.
    """
    try:
        return _train_step(t, rows_B, own_batch(t, rows_B) if prepared is None else next(prepared))
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, t.config, t.precision, t.step, t.comm.world, holders(t.device)) from None


def _train_step(t: Trainer, rows_B: Any, batch: dict[str, Any]) -> tuple[dict[str, float], bool]:
    """One optimizer step on a global batch: return its loss terms, and whether all workers agreed to stop after it."""
    # Draws are a function of (seed, step), so a resumed run draws what an uninterrupted one would have drawn.
    t.comm.step_seed, t.comm.batch = t.config.seed * 1_000_000_007 + t.step, len(rows_B)
    with autocast(t.device, t.precision), compiled_functions(t.compiled), replayed_passes(t.graphs):
        terms = t.method.training_step(batch)
    terms_n = torch.stack(list(terms.values()))
    loss = terms_n.sum()
    # Loss and terms leave the device together: each value on its own would wait for it.
    numbers = torch.cat([loss[None], terms_n]).detach().tolist()
    values = dict(zip(("loss", *(f"loss_{k}" for k in terms)), numbers, strict=True))
    if not math.isfinite(values["loss"]):
        named = ", ".join(t.train.split.ids[r] for r in rows_B[:3])
        terms_text = ", ".join(f"{k} {v:g}" for k, v in values.items())
        raise NonFiniteLossError(
            f"the loss is not a number at step {t.step} (epoch {t.epoch})",
            f"{terms_text}; batch of {len(rows_B)} images: {named}, ...",
            "lower lr, or use precision=float32; the last checkpoint is kept",
        )
    t.optimizer.zero_grad()
    loss.backward()
    asked = t.comm.rank == 0 and t.run.stop_file.exists()
    stop = t.average.finish(float(asked)) > 0
    t.optimizer.step()
    t.step, t.place = t.step + 1, t.place + 1
    return values, stop


@torch.inference_mode()
def initialise(t: Trainer) -> None:
    """Pass the features of all training images to the method once if it needs them for its initialisation (prototypes)."""
    if not t.method.needs_initialisation:
        return
    t.method.eval()
    features_ND = t.train.encode(t.rows, t.config.eval_batch).to(t.device)
    split, confidences = t.train.split, t.method.confidences
    if confidences is not None:
        labels = hard_labels(confidences, t.rows)
    else:
        labels = (torch.from_numpy(split.attr[t.rows]).to(t.device), torch.from_numpy(split.obj[t.rows]).to(t.device))
    torch.manual_seed(t.config.seed)
    if len(t.val_rows):
        t.method.judge = lambda: judged(t)
    t.method.initialise(features_ND, *labels)
    t.comm.copy_from_first(t.method.state_dict().values())  # clustering may give other results on other machines
    if not t.method.steps:
        t.log(event="found", settings=t.method.metrics(), how="none" if t.method.judge is None else "val")
    for note in t.method.notes():
        t.log(event="note", note=note)
    t.method.judge = None


def validate_and_save(t: Trainer) -> None:
    """Log closed-world metrics on the validation split, save a checkpoint, and mark the best one."""
    facts: dict[str, Any] = {}
    if len(t.val_rows):
        numbers = validation(t)
        facts = {k: numbers[k] for k in (*LOGGED, "accuracy") if k in numbers}
    facts |= t.method.metrics()
    if t.method.confidences is not None:
        facts |= disambiguation(t.method.confidences, t.data)
    t.log(event="epoch", epoch=t.epoch, **facts)
    figure = figure_of(t.config.selection, t.epoch, facts)
    better = figure is None or figure > t.best_auc
    t.waited = 0 if better else t.waited + 1
    if better:
        t.best_auc = -1.0 if figure is None else figure
    path = save(t)
    if better and path is not None:
        checkpoint.mark_best(t.run.checkpoints, path, step=t.step, epoch=t.epoch, auc=facts.get("auc"), figure=figure)
    t.comm.gather_objects(None)  # no worker continues before the checkpoint is complete
