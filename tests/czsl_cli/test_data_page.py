"""The page about a dataset: everything inside, counts as they are, problems named."""

from __future__ import annotations

import re

import pytest

from czsl.data.table import Record, open_data, write_dataset
from czsl.data.toy import dataset as toy
from czsl_cli.data_page import counts_figure


def test_a_page_has_counts_samples_and_nothing_from_outside(czsl, dataset, tmp_path):
    shown = czsl("data", "stats", dataset, "--html", "d.html", "--samples", 1)
    assert "page: d.html" in shown.stderr
    text = (tmp_path / "d.html").read_text()
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', text))
    assert 'alt=""' not in text
    data = open_data(dataset)
    assert text.count("<figure") == sum(len({tuple(p) for p in data.split(s).pairs.tolist()}) for s in ("train", "val", "test"))
    assert "Images per attribute" in text
    assert "None were found." in text
    czsl("data", "stats", dataset, "--html", "none.html", "--samples", 0)
    assert "<figure" not in (tmp_path / "none.html").read_text()


def test_identical_images_are_problems(czsl, tmp_path):
    samples = list(toy.samples(scale=0.01))
    first = samples[0]
    records = [Record(name, image, attr, obj, split) for name, attr, obj, split, image in samples]
    records.append(Record("twin.png", first[4], first[1], first[2], first[3]))
    write_dataset(tmp_path / "twins", toy.space(), records, "twins")
    czsl("data", "stats", "twins", "--html", "t.html", "--samples", 0)
    assert "twin.png" in (tmp_path / "t.html").read_text()


def test_counts_are_labelled_as_whole_images(dataset):
    figure = counts_figure(open_data(dataset))
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    labels = {
        y: text.get_text().replace(",", "")
        for y, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        if low <= y <= high
    }
    assert any(labels.values())
    assert all(text in ("", f"{y:.0f}") and (not text or y == round(y)) for y, text in labels.items())


@pytest.mark.parametrize("name", ["nowhere"])
def test_no_dataset_no_page(czsl, tmp_path, name):
    czsl("data", "stats", name, "--html", "x.html", expect=3)
    assert not (tmp_path / "x.html").exists()
