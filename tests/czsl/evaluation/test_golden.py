"""Evaluation against golden numbers of our own (``golden.json``), from evaluators that hold all scores."""

from pathlib import Path

import dense
import numpy as np
import pytest
from golden import Golden
from random_problems import make_problem

from czsl.evaluation import evaluate

GOLDEN = Golden(Path(__file__).with_name("golden.json"))
EXACT = ("auc", "hm", "seen", "unseen")
REFERENCE = ("auc_ref20", "hm_ref20", "seen_ref20", "unseen_ref20", "bias_ref20", "hm_seen_ref20", "hm_unseen_ref20")


@pytest.mark.parametrize("topk", [1, 2])
@pytest.mark.parametrize("world", ["closed", "open"])
@pytest.mark.parametrize("kind", ["ties", "cosine", "smooth"])
def test_numbers(kind, world, topk):
    problem = make_problem(11, kind, world == "open", images=40)
    exact, _ = dense.exact(problem.scores, problem.seen, problem.allowed, problem.true, topk)
    reference = dense.reference(problem.scores, problem.seen, problem.allowed, problem.true, problem.pairs, problem.labels, topk)
    result = evaluate(**problem.inputs(), topk=topk)
    keys = (*REFERENCE, "attr_acc", "obj_acc")
    plain = [*(exact[key] for key in EXACT), *(reference[key] for key in keys)]
    GOLDEN.check(f"{kind}, {world}, top-{topk}", plain, [result[key] for key in (*EXACT, *keys)])


@pytest.mark.parametrize("rule", ["exclude", "reference"])
def test_thresholds(rule):
    problem = make_problem(12, "smooth", True, images=40)
    result = evaluate(**problem.inputs(), feasibility=problem.feasibility, rule=rule)
    rows = result["thresholds"][::10]
    plain = []
    for row in rows:
        scores, allowed = dense.apply_threshold(problem.scores, problem.seen, problem.feasibility, row["threshold"], rule)
        found = dense.reference(scores, problem.seen, allowed, problem.true, problem.pairs, problem.labels)
        plain.append([row["threshold"], *(found[key] for key in REFERENCE)])
    GOLDEN.check(f"thresholds, {rule}", np.array(plain), [[row[key] for key in ("threshold", *REFERENCE)] for row in rows])


def test_feasibility():
    from czsl.evaluation.feasibility import feasibility_from_vectors

    problem = make_problem(13)
    draw = np.random.default_rng(13)
    vectors = [draw.standard_normal((n, 6)) for n in (problem.space.num_attributes, problem.space.num_objects)]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    plain = dense.feasibility(unit[0] @ unit[0].T, unit[1] @ unit[1].T, problem.space)
    GOLDEN.check("feasibility", plain, feasibility_from_vectors(*vectors, problem.space))
