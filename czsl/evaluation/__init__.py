"""Evaluation of compositional zero-shot predictions from scores, with NumPy; see ``docs/evaluation.md``."""

from czsl.evaluation.at_point import point_numbers
from czsl.evaluation.candidates import Candidates, threshold_grid
from czsl.evaluation.classes import class_numbers
from czsl.evaluation.curve import Curve
from czsl.evaluation.extremes import Extremes, ExtremesAccumulator
from czsl.evaluation.intervals import bootstrap_intervals, compare, pair_accuracies
from czsl.evaluation.operating import Aim, OperatingPoint, choose_bias
from czsl.evaluation.reduction import SavedEvaluation
from czsl.evaluation.report import evaluate, reduce_scores, report, threshold_rows
from czsl.evaluation.scores_file import ScoreFile, read_scores, read_space, write_scores
from czsl.evaluation.thresholds import at_threshold, choose_threshold

Reduction = SavedEvaluation  # its name before; scripts of users load saved evaluations by it

__all__ = [
    "Aim",
    "Candidates",
    "Curve",
    "Extremes",
    "ExtremesAccumulator",
    "OperatingPoint",
    "Reduction",
    "SavedEvaluation",
    "ScoreFile",
    "at_threshold",
    "bootstrap_intervals",
    "choose_bias",
    "choose_threshold",
    "class_numbers",
    "compare",
    "evaluate",
    "pair_accuracies",
    "point_numbers",
    "read_scores",
    "read_space",
    "reduce_scores",
    "report",
    "threshold_grid",
    "threshold_rows",
    "write_scores",
]  # fmt: skip
