"""Published numbers: every row is consistent, named as the rest of the program names things, and marked with where it comes from."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml

from czsl.errors import UsageError
from methods.published.records import CHECKED, FILE, NUMBERS, ROUNDING, published, read_published
from methods.registry import METHODS

ROOT = Path(__file__).parents[2]
WANTED = ["clip", "coop", "csp", "dfsp", "troika", "caila", "plid", "cds-czsl", "cluspro", "msci", "vp-cmjl", "tomcat"]


@pytest.mark.parametrize("record", published().records, ids=lambda r: f"{r.paper.key}-{r.backbone}-{r.dataset}-{r.world}")
def test_a_row_can_be(record):
    assert record.checked in CHECKED
    assert record.source.startswith((record.via or record.paper).venue)
    numbers = record.numbers
    assert set(numbers) <= set(NUMBERS)
    assert all(0 < value < 100 for value in numbers.values())
    assert numbers["auc"] > 1 or record.paper.year < 2022 or record.world == "open"  # percent, not fractions
    if "seen" in numbers:
        s, u = numbers["seen"], numbers["unseen"]
        assert numbers["auc"] <= s * u / 100 + 0.1
        assert numbers["hm"] - ROUNDING <= 2 * (s + ROUNDING) * (u + ROUNDING) / (s + u)
        # At the best HM both accuracies are at least HM / (2 - HM), so AUC is at least their product.
        least = numbers["hm"] / (200 - numbers["hm"])
        assert numbers["auc"] / 100 >= 0.5 * least**2
    assert all(sd < numbers[key] / 4 for key, sd in record.sd.items())


def test_the_methods_that_the_field_compares_with_are_there():
    found = published()
    assert {r.paper.key for r in found.records} >= {*WANTED, "aop", "le", "tmn", "symnet", "compcos", "cge", "co-cge", "scen"}
    assert {r.dataset for r in found.records} == set(found.datasets)
    places = {paper for r in found.records for paper in (r.paper, r.via)}
    assert set(found.papers.values()) <= places
    for name, paper in [("clusPro", "cluspro"), ("zero-shot", "clip"), ("CDS_CZSL", "cds-czsl"), ("DFSP (t2i)", "dfsp")]:
        assert found.paper(name).key == paper
    assert {p.ours for p in found.papers.values() if p.ours} <= set(METHODS)


def test_open_world_numbers_are_not_above_closed_ones():
    closed = {(r.paper, r.backbone, r.dataset): r.numbers for r in published().records if r.world == "closed"}
    for r in published().records:
        numbers = closed.get((r.paper, r.backbone, r.dataset), {})
        if r.world == "open" and numbers:
            assert r.numbers["auc"] < numbers["auc"]
            assert r.numbers["hm"] < numbers["hm"]


def test_downloads_are_those_of_the_guide():
    guide = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for one in published().datasets.values():
        for text in (one.images_from, one.lists_from):
            for url in (word for word in text.split() if word.startswith("http")):
                assert url in guide, url


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["rows"][0].update(wrld="closed"), "did you mean 'world'"),
        (lambda c: c["rows"][0].update(paper="aopp"), "did you mean 'aop'"),
        (lambda c: c["rows"][0].update({"mit-stats": [1, 1, 1, 1]}), "did you mean 'mit-states'"),
        (lambda c: c["rows"][0].update(world="ajar"), "its world"),
        (lambda c: c["rows"][0].pop("checked"), "has no checked"),
        (lambda c: c["rows"][0].update({"mit-states": [0.143, 0.174, 0.099, 0.016]}), "look like fractions"),
        (lambda c: c["rows"][0].update({"mit-states": [14.3, 17.4, 19.9, 1.6]}), "hm 19.9 is impossible"),
        (lambda c: c["rows"][0].update({"mit-states": [14.3, 17.4, 9.9, 3.6]}), "auc 3.6 is impossible"),
        (lambda c: c["rows"][0].update({"mit-states": [14.3, 17.4, 9.9]}), "is not a list of"),
        (lambda c: c["rows"][0].update({"mit-states": [float("nan")] * 4}), "from 0 to 100"),
        (lambda c: c["rows"][0].update({"mit-states": ["14"] * 4}), "from 0 to 100"),
        (lambda c: c["rows"][0].update({"mit-states": [None] * 4}), "has no number"),
        (lambda c: c["rows"].append(c["rows"][0]), "two rows of AoP"),
        (lambda c: c["papers"]["csp"].update(ours="cps"), "is not a method of this program"),
        (lambda c: c["datasets"]["cgqa"].pop("objects"), "has no objects"),
        (lambda c: c.pop("rows"), "has no rows"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(tmp_path, change, words):
    content = copy.deepcopy(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    change(content)
    path = tmp_path / "numbers.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        read_published(path)


@pytest.mark.parametrize("method", sorted({r.paper.ours for r in published().records if r.paper.ours}))
def test_the_card_of_a_method_with_published_rows_leads_to_them(method):
    """Cards copy no rows: a command prints them, so that they cannot differ from the data."""
    card = (FILE.parents[1] / METHODS[method].partition(":")[0].split(".")[1] / "README.md").read_text(encoding="utf-8")
    assert card.count("## Published numbers\n") == 1
    part = card.partition("## Published numbers\n")[2].partition("\n## ")[0]
    for line in (f"czsl published --method {method} ", f"czsl reproduce {method} ", "czsl report RUN --published "):
        assert f"\n{line}" in part
    named = {r.dataset for r in published().select(None, method, None)}
    assert set(re.findall(rf"czsl reproduce {method} (\S+)|--published (\S+)", part)[0]) - {""} <= named
    rows = {f"{numbers['seen']} | {numbers['unseen']}" for r in published().records if "seen" in (numbers := r.numbers)}
    assert not [row for row in rows if row in card]
