"""Images, and new words, added in place to a finished run whose method can take them; the last addition can be undone.

An addition is one more checkpoint, which holds its own label space and the history. It counts once ``best.json`` names it, so that a
command that dies leaves the run as it was.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.calibrate import calibrate_run
from cluster.work.calibration import Calibration
from cluster.work.feature_loader import autocast
from cluster.work.progress import Progress, quiet
from cluster.work.threads import cpu_threads
from czsl.compositions import SPLITS, CompositionSpace, index_pairs
from czsl.data.images import BadImage, decode
from czsl.data.importing.entries import Entry, Reading
from czsl.data.importing.foldernames import KnownFirst
from czsl.data.importing.problems import Problem
from czsl.data.importing.tree import read_labelled_tree
from czsl.data.table import open_data
from czsl.errors import CzslError, DataError, UsageError
from czsl.evaluation.operating import OperatingPoint, point_file
from czsl.gpus import own_device
from czsl.runs import checkpoint
from czsl.runs.checkpoint import Checkpoint
from czsl.runs.files import changed
from czsl.runs.run import Run
from methods.building import build, check_fits, clip_for
from methods.fingerprint import fingerprint
from methods.method import Method
from methods.registry import METHODS, config_class

SHOWN = 3  # images named in an error
POINTS = "points-before"  # folder in a checkpoint: operating points of the one before


@dataclass
class Addition:
    """Result of an addition.

    checkpoint : the one that it made, or None if nothing was written
    images : records ``image, sha256, attr, obj``
    attributes, objects : new words
    pairs : compositions that training had not seen before, by name
    skipped : images that were left out, with their cause
    notes : warnings
    """

    time: str
    folder: str
    checkpoint: str | None = None
    images: list[dict[str, str]] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    pairs: list[list[str]] = field(default_factory=list)
    skipped: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def history(run: Run) -> list[dict[str, Any]]:
    """The additions that are in use, oldest first, as plain data."""
    return list(checkpoint.state_of(_current(run)).get("additions", []))


def add(
    run: Run,
    folder: Path,
    *,
    attributes: Iterable[str] = (),
    objects: Iterable[str] = (),
    skip_known: bool = False,
    max_bad: float = 0.0,
    dry_run: bool = False,
    progress: Progress = quiet,
) -> Addition:
    """Add the images of a folder to a run.

    Parameters
    ----------
    run : Run
    folder : Path
        Images in folders that name their pair, as for an import.
    attributes, objects : iterable of str
        New words that tell how the folders' names are to be read.
    skip_known : bool
        Leave out images that are there already instead of refusing them.
    max_bad : float
        Share of images that may be unusable; they are left out.
    dry_run : bool
        Check everything and write nothing.

    Raises
    ------
    UsageError
        A method that takes no images, plain classes, a run without a checkpoint, or one that another command uses.
    DataError
        No usable image, unclear names, unusable images, or an image that is there already.
    """
    _check_run(run)
    with changed(run.path, "czsl add"):
        kept = checkpoint.load(_current(run))
        space = run.space_of(kept.state)
        names = KnownFirst((*space.attributes, *attributes), (*space.objects, *objects))
        source = read_labelled_tree(_folder(folder), Reading(names=names))
        addition = Addition(time.strftime("%Y-%m-%d %H:%M:%S"), str(folder.resolve()))
        bad = [problem for problem in source.problems if problem.bad]
        entries = sorted(source.entries.values(), key=lambda e: e.id)
        entries = _checked(entries, run, kept, addition, bad, skip_known, max_bad, progress)
        if not entries:
            why = "all of them are there already" if addition.skipped and skip_known else "images lie in folders such as wet dog/"
            raise DataError(f"{folder} holds no image to add", why, "is this the right folder?")
        grown = _grown(space, entries, addition)
        if dry_run:
            return addition
        with cpu_threads(run.threads):
            method = _updated(run, kept, space, grown, entries, progress)
        addition.notes += method.notes()
        _write(run, kept, method, grown, addition)
        addition.notes += _choose_point(run, progress)
    return addition


def undo(run: Run) -> dict[str, Any]:
    """Take the last addition back; the run is what it was before, to the bit. Returns the addition.

    Raises
    ------
    UsageError
        Nothing was added, or the checkpoint before is gone or damaged.
    """
    _check_run(run)
    with changed(run.path, "czsl add --undo"):
        current = _current(run)
        state = checkpoint.state_of(current)
        additions = state.get("additions", [])
        if not additions:
            raise UsageError(f"nothing was added to {run.path.name}", "there is nothing to undo", "see: czsl add RUN --history")
        before = run.checkpoints / Path(state["before"]["checkpoint"]).name
        if not checkpoint.is_valid(before):
            raise UsageError(f"{before.name} is gone or damaged", "it is what the run was before", "train a new run")
        facts = {k: v for k, v in state["before"].items() if k != "checkpoint"}
        checkpoint.mark_best(run.checkpoints, before, **facts)
        _take_points_back(run, current)
        shutil.rmtree(current, ignore_errors=True)
        run.log(
            {"event": "undone", "checkpoint": current.name, "step": checkpoint.step_of(before), "time": round(time.time(), 3)}
        )
    return additions[-1]


# -- checks ------------------------------------------------------------------------------------------------------------
def _check_run(run: Run) -> None:
    config = config_class(run.config.method)
    if not config.grows:
        able = ", ".join(name for name in METHODS if config_class(name).grows)
        why = f"{config.called()} would have to be trained again"
        raise UsageError(
            f"{run.path.name} is a run of {run.config.method}, which takes no images", why, f"methods that do: {able}"
        )
    if run.space.noun == "class":
        raise UsageError(
            f"{run.path.name} is a run on plain classes",
            "czsl add reads folders that name an attribute and an object",
            "import the images together and train again: it takes seconds",
        )
    _current(run)


def _current(run: Run) -> Path:
    """The checkpoint in use; never the newest one instead, which a command that died may have left."""
    name = checkpoint.best(run.checkpoints).get("checkpoint")
    if not name:
        raise UsageError(
            f"{run.path.name} has no usable checkpoint", "its training did not end", "train first, or --resume the run"
        )
    path = run.checkpoints / Path(name).name
    if not checkpoint.is_valid(path):
        raise UsageError(f"{path} is damaged", "a file is missing or was changed", "train a new run")
    return path


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", "the folder does not exist", "give a folder with folders such as wet dog/")
    return folder


def _checked(
    entries: list[Entry],
    run: Run,
    kept: Checkpoint,
    addition: Addition,
    bad: list[Problem],
    skip_known: bool,
    max_bad: float,
    progress: Progress,
) -> list[Entry]:
    """Return the images to add and note their hashes. Every image is decoded once before anything is changed."""
    there = _there(run, kept, addition)
    named = len(entries) + len(bad)
    taken: list[Entry] = []
    known: list[tuple[str, str]] = []
    troubles = [(p.where[0], f"{p.kind}{f': {p.detail}' if p.detail else ''}") for p in bad]
    for done, entry in enumerate(entries, 1):
        progress("reading images", done, len(entries))
        try:
            data = entry.image.read()
            decode(data, options=run.config.decode)
        except BadImage as error:
            troubles.append((entry.id, f"{error.kind}{f': {error.reason}' if error.reason else ''}"))
            continue
        digest = hashlib.sha256(data).hexdigest()
        if digest in there:
            known.append((entry.id, there[digest]))
            continue
        there[digest] = f"the same as {entry.id}"
        addition.images.append({"image": entry.id, "sha256": digest, "attr": entry.attr, "obj": entry.obj})
        taken.append(entry)
    if len(troubles) > max_bad * max(named, 1):
        listed = "; ".join(f"{name} ({why})" for name, why in troubles[:SHOWN])
        raise DataError(
            f"{len(troubles)} of {named} images cannot be used, nothing was added",
            listed + ("; ..." if len(troubles) > SHOWN else ""),
            f"mend or remove them, or leave them out with --max-bad {min(1.0, -(-len(troubles) * 1000 // named) / 1000):g}",
        )
    if known and not skip_known:
        listed = "; ".join(f"{name}: {where}" for name, where in known[:SHOWN])
        raise DataError(
            f"{len(known)} of {named} images are there already, nothing was added",
            listed + ("; ..." if len(known) > SHOWN else ""),
            "remove them, or leave them out with --skip-known",
        )
    addition.skipped = [list(x) for x in (*troubles, *((name, f"there already: {where}") for name, where in known))]
    return taken


def _there(run: Run, kept: Checkpoint, addition: Addition) -> dict[str, str]:
    """Hashes of the images of the run's dataset, whatever their split, and of earlier additions, with their places."""
    found = {
        image["sha256"]: f"added on {one['time']} as {image['image']}"
        for one in kept.state.get("additions", [])
        for image in one["images"]
    }
    try:
        data = open_data(run.config.data)
        for name in SPLITS:
            split = data.split(name)
            found |= {
                digest: f"the {name} image {image} of {data.name}" for image, digest in zip(split.ids, split.sha256, strict=True)
            }
    except (CzslError, OSError):
        addition.notes.append(f"the run's dataset {run.config.data} cannot be read: images that it holds are not recognised")
    return found


# -- the update --------------------------------------------------------------------------------------------------------
def _grown(space: CompositionSpace, entries: list[Entry], addition: Addition) -> CompositionSpace:
    """The label space with the new words at its ends: what was known keeps its place."""
    addition.attributes = sorted({e.attr for e in entries} - set(space.attributes))
    addition.objects = sorted({e.obj for e in entries} - set(space.objects))
    attributes, objects = (*space.attributes, *addition.attributes), (*space.objects, *addition.objects)
    seen = {space.pair_names(pair) for pair in space.train_pairs}
    addition.pairs = [list(pair) for pair in sorted({(e.attr, e.obj) for e in entries} - seen)]
    train = np.concatenate([space.train_pairs, index_pairs(addition.pairs, attributes, objects)])
    unseen = {space.pair_names(pair) for pair in (*space.val_pairs, *space.test_pairs)} - seen
    if lost := [pair for pair in addition.pairs if tuple(pair) in unseen]:
        named = ", ".join(" ".join(pair) for pair in lost[:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
        what = "1 composition has" if len(lost) == 1 else f"{len(lost)} compositions have"
        addition.notes.append(f"{what} images now that val or test count as unseen: {named}")
    return CompositionSpace(attributes, objects, train, space.val_pairs, space.test_pairs)


def _updated(
    run: Run, kept: Checkpoint, space: CompositionSpace, grown: CompositionSpace, entries: list[Entry], progress: Progress
) -> Method:
    config = run.config
    method = build(config.method, space, clip_for(config.method, config.model, config.clip, config.clip_weights), config.model)
    check_fits(kept, method)
    method.load_state_dict(kept.method)
    method.decode = config.decode
    device = own_device()
    method = method.for_space(grown).to(device).eval()
    method.clip.compute_in(run.precision_on(device))
    labels_N2 = torch.from_numpy(index_pairs([(e.attr, e.obj) for e in entries], grown.attributes, grown.objects))
    with torch.inference_mode():
        batches = list(_features(method, entries, config.eval_batch, method.clip.precision, progress))
        method.add_images(torch.cat(batches)[: len(entries)], labels_N2[:, 0], labels_N2[:, 1])
    return method.cpu()


def _features(method: Method, entries: list[Entry], size: int, precision: str, progress: Progress) -> Iterator[Tensor]:
    """Image features by batches of one size, as those of a training are computed."""
    for start in range(0, len(entries), size):
        part = entries[start : start + size]
        prepared = [method.prepare(decode(e.image.read(), options=method.decode), e.id) for e in part]
        prepared += [prepared[-1]] * (size - len(part))
        batch = {key: torch.stack([p[key] for p in prepared]).to(method.clip.device) for key in prepared[0]}
        with autocast(method.clip.device, precision):
            yield method.image_features(batch).float().cpu()
        progress("encoding images", min(start + size, len(entries)), len(entries))


def _write(run: Run, kept: Checkpoint, method: Method, grown: CompositionSpace, addition: Addition) -> None:
    current = _current(run)
    for left in checkpoint.steps(run.checkpoints):  # of an addition that died before it counted
        if left.name > current.name:
            shutil.rmtree(left)
    step = checkpoint.step_of(current) + 1
    addition.checkpoint = f"step-{step:08d}"
    before = {**checkpoint.best(run.checkpoints), "checkpoint": current.name}
    state = {
        **kept.state, "step": step, "before": before, "grown": grown.to_json(),
        "space": {"attributes": list(grown.attributes), "objects": list(grown.objects)},
        "additions": [*kept.state.get("additions", []), {k: v for k, v in vars(addition).items() if k != "notes"}],
    }  # fmt: skip
    path = checkpoint.save(run.checkpoints, Checkpoint(method.state_dict(), {}, state, kept.labels), prune=False)
    _keep_points(run, path)
    checkpoint.mark_best(run.checkpoints, path, **{k: v for k, v in before.items() if k not in ("checkpoint", "step")}, step=step)
    run.log(
        {"event": "added", "images": len(addition.images), "checkpoint": path.name, "step": step, "time": round(time.time(), 3)}
    )


# -- the operating point -----------------------------------------------------------------------------------------------
def _points(folder: Path) -> list[Path]:
    """Files of the operating points of the best checkpoint, of both worlds."""
    points = [point_file(folder, open_world) for open_world in (False, True)]
    return [file for point in points for file in (point, point.with_suffix(".npz")) if file.exists()]


def _keep_points(run: Run, path: Path) -> None:
    """Copy the operating points in use into the new checkpoint, for the way back."""
    (path / POINTS).mkdir()
    for file in _points(run.path):
        shutil.copy2(file, path / POINTS / file.name)


def _take_points_back(run: Run, path: Path) -> None:
    for file in _points(run.path):
        file.unlink()
    for file in _points(path / POINTS):
        file.replace(run.path / file.name)


def _choose_point(run: Run, progress: Progress) -> list[str]:
    """Choose the operating point again, on the validation images; without them the one before stays in use. Returns notes."""
    before = point_file(run.path)
    for file in _points(run.path):
        if file != before:
            file.unlink()
    if not before.exists():
        return []
    try:
        calibrate_run(run, Calibration(), progress)
    except CzslError as error:
        point = OperatingPoint.load(before)
        facts = {**point.facts, "checkpoint_sha256": fingerprint(run), "own_data": True}
        replace(point, facts=facts).save(before)
        return [f"the operating point is that of before the addition: it cannot be chosen again ({error.what})"]
    return []
