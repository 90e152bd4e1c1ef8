"""``czsl report``: what its page holds, that it needs nothing from outside, and what is done without data, training or numbers."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import pytest

from czsl.data.table import open_data


class Page(HTMLParser):
    """What a page refers to, and what a reader of the screen hears."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.unnamed, self.heads, self.titles = [], [], [], 0, []
        self._title = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.sources += [found[k] for k in ("src",) if k in found]
        self.links += [found["href"]] if tag == "a" else []
        if tag in ("link", "iframe", "object"):
            self.sources.append(found.get("href", tag))
        if tag == "img" and not found.get("alt"):
            self.unnamed.append(found)
        if found.get("role") == "img" and not found.get("aria-label"):
            self.unnamed.append(found)
        self.heads += tag == "th" and found.get("scope") == "col"
        self._title = tag == "h2"

    def handle_data(self, data):
        if self._title:
            self.titles.append(data)
            self._title = False


@pytest.fixture
def run(czsl, dataset):
    czsl("train", "--method", "csp", "--data", dataset, "--name", "one", "epochs=2", "batch=32")
    return "runs/one"


def test_a_page_has_all_parts_and_needs_nothing_from_outside(czsl, run, tmp_path):
    shown = czsl("report", run, "--gallery", 2, "--figures", "plots")
    assert shown.stdout.strip().endswith("runs/one/report.html")
    folder = tmp_path / run
    text = (folder / "report.html").read_text()
    page = Page(text)
    for title in (
        "The run", "Losses in training", "Validation", "Confusion among attributes", "Largest confusions among objects",
        "Accuracy per composition", "Surest of the right names", "Surest of the wrong names", "Least sure", "Settings of csp",
        "Environment",
    ):  # fmt: skip
        assert title in page.titles
    assert all(source.startswith("data:") for source in page.sources)
    assert not page.unnamed
    assert page.heads > 20
    assert len(re.findall("<script>", text)) == 1
    explained = {link for link in page.links if not link.startswith("#")}
    assert explained
    assert all((folder / link).is_file() for link in explained)
    plots = {p.name for p in (tmp_path / "plots").iterdir()}
    assert {"losses.svg", "losses.pdf", "seen-unseen.pdf", "confusion-attributes.svg"} <= plots
    pdf = (tmp_path / "plots/losses.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert ">pair<" not in (tmp_path / "plots/losses.svg").read_text()  # csp's only term is the loss itself, drawn once
    czsl("report", run, "--gallery", 2, "--html", "again.html", "--figures", "more")
    for name in plots:
        assert (tmp_path / "plots" / name).read_bytes() == (tmp_path / "more" / name).read_bytes()


def test_a_method_that_trains_nothing_has_a_page_without_curves(czsl, dataset, tmp_path):
    czsl("train", "--method", "zero-shot", "--data", dataset, "--name", "two")
    czsl("report", "runs/two", "--no-explain", "--open-world")
    page = Page((tmp_path / "runs/two/report.html").read_text())
    assert "Losses in training" not in page.titles
    assert "Confusion among attributes" in page.titles
    assert "Surest of the right names" not in page.titles  # probabilities are of the closed world


def test_a_run_whose_data_or_checkpoints_are_gone_still_has_its_settings_and_curves(czsl, dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    czsl("train", "--method", "csp", "--data", copy, "--name", "three", "epochs=1", "batch=32")
    assert open_data(copy).name
    shutil.rmtree(copy)
    shutil.rmtree(tmp_path / "runs/three/checkpoints")
    shown = czsl("report", "runs/three")
    assert "its checkpoints are missing" in shown.stderr
    text = (tmp_path / "runs/three/report.html").read_text()
    assert "Losses in training" in Page(text).titles
    assert "its test images could not be evaluated" in text


def test_a_run_stands_next_to_what_papers_report(czsl, dataset, tmp_path):
    czsl("train", "--method", "zero-shot", "--data", dataset, "--name", "plain")
    czsl("report", "runs/plain", "--no-explain", "--gallery", 0, "--published", "mit-states")
    text = (tmp_path / "runs/plain/report.html").read_text()
    assert any("next to what papers report on MIT-States" in title for title in Page(text).titles)
    assert "ICLR 2025, table 1" in text
    assert "these numbers cannot be compared" in text
    assert "did you mean 'mit-states'?" in czsl("report", "runs/plain", "--published", "mit-state", expect=2).stderr


def test_a_page_ends_in_html_and_a_run_is_a_run(czsl, dataset):
    czsl("train", "--method", "zero-shot", "--data", dataset, "--name", "plain")
    assert "a page ends in .html" in czsl("report", "runs/plain", "--html", "x.pdf", expect=2).stderr
    assert "is not a run folder" in czsl("report", "nowhere", expect=2).stderr
