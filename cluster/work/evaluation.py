"""Evaluating a run: in this process, or dealt out over the workers of a cluster with the same answer to the last digit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cluster.work.adapting import reduce_stream
from cluster.work.calibration import Calibration, find_point, open_sha256
from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.progress import Progress, quiet
from cluster.work.scoring import encode_candidates, reduce_split
from czsl.clip.feasibility import feasibility_from_clip
from czsl.compositions import SPLITS
from czsl.data.subset import Subset
from czsl.data.table import Dataset, open_data
from czsl.errors import DataError, UsageError
from czsl.evaluation import (
    Candidates,
    Extremes,
    OperatingPoint,
    SavedEvaluation,
    at_threshold,
    choose_threshold,
    report,
    threshold_rows,
)
from czsl.evaluation.calibration import temperatures_of
from czsl.evaluation.operating import is_classes
from czsl.evaluation.sums import Marginals, Sums, SumsAccumulator, join_marginals
from czsl.evaluation.thresholds import RULES
from czsl.precision import allow_tf32
from czsl.runs import checkpoint
from czsl.runs.run import Run
from czsl.spaces import load_space
from methods.adaptation.plan import Plan
from methods.features import TextFeatures
from methods.fingerprint import fingerprint
from methods.loading import load
from methods.method import Method
from methods.registry import check_adaptable

SUBSET_SEED = 0  # of --per-pair: all runs are evaluated on the same images


@dataclass(frozen=True)
class EvalConfig:
    """Settings of an evaluation.

    split : ``test``, ``val`` or ``train``
    open_world : all attribute-object pairs compete
    checkpoint : ``best``, ``last`` or a step
    data : another dataset of the same label space, else the run's own
    topk : an image counts when its true pair is among the k best
    bootstrap : resamples for intervals
    feasibility : open world: ``clip`` (from the run's own text tower), a vector [A * O], or None for no thresholds
    threshold : open world: the feasibility threshold in use; by default the best one on the validation split
    rule : what becomes of infeasible pairs (see :mod:`czsl.evaluation.thresholds`)
    per_pair : maximal number of images per pair, drawn by ``SUBSET_SEED``; 0: all images
    adapt : an adaptation while testing: the images of the split are one unlabelled stream that moves the scores
    """

    split: str = "test"
    open_world: bool = False
    checkpoint: str = "best"
    data: str | None = None
    topk: int = 1
    bootstrap: int = 0
    feasibility: np.ndarray | Literal["clip"] | None = "clip"
    threshold: float | None = None
    rule: str = "exclude"
    per_pair: int = 0
    adapt: Plan | None = None

    def __post_init__(self):
        if self.threshold is not None and not (self.open_world and self.feasibility is not None):
            raise UsageError(
                "a feasibility threshold without a feasibility" if self.open_world else "a threshold in the closed world",
                "it cuts away unlikely pairs of the open world",
                "evaluate the open world with a feasibility, or drop the threshold",
            )
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UsageError(
                f"threshold is {self.threshold}", "feasibilities are compared with a finite number", "give a number such as 0.3"
            )
        for name, minimum in (("topk", 1), ("bootstrap", 0), ("per_pair", 0)):
            if getattr(self, name) < minimum:
                raise UsageError(
                    f"{name} is {getattr(self, name)}", f"the minimum is {minimum}", f"give a whole number from {minimum} on"
                )
        for name, choices in (("rule", RULES), ("split", SPLITS)):
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}", "it is not one of the choices", f"choose one of {', '.join(choices)}"
                )

    @property
    def name(self) -> str:
        """Stem of the files of the evaluation: ``test-closed``, ``val-open``, ``test-closed-tomcat-1f0c9a3e-seed0``."""
        part = f"-{self.per_pair}-per-pair" if self.per_pair else ""
        return f"{self.split}-{'open' if self.open_world else 'closed'}{part}{f'-{self.adapt.key}' if self.adapt else ''}"


@dataclass(frozen=True)
class Prepared:
    """Inputs of an evaluation: the method on its device, the images' dataset, the pairs that compete and their text features.

    additions : what ``czsl add`` put into the run since it was trained
    everything : images of the split before ``per_pair``
    """

    method: Method
    data: Dataset
    candidates: Candidates
    text: TextFeatures
    additions: Any
    everything: int

    def loader(self, run: Run, split: str, comm: Group, progress: Progress = quiet) -> FeatureLoader:
        """Image features of a split."""
        how = (run.config.eval_batch, progress, self.method.clip.precision)
        return FeatureLoader(self.method, self.data, split, comm, *how, pixels=run.config.pixels)


def prepare(run: Run, eval_config: EvalConfig, comm: Group, device: torch.device) -> Prepared:
    """Load the run and the data of an evaluation.

    Raises
    ------
    DataError
        The split has no images.
    UsageError
        A method that the adaptation cannot adapt.
    """
    allow_tf32(device, run.config.precision)
    method = load(run, eval_config.checkpoint, precision=run.precision_on(device)).to(device)
    method.comm = comm
    if eval_config.adapt:
        check_adaptable(method.name)
    additions = (
        checkpoint.state_of(checkpoint.find(run.checkpoints, eval_config.checkpoint)).get("additions") if method.trains else None
    )
    if additions:  # evaluated on the labels that the run began with; scores of these are not changed by further words
        method = method.for_space(load_space(run.path / "space.json"))
    data = open_evaluation_data(run, eval_config, method)
    everything = len(data.split(eval_config.split))
    if eval_config.per_pair:
        data = Subset(data, eval_config.per_pair, SUBSET_SEED)
    if not len(data.split(eval_config.split)):
        raise DataError(f"{data.folder} has no {eval_config.split} images", "the split is empty", "choose another --split")
    candidates = Candidates.build(
        data.space,
        split=eval_config.split,
        open_world=eval_config.open_world,
        feasibility=_feasibility(eval_config, method, data, comm),
        threshold=eval_config.threshold,
    )
    return Prepared(method, data, candidates, encode_candidates(method, candidates), additions, everything)


def evaluate(
    run: Run, eval_config: EvalConfig, comm: Group, device: torch.device, progress: Progress = quiet
) -> tuple[dict[str, Any], SavedEvaluation]:
    """The report and what it follows from, computed by the workers of ``comm`` together."""
    ready = prepare(run, eval_config, comm, device)
    method, data, candidates, text, additions = ready.method, ready.data, ready.candidates, ready.text, ready.additions

    def reduced(split: str, collectors: Any = ()) -> tuple[Extremes, list[list[Any]]]:
        loader = ready.loader(run, split, comm, progress)
        rest: Any = (run.config.eval_batch, comm, progress, eval_config.topk, text, collectors)
        if eval_config.adapt:
            return reduce_stream(method, eval_config.adapt, loader, candidates, *rest)
        return reduce_split(method, loader, candidates, np.arange(len(loader.split)), *rest)

    # In the open world all pairs compete, whatever the split: candidates and text serve both, and one pass serves threshold and point.
    val = cache(lambda: reduced("val")[0])
    own_val = (
        not additions
        and eval_config.open_world
        and not eval_config.per_pair
        and eval_config.topk == 1
        and data.sha256 == open_sha256(run)
    )
    asked = Calibration(eval_config.checkpoint, eval_config.open_world, adapt=eval_config.adapt)
    scored = (lambda: at_threshold(val(), candidates, None)) if own_val else None
    point = find_point(run, asked, lambda: method, comm, progress, scored)
    measure = not eval_config.open_world and eval_config.topk == 1
    extremes, found = reduced(eval_config.split, _collectors(candidates, point) if measure else ())
    sums = Sums.concatenate(found[0]) if found else None
    marginals = join_marginals(found[1]) if len(found) > 1 else None
    chosen = _Choice(eval_config.threshold, "given")
    if not is_classes(data.space) and eval_config.threshold is None:
        chosen = _choose(eval_config, candidates, data, val)
    threshold, rule = chosen.threshold, eval_config.rule
    numbers = report(
        extremes,
        candidates,
        threshold=threshold,
        rule=rule,
        point=point,
        sums=sums,
        marginals=marginals,
        bootstrap=eval_config.bootstrap,
        seed=run.config.seed,
    )
    additions_note = [_with_additions(additions, data)] if additions else []
    if warnings := [*numbers.pop("warnings", []), *chosen.notes, *point.notes, *additions_note]:
        numbers["warnings"] = warnings
    about = {"method": run.config.method, "split": eval_config.split, "open_world": eval_config.open_world}
    hashes = {"data_sha256": data.sha256, "checkpoint_sha256": fingerprint(run, eval_config.checkpoint)}
    result = {**about, data.space.nouns: int(candidates.allowed.sum()), **numbers, **hashes}
    if eval_config.per_pair:
        result["subset"] = {"per_pair": eval_config.per_pair, "seed": SUBSET_SEED, "of_images": ready.everything}
    facts = {**about, **hashes}
    if eval_config.adapt:
        result["adaptation"] = eval_config.adapt.to_json()
        facts["adaptation"] = eval_config.adapt.key
    if is_classes(data.space):
        result["gamma_chosen"] = point.how if point.how == "val" else None
    if len(candidates.thresholds):
        result["threshold_chosen"] = chosen.how
        facts |= {"threshold": threshold, "rule": rule, "threshold_chosen": chosen.how}
    in_use = at_threshold(extremes, candidates, threshold, rule)
    names = data.split(eval_config.split).ids, list(data.space.attributes), list(data.space.objects)
    return result, SavedEvaluation(in_use, *names, facts, sums)


def _collectors(candidates: Candidates, point: OperatingPoint) -> list[Any]:
    """Sums for the quality of probabilities, without a point and at this one."""
    points = [OperatingPoint(), point]
    temperatures, scalings = temperatures_of(points), [(p.attribute, p.object) for p in points]
    found: list[Any] = [lambda labels, index: SumsAccumulator(candidates, labels, temperatures, index)]
    if not is_classes(candidates.space):
        found.append(lambda labels, index: Marginals(candidates, labels, scalings, index))
    return found


def _with_additions(additions: list[dict[str, Any]], data: Dataset) -> str:
    """A warning that images were added to a run after its training."""
    space = data.space
    unseen = {space.pair_names(pair) for pair in space.closed_pairs[~space.seen_mask(space.closed_pairs)]}
    met = {tuple(pair) for one in additions for pair in one["pairs"]} & unseen
    count = sum(len(one["images"]) for one in additions)
    return f"{count} images were added to this run; {len(met)} of the {space.nouns} that count as unseen are among them"


def open_evaluation_data(run: Run, eval_config: EvalConfig, method: Method) -> Dataset:
    """The dataset of an evaluation; DataError if its labels are not the method's."""
    data = open_data(eval_config.data or run.config.data, run.config.decode)
    here, there = (data.space.attributes, data.space.objects), (method.space.attributes, method.space.objects)
    if here != there:
        raise DataError(
            f"{data.folder} has another label space than the run",
            "attributes or objects differ",
            "evaluate on the run's own labels",
        )
    return data


# -- feasibility ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Choice:
    """A feasibility threshold and where it comes from: ``given``, ``val``, or None: none in use."""

    threshold: float | None = None
    how: str | None = None
    notes: tuple[str, ...] = ()


def _choose(eval_config: EvalConfig, candidates: Candidates, data: Dataset, val: Callable[[], Extremes]) -> _Choice:
    """The threshold with the best AUC on the validation split; none where that split is the one asked about."""
    if not len(candidates.thresholds) or eval_config.split == "val":
        return _Choice()
    if not len(data.split("val")):
        return _Choice(notes=("no feasibility threshold was chosen: there are no validation images",))
    threshold = choose_threshold(threshold_rows(val(), candidates, eval_config.rule), eval_config.rule)
    if threshold is None:
        return _Choice(notes=("no feasibility threshold was chosen: every AUC on the validation split is 0 or undefined",))
    return _Choice(threshold, "val")


def _feasibility(eval_config: EvalConfig, method: Method, data: Dataset, comm: Group) -> np.ndarray | None:
    if not eval_config.open_world or eval_config.feasibility is None:
        return None
    if not isinstance(eval_config.feasibility, str):
        return eval_config.feasibility
    # Computed once: machines may differ in the last bits, and thresholds follow from them.
    return comm.from_first(feasibility_from_clip(method.clip, data.space) if comm.rank == 0 else None)


# -- what is kept --------------------------------------------------------------------------------------------------
def saved_evaluation_file(run: Run, eval_config: EvalConfig) -> Path:
    """Return the file with the few numbers per image of an evaluation."""
    return run.path / f"extremes-{eval_config.name}{f'-top{eval_config.topk}' if eval_config.topk > 1 else ''}.npz"


def saved_evaluation(run: Run, eval_config: EvalConfig) -> tuple[SavedEvaluation | None, str]:
    """Result of an earlier evaluation, or None and the reason why it cannot be used.

    In the open world it is of the threshold that was used then; settings of the threshold in ``eval_config`` play no part.
    """
    file = saved_evaluation_file(run, eval_config)
    if not file.exists():
        return None, "no numbers of its images are kept yet"
    try:
        kept = SavedEvaluation.load(file)
    except DataError as error:
        return None, f"{file.name} is damaged ({error.why})"
    if kept.facts.get("checkpoint_sha256") != fingerprint(run, eval_config.checkpoint):
        return None, "its kept numbers are of another checkpoint"
    if kept.facts.get("data_sha256") != open_data(eval_config.data or run.config.data).sha256:
        return None, "its kept numbers are of other data"
    about = (kept.facts.get("split"), kept.facts.get("open_world"), kept.extremes.k)
    adaptation = eval_config.adapt.key if eval_config.adapt else None
    if about != (eval_config.split, eval_config.open_world, eval_config.topk) or kept.facts.get("adaptation") != adaptation:
        return None, f"{file.name} is of another evaluation"
    return kept, ""
