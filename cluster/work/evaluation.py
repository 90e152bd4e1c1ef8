"""Evaluating a run: in this process, or dealt out over the workers of a cluster with the same answer to the last digit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cluster.work.comm import Group
from cluster.work.progress import Progress, quiet
from cluster.work.scoring import encode_candidates, score_split
from cluster.work.source import Source
from czsl.classes import ClassSpace
from czsl.clip.feasibility import feasibility_from_clip
from czsl.data.subset import Subset
from czsl.data.table import Dataset, open_data
from czsl.errors import DataError, UsageError
from czsl.evaluation import (
    Candidates,
    Extremes,
    Reduction,
    at_threshold,
    choose_gamma,
    choose_threshold,
    report,
    threshold_rows,
)
from czsl.runs import checkpoint
from czsl.runs.run import Run
from czsl.spaces import load_space
from methods.loading import fingerprint, load
from methods.method import Method
from methods.sides import TextSide

SUBSET_SEED = 0  # of --per-pair: all runs are asked about the same images


@dataclass(frozen=True)
class Question:
    """What to evaluate.

    split : ``test``, ``val`` or ``train``
    open_world : all attribute-object pairs compete
    checkpoint : ``best``, ``last`` or a step
    data : another dataset of the same label space, else the run's own
    topk : an image counts when its true pair is among the k best
    bootstrap : resamples for intervals
    feasibility : open world: ``clip`` (from the run's own text tower), a vector [A * O], or None for no thresholds
    threshold : open world: the feasibility threshold in use; by default the best one on the validation split
    rule : what becomes of infeasible pairs (see :mod:`czsl.evaluation.thresholds`)
    per_pair : at most so many images of each pair, drawn by ``SUBSET_SEED``; 0: all images
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

    def __post_init__(self):
        if self.threshold is not None and not (self.open_world and self.feasibility is not None):
            raise UsageError(
                "a feasibility threshold without a feasibility" if self.open_world else "a threshold in the closed world",
                "it cuts away unlikely pairs of the open world",
                "evaluate the open world with a feasibility, or drop the threshold",
            )

    @property
    def name(self) -> str:
        """How files of the answer are called: ``test-closed``, ``val-open``."""
        part = f"-{self.per_pair}-per-pair" if self.per_pair else ""
        return f"{self.split}-{'open' if self.open_world else 'closed'}{part}"


def answer(
    run: Run, question: Question, comm: Group, device: torch.device, progress: Progress = quiet
) -> tuple[dict[str, Any], Reduction]:
    """The report and what it follows from, computed by the workers of ``comm`` together."""
    method = load(run, question.checkpoint).to(device)
    method.comm = comm
    additions = (
        checkpoint.state_of(checkpoint.find(run.checkpoints, question.checkpoint)).get("additions") if method.trains else None
    )
    if additions:  # evaluated on the labels that the run began with; scores of these are not changed by further words
        method = method.for_space(load_space(run.path / "space.json"))
    data = open_evaluation_data(run, question, method)
    everything = len(data.split(question.split))
    if question.per_pair:
        data = Subset(data, question.per_pair, SUBSET_SEED)
    if not len(data.split(question.split)):
        raise DataError(f"{data.folder} has no {question.split} images", "the split is empty", "choose another --split")
    candidates = Candidates.build(
        data.space,
        split=question.split,
        open_world=question.open_world,
        feasibility=_feasibility(question, method, data, comm),
        threshold=question.threshold,
    )
    text = encode_candidates(method, candidates)

    def reduced(split: str, among: Candidates = candidates, text: TextSide = text) -> Extremes:
        source = Source(method, data, split, comm, run.config.eval_batch, progress, run.config.precision)
        rows = np.arange(len(source.split))
        return score_split(method, source, among, rows, run.config.eval_batch, comm, progress, question.topk, text)

    extremes, chosen = reduced(question.split), _Choice(question.threshold, "given")
    if isinstance(data.space, ClassSpace):
        chosen = _choose_gamma(question, extremes, data, lambda own: reduced("val", own, encode_candidates(method, own)))
    elif question.threshold is None:
        chosen = _choose(question, candidates, data, reduced)
    threshold, rule = chosen.threshold, question.rule
    numbers = report(
        extremes,
        candidates,
        threshold=threshold,
        rule=rule,
        gamma=chosen.gamma,
        bootstrap=question.bootstrap,
        seed=run.config.seed,
    )
    notes = [_with_additions(additions, data)] if additions else []
    if warnings := [*numbers.pop("warnings", []), *chosen.notes, *notes]:
        numbers["warnings"] = warnings
    about = {"method": run.config.method, "split": question.split, "open_world": question.open_world}
    result = {**about, data.space.nouns: int(candidates.allowed.sum()), **numbers}
    if question.per_pair:
        result["subset"] = {"per_pair": question.per_pair, "seed": SUBSET_SEED, "of_images": everything}
    facts = {**about, "data_sha256": data.sha256, "checkpoint_sha256": fingerprint(run, question.checkpoint)}
    if isinstance(data.space, ClassSpace):
        result["gamma_chosen"] = chosen.how
        facts["gamma"] = chosen.gamma
    if len(candidates.thresholds):
        result["threshold_chosen"] = chosen.how
        facts |= {"threshold": threshold, "rule": rule, "threshold_chosen": chosen.how}
    in_use = at_threshold(extremes, candidates, threshold, rule)
    names = data.split(question.split).ids, list(data.space.attributes), list(data.space.objects)
    return result, Reduction(in_use, *names, facts)


def _with_additions(additions: list[dict[str, Any]], data: Dataset) -> str:
    """A warning that images were added to a run after its training."""
    space = data.space
    unseen = {space.pair_names(pair) for pair in space.closed_pairs[~space.seen_mask(space.closed_pairs)]}
    met = {tuple(pair) for one in additions for pair in one["pairs"]} & unseen
    count = sum(len(one["images"]) for one in additions)
    return f"{count} images were added to this run; {len(met)} of the {space.nouns} that count as unseen are among them"


def open_evaluation_data(run: Run, question: Question, method: Method) -> Dataset:
    """The dataset of a question; DataError where its labels are not the method's."""
    data = open_data(question.data or run.config.data)
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
    """A feasibility threshold, or the gamma of plain classes, and where it comes from: ``given``, ``val``, or None: none in use."""

    threshold: float | None = None
    how: str | None = None
    gamma: float | None = None
    notes: tuple[str, ...] = ()


def _choose(question: Question, candidates: Candidates, data: Dataset, reduced: Callable[[str], Extremes]) -> _Choice:
    """The threshold with the best AUC on the validation split; none where that split is the one asked about."""
    if not len(candidates.thresholds) or question.split == "val":
        return _Choice()
    if not len(data.split("val")):
        return _Choice(notes=("no feasibility threshold was chosen: there are no validation images",))
    # In the open world all pairs compete, whatever the split: candidates and text serve both.
    threshold = choose_threshold(threshold_rows(reduced("val"), candidates, question.rule), question.rule)
    if threshold is None:
        return _Choice(notes=("no feasibility threshold was chosen: every AUC on the validation split is 0 or undefined",))
    return _Choice(threshold, "val")


def _choose_gamma(question: Question, extremes: Extremes, data: Dataset, reduced: Callable[[Candidates], Extremes]) -> _Choice:
    """The gamma with the best H on the validation split, whose unseen classes are others than those of test; 0 where it has none."""
    if question.split != "val":
        seen_N = data.space.seen_mask(data.split("val").pairs)
        if seen_N.all() or not seen_N.any():
            missing = "seen" if len(seen_N) and not seen_N.any() else "unseen"
            return _Choice(notes=(f"gamma is 0: there are no validation images of {missing} classes to choose it on",))
        extremes = reduced(Candidates.build(data.space, split="val"))
    gamma = choose_gamma(extremes)
    if gamma is None:
        return _Choice(notes=("gamma is 0: H is 0 or undefined on the validation split, whatever gamma is",))
    return _Choice(how="val", gamma=gamma)


def _feasibility(question: Question, method: Method, data: Dataset, comm: Group) -> np.ndarray | None:
    if not question.open_world or question.feasibility is None:
        return None
    if not isinstance(question.feasibility, str):
        return question.feasibility
    # Computed once: machines may differ in the last bits, and thresholds follow from them.
    return comm.from_first(feasibility_from_clip(method.clip, data.space) if comm.rank == 0 else None)


# -- what is kept --------------------------------------------------------------------------------------------------
def reduction_file(run: Run, question: Question) -> Path:
    """Where the few numbers an image of an evaluation are kept."""
    return run.path / f"extremes-{question.name}{f'-top{question.topk}' if question.topk > 1 else ''}.npz"


def kept_reduction(run: Run, question: Question) -> tuple[Reduction | None, str]:
    """What an earlier evaluation left, or None and in words why it cannot be used.

    In the open world it is of the threshold that was used then; settings of the threshold in ``question`` play no part.
    """
    file = reduction_file(run, question)
    if not file.exists():
        return None, "no numbers of its images are kept yet"
    try:
        kept = Reduction.load(file)
    except DataError as error:
        return None, f"{file.name} is damaged ({error.why})"
    if kept.facts.get("checkpoint_sha256") != fingerprint(run, question.checkpoint):
        return None, "its kept numbers are of another checkpoint"
    if kept.facts.get("data_sha256") != open_data(question.data or run.config.data).sha256:
        return None, "its kept numbers are of other data"
    about = (kept.facts.get("split"), kept.facts.get("open_world"), kept.extremes.k)
    if about != (question.split, question.open_world, question.topk):
        return None, f"{file.name} is of another evaluation"
    return kept, ""
