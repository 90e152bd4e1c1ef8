import json
import subprocess
import sys

import numpy as np
import pytest
from random_problems import make_problem

from czsl.compositions import CompositionSpace
from czsl.errors import DataError, UsageError
from czsl.evaluation import Candidates, evaluate

FIFTEEN = (
    *("auc", "hm", "seen", "unseen", "bias", "auc_ref20", "hm_ref20", "seen_ref20", "unseen_ref20", "bias_ref20"),
    *("hm_seen_ref20", "hm_unseen_ref20", "attr_acc", "obj_acc", "images"),
)


def test_keys_of_the_closed_world():
    result = evaluate(**make_problem(1).inputs())
    assert tuple(result) == FIFTEEN
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_keys_of_the_open_world():
    problem = make_problem(1, open_world=True)
    assert tuple(evaluate(**problem.inputs())) == (*FIFTEEN, "threshold")
    result = evaluate(**problem.inputs(), feasibility=problem.feasibility, bootstrap=5, details=True, topk=2)
    extra = ("topk", "threshold", "rule", "thresholds", "intervals", "macro", "per_attribute", "per_object")
    assert tuple(result) == (*FIFTEEN, *extra)
    assert all(tuple(row) == ("threshold", *FIFTEEN) for row in result["thresholds"])
    json.dumps(result, allow_nan=False)


def test_space_as_json_and_labels_as_vectors():
    problem = make_problem(1)
    content = problem.space.to_json()
    labels = (problem.labels[:, 0].tolist(), problem.labels[:, 1].tolist())
    as_file = {**content, "attrs": content["attributes"], "objs": content["objects"]}
    del as_file["attributes"], as_file["objects"]
    expected = evaluate(**problem.inputs())
    for space in (content, as_file):
        assert evaluate(problem.scores.tolist(), labels, space, problem.pairs.tolist()) == expected


def test_default_pairs_are_those_of_the_space():
    problem = make_problem(1)
    order = problem.space.locate(problem.space.closed_pairs, problem.pairs)
    got = evaluate(problem.scores[:, order].astype(np.float64), problem.labels, problem.space)
    assert got["seen"] == evaluate(**problem.inputs())["seen"]


def test_the_split_decides_which_unseen_pairs_compete():
    space = CompositionSpace.from_json(
        {
            "attributes": ["wet", "dry"],
            "objects": ["dog", "cat"],
            "train_pairs": [["wet", "dog"], ["dry", "cat"]],
            "val_pairs": [["dry", "dog"]],
            "test_pairs": [["wet", "cat"]],
        }
    )
    columns = {space.pair_name(pair): i for i, pair in enumerate(space.closed_pairs)}
    scores = np.zeros((2, 4))
    scores[:, columns["wet cat"]], scores[:, columns["dry dog"]] = 1, 2
    scores[1, columns["wet dog"]] = 3
    labels = np.array([[0, 1], [0, 0]])
    assert evaluate(scores, labels, space)["unseen"] == 1
    assert evaluate(scores, labels, space, open_world=True, pairs=space.closed_pairs)["unseen"] == 0
    result = evaluate(scores, labels, space, split="val")
    assert result["unseen"] == 0
    assert "1 images show a pair that is neither of this split nor of training" in result["warnings"][0]
    assert "wet cat" in result["warnings"][0]


def test_without_unseen_images_what_is_defined_stays():
    problem = make_problem(1, images=12)
    seen = problem.seen[problem.true]
    result = evaluate(problem.scores[seen], problem.labels[seen], problem.space, problem.pairs, bootstrap=3, details=True)
    assert [result[key] for key in ("auc", "hm", "unseen", "bias", "auc_ref20", "unseen_ref20", "bias_ref20")] == [None] * 7
    assert result["seen"] == evaluate(**problem.inputs())["seen"]
    assert 0 <= result["attr_acc"] <= 1
    assert result["intervals"]["auc"] is None and result["macro"]["auc"] is None
    assert "no image shows an unseen pair" in result["warnings"][0]
    json.dumps(result, allow_nan=False)
    only = evaluate(problem.scores[~seen], problem.labels[~seen], problem.space, problem.pairs)
    assert only["seen"] is None and only["unseen"] == evaluate(**problem.inputs())["unseen"]
    assert "no image shows a seen pair" in only["warnings"][0]


def test_details_by_hand():
    problem = make_problem(2, "smooth", images=12)
    result = evaluate(**problem.inputs(), details=True)
    scores = np.where(problem.allowed, problem.scores, -np.inf)
    predicted = problem.pairs[scores.argmax(axis=1)]
    for column, (key, names) in enumerate((("per_attribute", problem.space.attributes), ("per_object", problem.space.objects))):
        for i, name in enumerate(names):
            images = problem.labels[:, column] == i
            if not images.any():
                assert name not in result[key]
                continue
            right = (predicted[images, column] == i).mean()
            assert result[key][name] == {"acc": pytest.approx(right), "images": images.sum()}
    assert result["macro"]["attr_acc"] == pytest.approx(np.mean([v["acc"] for v in result["per_attribute"].values()]))
    best_seen = problem.pairs[np.where(problem.seen, problem.scores, -np.inf).argmax(axis=1)]
    right = (best_seen == problem.labels).all(axis=1)
    is_seen, true = problem.seen[problem.true], problem.true
    by_pair = [right[true == pair].mean() for pair in np.unique(true[is_seen])]
    assert result["macro"]["seen"] == pytest.approx(np.mean(by_pair))


def test_options_that_contradict_each_other():
    problem = make_problem(1, open_world=True)
    closed = make_problem(1)
    feasibility, val = problem.feasibility, (problem.scores, problem.labels)
    for inputs, message in (
        ({**problem.inputs(), "threshold": 0.1}, "threshold was given without a feasibility"),
        ({**problem.inputs(), "val": val}, "no feasibility was given"),
        ({**problem.inputs(), "val": val, "feasibility": feasibility, "threshold": 0.1}, "a threshold was given as well"),
        ({**closed.inputs(), "feasibility": np.zeros(len(closed.pairs))}, "feasibility was given in the closed world"),
        ({**problem.inputs(), "feasibility": feasibility, "threshold": np.nan}, "not a finite number"),
        ({**problem.inputs(), "split": "tets"}, "unknown split"),
        ({**problem.inputs(), "rule": "other"}, "unknown feasibility rule"),
        ({**problem.inputs(), "topk": 0}, "k=0 for top-k"),
        ({**problem.inputs(), "scores": problem.scores[:, 1:]}, "scores of shape"),
    ):
        with pytest.raises((ValueError, UsageError), match=message):
            evaluate(**inputs)


def test_bad_pairs_and_feasibility():
    problem = make_problem(1, open_world=True)
    twice, outside, short = problem.pairs.copy(), problem.pairs.copy(), problem.feasibility[:-1]
    twice[3], outside[2] = twice[0], [99, 0]
    holed = problem.feasibility.copy()
    holed[3] = np.nan
    for inputs, message in (
        ({"pairs": twice}, r"run: pair 3 \(.*\) is listed twice"),
        ({"pairs": outside}, r"run: pair 2 is \[99, 0\]"),
        ({"pairs": problem.pairs[:, :1]}, "give integers"),
        ({"feasibility": short}, "the feasibility has shape"),
        ({"feasibility": holed}, "the feasibility of pair 3"),
        ({"feasibility": np.array(["a"])}, "a feasibility is a number"),
        ({"space": 3}, "not a label space"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate(**{**problem.inputs(), "source": "run", **inputs})


def test_feasibility_of_the_whole_open_world_fits_a_part_of_it():
    problem = make_problem(1, open_world=True)
    kept = problem.pairs[:-1]
    whole = np.zeros(problem.space.num_attributes * problem.space.num_objects)
    whole[problem.space.key(problem.pairs)] = problem.feasibility
    candidates = Candidates.build(problem.space, kept, open_world=True, feasibility=whole)
    np.testing.assert_array_equal(candidates.feasibility, problem.feasibility[:-1])


def test_import_needs_numpy_only():
    code = "import sys, czsl.evaluation; print([m for m in ('torch', 'ray', 'pandas', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
