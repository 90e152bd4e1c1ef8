"""Tables of an experiment as text: means, verdicts, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from czsl_cli.experiment_table import Block, blocks, comma_separated, judged, latex, markdown, summary


def difference(low, high):
    interval = None if low is None else [low, high]
    holds = None if low is None else low > 0 or high < 0
    return {"auc": {"difference": None if low is None else (low + high) / 2, "interval": interval, "holds": holds}}


@pytest.mark.parametrize(
    ("intervals", "holds", "words"),
    [
        ([(0.1, 0.3)], True, "holds"),
        ([(-0.3, -0.1), (-0.4, -0.2)], True, "holds with both seeds"),
        ([(0.1, 0.3), (-0.1, 0.2), (0.1, 0.2)], False, "with seed 1"),
        ([(0.1, 0.3), (-0.3, -0.1)], False, "disagree"),
        ([(0.1, 0.3), (None, None)], None, "undefined"),
    ],
)
def test_a_difference_holds_with_every_seed_in_one_direction_or_not_at_all(intervals, holds, words):
    found = judged([difference(*i) for i in intervals], "auc", list(range(len(intervals))))
    assert found["holds"] is holds
    assert words in found["words"]


def result(values, seeds=None, **row):
    reports = [{"auc": v, "images": 9, "intervals": None} for v in values]
    base = {"row": "a_b & c|d", "trained": "50 % of {all}", "seeds": seeds or list(range(len(values))), "reports": reports}
    base |= {"costs": [], "minutes": 1.25, "peak_gib": None, "failure": "", "intervals": False, **row}
    base |= summary(base, ["auc"])
    table = {"data": "toy", "evaluation": "closed world", "images": 9, "columns": {"auc": "AUC"}, "rows": [base]}
    return {"tables": [{**table, "resamples": 10, "differences": []}]}


def test_mean_and_deviation_are_numpys():
    values = [0.3, 0.35, 0.5]
    [block] = blocks(result(values))
    assert block.rows[0][2] == f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
    assert blocks(result(values), each=True)[0].rows[0][2] == "30.0 / 35.0 / 50.0"
    assert blocks(result([0.3]))[0].rows[0][2] == "30.0"
    assert blocks(result([None, 0.3]))[0].rows[0][2] == "-"


def test_special_characters_survive_in_every_form():
    shown = blocks(result([0.3, 0.5]))
    assert r"a_b & c\|d" in markdown(shown)
    tex = latex(shown)
    assert r"a\_b \& c|d & 50 \% of \{all\} & 40.0 $\pm$ 14.1 & 1.2 & - \\" in tex
    assert tex.count("\\toprule") == tex.count("\\bottomrule") == 1
    assert "{}[x]" in latex([Block("t", ["a"], [["[x]"]])])
    rows = list(csv.DictReader(io.StringIO(comma_separated(result([0.3, 0.5])))))
    assert [row["seed"] for row in rows] == ["0", "1", "mean", "sd"]
    assert float(rows[2]["auc"]) == pytest.approx(0.4)


def test_a_failed_row_says_why_and_has_no_numbers():
    [block] = blocks(result([], seeds=[0, 1], failure="a-seed0: out of memory"))
    assert block.rows[0][1] == "failed: a-seed0: out of memory"
    assert set(block.rows[0][2:]) == {""}
