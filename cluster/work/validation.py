"""The validation of a training: closed-world numbers, and the one that epochs are compared by."""

from __future__ import annotations

from typing import Any

from cluster.work.scoring import score_split
from cluster.work.trainer import Trainer
from czsl.evaluation import Candidates, report
from czsl.evaluation.at_point import accuracies

LOGGED = ("auc", "auc_ref20", "hm", "seen", "unseen", "attr_acc", "obj_acc", "top1")  # figures of a validation


def judged(t: Trainer) -> float:
    """The AUC of the method as it stands on the validation images in use, or the accuracy if no AUC is defined."""
    numbers = validation(t)
    return numbers["auc"] if numbers.get("auc") is not None else numbers["top1"]


def validation(t: Trainer) -> dict[str, Any]:
    """Closed-world numbers on the validation images in use, and the accuracy without a bias."""
    candidates = Candidates.build(t.data.space, split="val")
    t.method.validating = True
    extremes = score_split(t.method, t.val, candidates, t.val_rows, t.config.eval_batch, t.comm)
    t.method.validating = False
    return {**report(extremes, candidates), "accuracy": accuracies(extremes, 0.0)["acc"]}


def figure_of(selection: str, epoch: int, facts: dict[str, Any]) -> float | None:
    """Return the number that epochs are compared by; None if there is nothing to compare, and every epoch replaces the one before."""
    if selection == "last":
        return float(epoch)
    return facts.get({"auc20": "auc_ref20"}.get(selection, selection))
