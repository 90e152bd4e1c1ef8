"""Feasibility thresholds in the open world: every threshold from one pass over the scores.

Two rules. ``exclude``: an infeasible unseen pair cannot be predicted. ``reference``, as the literature's programs do it: scores
are multiplied by (feasible + seen), so an infeasible unseen pair scores 0 and, as seen pairs carry a feasibility of 0, thresholds
of 0 and below double the seen scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from czsl.evaluation.candidates import Candidates
from czsl.evaluation.extremes import RIGHT_END, Extremes, best_of

RULES = ("exclude", "reference")


def check_rule(rule: str) -> None:
    """Raise ValueError unless ``rule`` is one of :data:`RULES`."""
    if rule not in RULES:
        raise ValueError(f"unknown feasibility rule {rule!r}; choose one of {', '.join(RULES)}")


def at_threshold(e: Extremes, candidates: Candidates, threshold: float | None, rule: str = "exclude") -> Extremes:
    """Extremes as they are under one of the candidates' thresholds (None: no threshold).

    Raises
    ------
    ValueError
        Unknown rule, or a threshold that was not among ``candidates.thresholds`` when the scores were reduced.
    """
    check_rule(rule)
    if threshold is None:
        return _level(e, 0)
    place = np.flatnonzero(candidates.thresholds == np.float32(threshold))
    if not place.size:
        raise ValueError(
            f"the scores were not reduced for the threshold {threshold} (but for {len(candidates.thresholds)} others); "
            "pass it to Candidates.build"
        )
    level = int(place[0]) + 1
    if rule == "exclude":
        return _level(e, level)
    return _multiplied(e, candidates, level, doubled=bool(candidates.thresholds[place[0]] <= 0))


def _level(e: Extremes, level: int) -> Extremes:
    only = slice(level, level + 1)
    return replace(
        e, unseen_score=e.unseen_score[:, only], unseen_pair=e.unseen_pair[:, only], shifted_pair=e.shifted_pair[:, only]
    )


def _multiplied(e: Extremes, candidates: Candidates, level: int, doubled: bool) -> Extremes:
    infeasible_P = (candidates.level < level) & ~candidates.seen & candidates.allowed
    factor = np.float32(2 if doubled else 1)
    true_score = np.where(e.true_seen, e.true_score * factor, e.true_score)
    true_score = np.where(infeasible_P[e.true_pair], np.float32(0), true_score)
    zeros = np.flatnonzero(infeasible_P)[: e.k].astype(np.int32)  # equal scores: the lowest indices are ahead
    zeros_Nk = np.broadcast_to(zeros, (len(e), len(zeros)))
    score, pair = e.unseen_score[:, level], e.unseen_pair[:, level]
    zero = np.zeros(zeros_Nk.shape, np.float32)
    unseen_score, unseen_pair = best_of(np.hstack([score, zero]), np.hstack([pair, zeros_Nk]), e.k)
    shifted = np.hstack([score + RIGHT_END, zero + RIGHT_END])
    _, shifted_pair = best_of(shifted, np.hstack([e.shifted_pair[:, level], zeros_Nk]), e.k)
    return replace(
        e,
        true_score=true_score,
        seen_score=e.seen_score * factor,
        unseen_score=unseen_score[:, None],
        unseen_pair=unseen_pair[:, None],
        shifted_pair=shifted_pair[:, None],
    )


def choose_threshold(rows: Sequence[dict], rule: str = "exclude") -> float | None:
    """The first threshold with the best AUC (of the validation split); None if every AUC is 0 or undefined.

    Parameters
    ----------
    rows : list of dict
        ``thresholds`` of a report.
    rule : {"exclude", "reference"}
        Chooses by ``auc``, or by ``auc_ref20`` as the literature does.
    """
    check_rule(rule)
    key = "auc" if rule == "exclude" else "auc_ref20"
    best, chosen = 0.0, None
    for row in rows:
        if (row[key] or 0.0) > best:
            best, chosen = row[key], row["threshold"]
    return chosen
