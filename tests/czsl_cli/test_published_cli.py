"""``czsl published``: the list, its forms, and names that are misspelt."""

from __future__ import annotations

import json

from methods.published.records import published


def test_the_command_lists_them(czsl):
    shown = czsl("published", "MIT_states", "--method", "clusPro", "--world", "closed")
    assert "23.8 ± 0.2" in shown.stdout
    assert "ICLR 2025, table 1" in shown.stdout
    assert "verify before you cite" in shown.stderr
    rows = json.loads(czsl("published", "--world", "open", "--json").stdout)
    assert len(rows) == len(published().select(world="open"))
    assert czsl("published", "ut-zappos", "--csv").stdout.count("\n") == 1 + len(published().select("ut-zappos"))
    assert "| CSP | ViT-L/14 | 64.2 |" in czsl("published", "ut-zappos", "--method", "csp", "--md").stdout
    assert "no such number" in czsl("published", "--method", "tomcat").stderr
    assert "did you mean 'ut-zappos'" in czsl("published", "zapos", expect=2).stderr
    assert "did you mean 'ClusPro'" in czsl("published", "--method", "clustpro", expect=2).stderr
