"""From scores to the numbers that ``czsl evaluate --json`` prints."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from czsl.classes import ClassSpace
from czsl.compositions import CompositionSpace
from czsl.errors import DataError
from czsl.evaluation.at_point import RESAMPLES, point_numbers
from czsl.evaluation.breakdown import breakdown
from czsl.evaluation.calibration import calibration_numbers, fit_point, temperatures_of
from czsl.evaluation.candidates import Candidates
from czsl.evaluation.classes import class_numbers
from czsl.evaluation.curve import Curve, primitive_hits, reference_curve
from czsl.evaluation.extremes import BLOCK, Extremes, ExtremesAccumulator
from czsl.evaluation.intervals import bootstrap_intervals, resampled_intervals
from czsl.evaluation.operating import Aim, OperatingPoint, choose_bias
from czsl.evaluation.rejection import DETECTORS, best_detector, rejection_numbers
from czsl.evaluation.scores_file import ScoreFile, as_space
from czsl.evaluation.sums import Marginals, Sums, SumsAccumulator
from czsl.evaluation.thresholds import at_threshold, check_rule, choose_threshold

NUMBERS = (
    *("auc", "hm", "seen", "unseen", "bias"),
    *("auc_ref20", "hm_ref20", "seen_ref20", "unseen_ref20", "bias_ref20", "hm_seen_ref20", "hm_unseen_ref20"),
    *("attr_acc", "obj_acc"),
)


def evaluate(
    scores,
    labels,
    space: CompositionSpace | Mapping,
    pairs=None,
    *,
    split: str = "test",
    open_world: bool = False,
    feasibility=None,
    threshold: float | None = None,
    val=None,
    aim: str = "hm",
    rule: str = "exclude",
    topk: int = 1,
    bootstrap: int = 0,
    seed: int = 0,
    details: bool = False,
    source: str = "scores",
) -> dict:
    """Evaluate any method from its scores: generalised compositional zero-shot accuracy over all calibration biases.

    Parameters
    ----------
    scores : float [N, P]
        Score of each image for each candidate pair; NumPy array or anything NumPy can view. Ranked in float32.
    labels : int [N, 2], or a tuple (attributes [N], objects [N])
        True indices into the space's lists.
    space : CompositionSpace or dict
        The label space, or the content of ``space.json`` or of a score file's JSON.
    pairs : int [P, 2], optional
        Pair of each column; default ``space.pairs(open_world)``.
    split : {"test", "val"}
        Whose unseen pairs compete in the closed world.
    open_world : bool
        All pairs compete.
    feasibility : float [P] or [A * O], optional
        Open world: searches 50 thresholds.
    threshold : float, optional
        The threshold in use; default none.
    val : ScoreFile or tuple (scores, labels), optional
        Scores of the validation split. In the closed world they choose the operating point (bias, and the scale of probabilities as the
        softmax of scores), in the open world the feasibility threshold in use.
    aim : str
        What the bias is chosen for: ``hm``, ``accuracy``, ``unseen-share=0.3`` or ``seen>=0.5``.
    rule : {"exclude", "reference"}
        What becomes of infeasible pairs (see :mod:`czsl.evaluation.thresholds`).
    topk : int
        An image counts when its true pair is among the ``topk`` best.
    bootstrap : int
        Resamples for 95 % confidence intervals; 0 for none.
    seed : int
        Seed of the bootstrap.
    details : bool
        Add macro averages and the accuracy of each attribute and object.
    source : str
        Name of the scores in errors.

    Returns
    -------
    dict
        Fractions, ready for JSON: see :func:`report`.

    Raises
    ------
    ValueError
        Options that contradict each other, or scores of another shape.
    UsageError, DataError
        An unknown split; scores, labels, pairs or feasibility that cannot be used.
    """
    space = as_space(space)
    if val is not None and open_world and (feasibility is None or threshold is not None):
        why = "no feasibility was given" if feasibility is None else "a threshold was given as well"
        raise ValueError(
            f"validation scores choose a threshold in the open world, but {why}; give a feasibility and no threshold"
        )
    candidates = Candidates.build(
        space, pairs, split=split, open_world=open_world, feasibility=feasibility, threshold=threshold, source=source
    )
    extremes = reduce_scores(scores, labels, candidates, topk, source)
    point = sums = marginals = None
    if val is not None and not open_world:
        point = _point_of(val, candidates, topk, aim)
        sums, marginals = _sums_of(scores, labels, candidates, point)
    elif val is not None:
        threshold = _threshold_of(val, candidates, rule, topk)
    return report(
        extremes,
        candidates,
        threshold=threshold,
        rule=rule,
        point=point,
        sums=sums,
        marginals=marginals,
        bootstrap=bootstrap,
        seed=seed,
        details=details,
    )


def reduce_scores(scores, labels, candidates: Candidates, topk: int = 1, source: str = "scores") -> Extremes:
    """Extremes of a whole score array [N, P] whose columns are the candidates' pairs."""
    accumulator = ExtremesAccumulator(candidates, labels, topk, source=source)
    count, width = len(accumulator.index_N), len(candidates.pairs)
    if np.shape(scores) != (count, width):
        raise ValueError(f"{source}: scores of shape {list(np.shape(scores))} for {count} images and {width} candidate pairs")
    step = max(BLOCK // width, 1)
    for start in range(0, count, step):
        stop = min(start + step, count)
        accumulator.update(slice(start, stop), 0, scores[start:stop])
    return accumulator.result()


def report(
    extremes: Extremes,
    candidates: Candidates,
    *,
    threshold: float | None = None,
    rule: str = "exclude",
    point: OperatingPoint | None = None,
    sums: Sums | None = None,
    marginals: np.ndarray | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    details: bool = False,
) -> dict:
    """The numbers of :func:`evaluate` from extremes.

    Parameters
    ----------
    point : OperatingPoint, optional
        Reported next to the best over all biases; in the open world without a feasibility threshold, as predictions are. Of plain classes
        its bias is gamma; None: gamma is 0.
    sums : Sums, optional
        At the temperatures that :func:`czsl.evaluation.calibration.temperatures_of` the point and of no point names.
    marginals : float [N, 2, 2, 4], optional
        See :func:`czsl.evaluation.calibration.calibration_numbers`.

    Returns
    -------
    dict
        The fifteen keys of :func:`numbers`, of plain classes with those of :func:`czsl.evaluation.class_numbers` instead of ``attr_acc,
        obj_acc``; ``topk`` if it is not 1; in the open world ``threshold`` (None: none in use) and, with a feasibility, ``rule`` and
        ``thresholds`` (one dict a threshold, its keys and ``threshold``); ``intervals`` with a bootstrap; ``macro``, ``per_attribute``,
        ``per_object`` (or ``per_class``) with ``details``; with a point ``operating_point``, the keys of :func:`point_numbers` and, with
        sums, of :func:`calibration_numbers`, ``reject_auroc``, ``reject_fpr95`` and ``rejection``; ``warnings`` if there are any.
        Undefined numbers are None.
    """
    check_rule(rule)
    in_use = at_threshold(extremes, candidates, threshold, rule)
    result: dict = numbers(in_use, candidates.pairs)
    if extremes.k > 1:
        result["topk"] = extremes.k
    if candidates.open_world:
        result["threshold"] = None if threshold is None else float(np.float32(threshold))
    if len(candidates.thresholds):
        result["rule"] = rule
        result["thresholds"] = threshold_rows(extremes, candidates, rule)
    if bootstrap:
        result["intervals"] = bootstrap_intervals(in_use, candidates.pairs, bootstrap, seed)
    if isinstance(candidates.space, ClassSpace):
        result = _of_classes(result, in_use, point.bias if point else 0.0, bootstrap, seed)
    if point is not None:
        result |= _at_point(at_threshold(extremes, candidates, None), candidates, point, sums, marginals, bootstrap, seed)
    if details:
        result |= breakdown(in_use, candidates)
    if warnings := find_warnings(extremes, candidates):
        result["warnings"] = warnings
    return result


def _of_classes(result: dict, e: Extremes, gamma: float, bootstrap: int, seed: int) -> dict:
    """The report with the numbers of plain classes instead of those of attributes and objects."""
    result = {key: value for key, value in result.items() if key not in ("attr_acc", "obj_acc")}
    result |= {key: plain(value) for key, value in class_numbers(e, gamma).items()}
    if bootstrap:
        found = resampled_intervals(lambda weight: class_numbers(e, gamma, weight), len(e), bootstrap, seed)
        own = {key: value for key, value in result["intervals"].items() if key not in ("attr_acc", "obj_acc")}
        result["intervals"] = own | {key: value for key, value in found.items() if key != "gamma"}
    return result


def _at_point(
    e: Extremes, candidates: Candidates, point: OperatingPoint, sums: Sums | None, marginals, bootstrap: int, seed: int
) -> dict:
    """Return the numbers of :func:`~czsl.evaluation.at_point.point_numbers` and, with sums, of calibration and rejection, as JSON."""
    found: dict = {"operating_point": {**point.brief(), "for": point.aim}}
    found |= point_numbers(e, point, isinstance(candidates.space, ClassSpace), bootstrap or RESAMPLES, seed)
    if sums is not None and e.k == 1:
        found |= calibration_numbers(e, sums, marginals, OperatingPoint(), point)
        rejection = rejection_numbers(sums, point)
        if rejection is not None:
            chosen = point.facts.get("rejection", {}).get("best") or best_detector(rejection) or DETECTORS[0]
            found |= {"reject_auroc": rejection[chosen]["auroc"], "reject_fpr95": rejection[chosen]["fpr95"]}
            found["rejection"] = {"detector": chosen, **rejection}
    return {key: plain(value) if isinstance(value, float) else value for key, value in found.items()}


def numbers(e: Extremes, pairs: np.ndarray) -> dict:
    """The fifteen numbers at level 0 of the extremes.

    ``auc, hm, seen, unseen, bias`` exact over every bias; the same with ``_ref20`` and ``hm_seen_ref20, hm_unseen_ref20`` as papers
    print them; ``attr_acc, obj_acc`` of the prediction without a bias; ``images``.
    """
    attr_acc, obj_acc = primitive_hits(e, pairs).mean(axis=0)
    values = {**Curve(e).numbers(), **reference_curve(e), "attr_acc": attr_acc, "obj_acc": obj_acc}
    return {**{key: plain(values[key]) for key in NUMBERS}, "images": len(e)}


def plain(value: float) -> float | None:
    """A number for JSON: None if it is undefined."""
    return float(value) if np.isfinite(value) else None


def threshold_rows(extremes: Extremes, candidates: Candidates, rule: str = "exclude") -> list[dict]:
    """The numbers at every threshold of the candidates' grid, each with its ``threshold``."""
    return [
        {"threshold": float(t), **numbers(at_threshold(extremes, candidates, t, rule), candidates.pairs)} for t in candidates.grid
    ]


def find_warnings(extremes: Extremes, candidates: Candidates) -> list[str]:
    """Return warnings for readers of the numbers."""
    warnings, noun = [], candidates.space.noun
    if extremes.true_seen.all():
        warnings.append(f"no image shows an unseen {noun}: unseen accuracy, harmonic mean and AUC are undefined")
    if not extremes.true_seen.any():
        warnings.append(f"no image shows a seen {noun}: seen accuracy, harmonic mean and AUC are undefined")
    outside = np.flatnonzero(~candidates.allowed[extremes.true_pair])
    if outside.size:
        name = candidates.space.pair_name(extremes.labels[outside[0]])
        warnings.append(
            f"{outside.size} images show a {noun} that is neither of this split nor of training and count as wrong; the first is "
            f"image {extremes.index[outside[0]]} ({name})"
        )
    return warnings


def _point_of(val, candidates: Candidates, topk: int, aim: str) -> OperatingPoint:
    """The operating point of validation scores, given as a ScoreFile or (scores, labels)."""
    pairs, source = candidates.pairs, "val scores"
    if isinstance(val, ScoreFile):
        pairs, source, val = val.pairs, val.source, (val.scores, val.labels)
    own = Candidates.build(candidates.space, pairs, split="val", source=source)
    extremes = reduce_scores(val[0], val[1], own, topk, source)
    bias, note = choose_bias(extremes, Aim.parse(aim), isinstance(candidates.space, ClassSpace))
    point = OperatingPoint(bias, "none" if note else "val", aim, notes=(note,) if note else ())
    sums = _collect(val[0], SumsAccumulator(own, val[1]))
    point = fit_point(extremes, sums, point)
    point.facts["rejection"] = {"best": best_detector(rejection_numbers(sums, point))}
    return point


def _sums_of(scores, labels, candidates: Candidates, point: OperatingPoint):
    """Sums and marginals of scores [N, P] at no point and at this one; None for marginals of plain classes."""
    points = [OperatingPoint(), point]
    sums = _collect(scores, SumsAccumulator(candidates, labels, temperatures_of(points)))
    if isinstance(candidates.space, ClassSpace):
        return sums, None
    _, marginals = _collect(scores, Marginals(candidates, labels, [(p.attribute, p.object) for p in points]))
    return sums, marginals


def _collect(scores, accumulator):
    """Feed scores [N, P], which are their own log-weights, to an accumulator of sums or marginals."""
    columns, step = np.arange(np.shape(scores)[1]), max(BLOCK // max(np.shape(scores)[1], 1), 1)
    for start in range(0, len(scores), step):
        rows = slice(start, min(start + step, len(scores)))
        block = np.asarray(scores[rows], np.float32)
        accumulator.update(rows, columns, block, block)
    return accumulator.result()


def _threshold_of(val, candidates: Candidates, rule: str, topk: int) -> float | None:
    """The best threshold of validation scores, given as a ScoreFile or (scores, labels)."""
    own, source = candidates, "val scores"
    if isinstance(val, ScoreFile):
        source = val.source
        place = candidates.space.locate(val.pairs, candidates.pairs)
        if len(place) != len(candidates.pairs) or (place < 0).any():
            raise DataError(
                f"{source}: {len(place)} pairs", f"the other scores have {len(candidates.pairs)}", "score the same pairs"
            )
        assert candidates.feasibility is not None
        own = Candidates.build(
            candidates.space,
            val.pairs,
            open_world=True,
            feasibility=candidates.feasibility[place],
            grid=candidates.grid,
            source=source,
        )
        val = (val.scores, val.labels)
    scores, labels = val
    return choose_threshold(threshold_rows(reduce_scores(scores, labels, own, topk, source), own, rule), rule)
