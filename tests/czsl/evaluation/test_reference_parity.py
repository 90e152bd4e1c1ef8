"""The numbers that the public evaluators print, from fixtures outside the repository."""

import json
from pathlib import Path

import numpy as np
import pytest

from czsl.evaluation import evaluate, read_scores

FIXTURES = Path(__file__).parents[4] / "shared" / "fixtures"
NAMES = {
    "AUC": "auc_ref20",
    "best_hm": "hm_ref20",
    "best_seen": "seen_ref20",
    "best_unseen": "unseen_ref20",
    "biasterm": "bias_ref20",
    "hm_seen": "hm_seen_ref20",
    "hm_unseen": "hm_unseen_ref20",
    "attr_acc": "attr_acc",
    "obj_acc": "obj_acc",
}
pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason="no reference fixtures beside the repository")


def _read(name):
    return read_scores(FIXTURES / f"{name}.npz", FIXTURES / f"{name}.json"), json.loads((FIXTURES / f"{name}.json").read_text())[
        "reference"
    ]


@pytest.mark.parametrize("name", ["ut_closed_test", "ut_open_test", "tiny_few"])
@pytest.mark.parametrize(("case", "factor", "topk"), [("plain", 1, 1), ("plain_scores_times_0.01", 0.01, 1), ("top3", 1, 3)])
def test_nine_keys(name, case, factor, topk):
    file, reference = _read(name)
    result = evaluate(**{**file.inputs(), "scores": file.scores * np.float32(factor), "feasibility": None}, topk=topk)
    assert {key: result[ours] for key, ours in NAMES.items()} == pytest.approx(
        {key: reference[case][key] for key in NAMES}, abs=1e-6
    )


def test_fifty_thresholds():
    file, reference = _read("ut_open_test")
    result = evaluate(**file.inputs(), rule="reference")
    keys = ("threshold", "auc_ref20", "hm_ref20", "seen_ref20", "unseen_ref20", "attr_acc", "obj_acc")
    ours = [[row[key] for key in keys] for row in result["thresholds"]]
    np.testing.assert_allclose(ours, reference["thresholds"], atol=1e-6, rtol=0)
