"""The operating point of a run: chosen on labelled images, kept in the run folder, found again.

The few numbers per image that it follows from are kept too, so that another aim costs no scoring.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.work.adapting import reduce_stream
from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.own_labels import on_space, relabelled
from cluster.work.progress import Progress, quiet
from cluster.work.scoring import reduce_split
from czsl.data.table import open_data
from czsl.errors import CzslError, DataError, UsageError
from czsl.evaluation import Candidates, Extremes, SavedEvaluation, at_threshold
from czsl.evaluation.calibration import answers, best_precision, confidence_for, fit_point
from czsl.evaluation.operating import (
    Aim,
    OperatingPoint,
    candidates_sha256,
    choose_bias,
    is_classes,
    point_file,
)
from czsl.evaluation.rejection import best_detector, detector_values, rejection_numbers, threshold_for
from czsl.evaluation.sums import GRID, Sums, SumsAccumulator
from czsl.runs.run import Run
from methods.adaptation.plan import Plan
from methods.fingerprint import fingerprint
from methods.method import Method
from methods.points import stored_point


@dataclass(frozen=True)
class Calibration:
    """Settings of the choice of an operating point.

    checkpoint : ``best``, ``last`` or a step
    open_world : all attribute-object pairs compete
    aim : see :class:`czsl.evaluation.operating.Aim`
    data : labelled images of the user's own; default: the run's dataset
    split : of that dataset
    adapt : an adaptation while testing, whose scores on these images have a point of their own
    """

    checkpoint: str = "best"
    open_world: bool = False
    aim: str = "hm"
    data: str | None = None
    split: str = "val"
    adapt: Plan | None = None

    @property
    def layer(self) -> str:
        """Key of the adaptation, empty without one."""
        return self.adapt.key if self.adapt else ""


def saved_evaluation_file(run: Run, asked: Calibration) -> Path:
    """Return the file with the numbers of the images that a point was chosen on."""
    return point_file(run.path, asked.open_world, asked.checkpoint, asked.layer).with_suffix(".npz")


def choose_point(
    run: Run,
    asked: Calibration,
    method: Callable[[], Method],
    comm: Group,
    progress: Progress = quiet,
    scored: Callable[[], Extremes] | None = None,
) -> OperatingPoint:
    """Choose the point from kept numbers if they are of these weights and images, else by scoring the images.

    It is kept in the run, if the run folder can be written to.

    Every worker of ``comm`` returns the same.

    After an addition of images the images keep their labels among those that the run has now.

    Parameters
    ----------
    run : Run
    asked : Calibration
    method : callable
        Gives the method of the run at the checkpoint, on its device; called only if images have to be scored.
    comm : Group
    progress : Progress
    scored : callable, optional
        In the open world: gives the extremes of the run's validation images without a threshold, if they are needed for more than this.

    Raises
    ------
    DataError
        The split has no images.
    UsageError
        An aim that no bias reaches.
    """
    aim = Aim.parse(asked.aim)
    data = open_data(asked.data or run.config.data)
    own = run.has_grown or (asked.data is not None and data.sha256 != open_sha256(run))
    if own:
        data = relabelled(data, asked.split, run.space)
    if not len(data.split(asked.split)):
        raise DataError(
            f"{data.folder} has no {asked.split} images",
            "an operating point is chosen on labelled images",
            "choose another --split, or calibrate on images of your own: --data",
        )
    candidates = Candidates.build(data.space, split="val" if own else asked.split, open_world=asked.open_world)
    facts = {
        "checkpoint_sha256": fingerprint(run, asked.checkpoint), "data_sha256": data.sha256,
        "candidates_sha256": candidates_sha256(candidates), "data": str(asked.data or run.config.data), "split": asked.split,
        "open_world": asked.open_world, "checkpoint": asked.checkpoint, "own_data": own,
    }  # fmt: skip
    if asked.adapt:
        facts["adaptation"] = asked.layer
    kept = comm.from_first(_kept(saved_evaluation_file(run, asked), facts, asked.open_world) if comm.rank == 0 else None)
    if kept is None:
        sums = None
        if scored is not None and asked.open_world:
            extremes = scored()
        else:
            scorer = on_space(method(), data.space)
            how = (run.config.eval_batch, progress, scorer.clip.precision)
            loader = FeatureLoader(scorer, data, asked.split, comm, *how, pixels=run.config.pixels)
            extremes, sums = reduced(
                run, scorer, loader, candidates, comm, progress, None if asked.open_world else GRID, asked.adapt
            )
        names = data.split(asked.split).ids, list(data.space.attributes), list(data.space.objects)
        kept = SavedEvaluation(extremes, *names, facts, sums)
        if comm.rank == 0 and run.writable:
            kept.save(saved_evaluation_file(run, asked))
    point = point_from(kept.extremes, kept.sums, aim, is_classes(data.space), facts)
    if asked.open_world:
        point = _with_closed_scales(point, run, asked)
    if comm.rank == 0 and run.writable:
        point.save(point_file(run.path, asked.open_world, asked.checkpoint, asked.layer))
    comm.gather_objects(None)  # the file is there for all
    return point


def reduced(
    run: Run,
    method: Method,
    loader: FeatureLoader,
    candidates: Candidates,
    comm: Group,
    progress: Progress,
    temperatures: Any,
    adapt: Plan | None = None,
) -> tuple[Extremes, Sums | None]:
    """Extremes of a whole split without a feasibility threshold and, at ``temperatures``, the sums that probabilities follow from."""
    collectors = []
    if temperatures is not None:
        collectors.append(lambda labels, index: SumsAccumulator(candidates, labels, temperatures, index))
    batch = run.config.eval_batch
    if adapt is not None:
        extremes, (*found,) = reduce_stream(method, adapt, loader, candidates, batch, comm, progress, collectors=collectors)
    else:
        rows = np.arange(len(loader.split))
        extremes, (*found,) = reduce_split(method, loader, candidates, rows, batch, comm, progress, collectors=collectors)
    return at_threshold(extremes, candidates, None), Sums.concatenate(found[0]) if found else None


def point_from(e: Extremes, sums: Sums | None, aim: Aim, classes: bool, facts: dict[str, Any]) -> OperatingPoint:
    """The point that labelled images choose, with the scales of its probabilities if there are sums."""
    bias, note = choose_bias(e, aim, classes)
    counts = {"images": len(e), "seen_images": int(e.true_seen.sum()), "unseen_images": int((~e.true_seen).sum())}
    point = OperatingPoint(bias, "none" if note else "val", str(aim), facts={**facts, **counts})
    notes = [note] if note else []
    if sums is not None:
        point = fit_point(e, sums, point)
        rejection = rejection_numbers(sums, point)
        point.facts["rejection"] = {"best": best_detector(rejection), "numbers": rejection}
        if np.isclose(point.composition.temperature, [GRID.min(), GRID.max()]).any():
            notes.append(f"the temperature {point.composition.temperature:.3g} lies at the end of the range that is searched")
    return OperatingPoint(**{**vars(point), "notes": tuple(notes)})


def find_point(
    run: Run,
    asked: Calibration,
    method: Callable[[], Method],
    comm: Group,
    progress: Progress = quiet,
    scored: Callable[[], Extremes] | None = None,
) -> OperatingPoint:
    """The run's stored point, or a new one if it is missing or of other weights or data; None without images.

    Arguments as in :func:`choose_point`; of ``asked`` only the checkpoint, the world and the adaptation count.

    Raises
    ------
    DataError
        There is a point that does not hold any more, and the validation images cannot be read.
    """
    point, why = comm.from_first(stored_point(run, asked.checkpoint, asked.open_world, asked.layer) if comm.rank == 0 else None)
    if point is not None:
        return point
    try:
        if not len(open_data(run.config.data).split("val")):
            return OperatingPoint(notes=("the bias on unseen labels is 0: there are no validation images",))
    except CzslError as error:
        if why:
            raise DataError(f"the operating point of {run.path.name} cannot be used", why, f"czsl calibrate {run.path}") from None
        return OperatingPoint(notes=(f"the bias on unseen labels is 0: the validation images cannot be read ({error.what})",))
    return choose_point(run, asked, method, comm, progress, scored)


def kept_answers(run: Run, asked: Calibration) -> SavedEvaluation:
    """Numbers of the images that the run's point was chosen on; DataError if missing or of other weights."""
    point, why = stored_point(run, asked.checkpoint, asked.open_world, asked.layer)
    file = saved_evaluation_file(run, asked)
    if point is not None and file.exists():
        kept = _kept(file, point.facts, asked.open_world)
        if kept is not None:
            return kept
        why = f"{file.name} is damaged, or of other images"
    raise DataError(
        f"{run.path.name} keeps no answers on validation images to choose from",
        why or f"{file.name} is missing",
        f"czsl calibrate {run.path}",
    )


def confidence_threshold(run: Run, asked: Calibration, point: OperatingPoint, precision: float) -> tuple[float, float, float]:
    """The smallest probability above which names were right often enough on the images that the run's point was chosen on.

    Returns
    -------
    threshold, precision, coverage : float
        The second and third are what those images reach: share of right names, and share of images with a name.

    Raises
    ------
    UsageError
        A precision that no threshold reaches.
    """
    kept = kept_answers(run, asked)
    assert kept.sums is not None
    found = answers(kept.extremes, kept.sums, point)
    chosen = confidence_for(found, precision)
    if chosen is None:
        highest = best_precision(found)
        raise UsageError(
            f"no threshold reaches a precision of {precision:g} on the validation images",
            f"the highest is {highest:.3f}",
            f"ask for less, e.g. --precision {math.floor(100 * highest) / 100:g}, or name a threshold: --min-prob",
        )
    return chosen


def rejection_threshold(run: Run, asked: Calibration, point: OperatingPoint, share: float) -> tuple[str, float]:
    """The detector that is best on the validation images, and its value below which a share of them lies: those are rejected.

    Raises
    ------
    UsageError
        No detector is better than chance there.
    """
    kept = kept_answers(run, asked)
    assert kept.sums is not None
    name = best_detector(rejection_numbers(kept.sums, point))
    if name is None:
        raise UsageError(
            "images without a candidate cannot be told apart",
            "on the validation images no detector is better than chance",
            "leave out --reject; --min-prob leaves out doubtful names",
        )
    known = np.isfinite(kept.sums.true_weight)
    return name, threshold_for(detector_values(kept.sums, point)[name][known], share)


def open_sha256(run: Run) -> str | None:
    """SHA-256 of the run's dataset; None if it cannot be opened."""
    try:
        return open_data(run.config.data).sha256
    except CzslError:
        return None


def _kept(file: Path, facts: dict[str, Any], open_world: bool) -> SavedEvaluation | None:
    """The kept numbers if they are of these weights, images and candidates."""
    if not file.exists():
        return None
    try:
        kept = SavedEvaluation.load(file)
    except DataError:
        return None
    same = all(kept.facts.get(key) == facts[key] for key in ("checkpoint_sha256", "data_sha256", "candidates_sha256", "split"))
    usable = same and (open_world or (kept.sums is not None and kept.sums.has(GRID)))
    return kept if usable else None


def _with_closed_scales(point: OperatingPoint, run: Run, asked: Calibration) -> OperatingPoint:
    """Probabilities of the open world take the scales of the closed one: its sums over all pairs are not taken."""
    closed = stored_point(run, asked.checkpoint, layer=asked.layer)[0] or OperatingPoint()
    scales = {"composition": closed.composition, "attribute": closed.attribute, "object": closed.object}
    return OperatingPoint(**{**vars(point), **scales})
