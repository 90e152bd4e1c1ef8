"""``czsl compare``: what it prints and writes, from kept numbers where there are any, and when it refuses."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from czsl.evaluation import compare, evaluate, pair_accuracies, write_scores


@pytest.fixture(scope="module")
def made(tmp_path_factory, czsl_cache):
    """A small drawn dataset, a zero-shot run and a CSP run on it."""
    import torch

    from cluster.work.comm import Group
    from cluster.work.training import train_worker
    from czsl.data.table import Record, write_dataset
    from czsl.data.toy import dataset as toy
    from czsl.runs.run import Run
    from czsl_cli.config import resolve

    folder = tmp_path_factory.mktemp("compare")
    records = (Record(name, image, attr, obj, split) for name, attr, obj, split, image in toy.samples(scale=0.01))
    write_dataset(folder / "drawn", toy.space(), records, "drawn")
    for name, method in (("zs", "zero-shot"), ("csp", "csp")):
        config = resolve({"method": method, "data": str(folder / "drawn"), "epochs": 3, "lr": 0.01, "threads": 1})
        run = Run.create(config, toy.space(), folder, name)
        if method == "csp":
            assert train_worker(run, Group(), torch.device("cpu")) == "done"
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy that may be harmed; it is the working folder."""
    for name in ("zs", "csp"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def test_runs_are_evaluated_once_and_compared(czsl, folder):
    first = czsl("compare", "zs", "csp", "--resamples", 50, "--json")
    assert "evaluating zs first" in first.stderr
    assert "evaluating csp first" in first.stderr
    again = czsl("compare", "zs", "csp", "--resamples", 50, "--json")
    assert "evaluating" not in again.stderr
    assert again.stdout == first.stdout
    shown = json.loads(first.stdout)
    assert (shown["split"], shown["open_world"], shown["images"], shown["resamples"]) == ("test", False, 40, 50)
    for row in shown["runs"]:
        report = json.loads((folder / row["path"] / "report-test-closed.json").read_text())
        assert {key: row[key] for key in ("method", "auc", "hm", "seen", "unseen", "bias")} == {
            key: report[key] for key in ("method", "auc", "hm", "seen", "unseen", "bias")
        }
    (difference,) = shown["differences"]
    assert (difference["run"], difference["to"]) == ("csp", "zs")
    for key in ("auc", "hm", "seen", "unseen"):
        found = difference[key]
        assert found["difference"] == shown["runs"][1][key] - shown["runs"][0][key]
        low, high = found["interval"]
        assert found["holds"] == (low > 0 or high < 0)
    other_seed = json.loads(czsl("compare", "zs", "csp", "--resamples", 50, "--seed", 1, "--json").stdout)
    assert other_seed["differences"] != shown["differences"]
    assert other_seed["runs"] == shown["runs"]
    assert sum(row["images"] for row in shown["pairs"]) == 40
    # Accuracy over the seen pairs at the best bias: with that over the unseen ones it makes the harmonic mean.
    for i, row in enumerate(shown["runs"]):
        s, u = (
            np.average([p["acc"][i] for p in shown["pairs"] if p["seen"] == seen],
                       weights=[p["images"] for p in shown["pairs"] if p["seen"] == seen])
            for seen in (True, False)
        )  # fmt: skip
        assert 2 * s * u / (s + u) == pytest.approx(row["hm"])


def test_people_read_tables(czsl, folder):
    shown = czsl("compare", "zs", "csp", "--resamples", 20).stdout
    assert "test, closed world, 40 images" in shown
    assert "differences to zs, in points; 95 % intervals of 20 paired resamples" in shown
    assert re.search(r"csp +AUC +[+-]\d+\.\d +[+-]\d+\.\d to [+-]\d+\.\d +(yes|no)", shown)
    assert "compositions where most images were won or lost" in shown
    assert len(re.findall(r"^ \w+ \w+ +(?:un)?seen +\d+ ", shown, re.MULTILINE)) == 10


def test_open_world_and_val(czsl, folder):
    shown = json.loads(czsl("compare", "zs", "csp", "--open-world", "--resamples", 10, "--json").stdout)
    for row in shown["runs"]:
        report = json.loads((folder / row["path"] / "report-test-open.json").read_text())
        assert (row["threshold"], row["auc"]) == (report["threshold"], report["auc"])
        assert row["threshold"] is not None
    assert "feasibility threshold" in czsl("compare", "zs", "csp", "--open-world", "--resamples", 10).stdout
    assert json.loads(czsl("compare", "zs", "csp", "--split", "val", "--resamples", 10, "--json").stdout)["split"] == "val"


def test_a_part_of_the_images_has_numbers_of_its_own(czsl, folder):
    czsl("compare", "zs", "csp", "--per-pair", 1, "--resamples", 10)
    for name in ("zs", "csp"):
        assert (folder / name / "extremes-test-closed-1-per-pair.npz").exists()
        assert not (folder / name / "extremes-test-closed.npz").exists()


def test_a_changed_run_is_evaluated_again(czsl, folder):
    czsl("compare", "zs", "csp", "--resamples", 10)
    file = folder / "csp" / "extremes-test-closed.npz"
    file.write_bytes(file.read_bytes()[:500])
    shown = czsl("compare", "zs", "csp", "--resamples", 10).stderr
    assert "evaluating csp first: extremes-test-closed.npz is damaged" in shown
    assert "evaluating zs" not in shown


def test_pages_and_plots(czsl, folder):
    (folder / "zs").rename(folder / "<b>$zs$")
    args = ["compare", "<b>$zs$", "csp", "--resamples", 10]
    done = czsl(*args, "--html", "out/page.html", "--plot", "out/curves.svg")
    assert "written to out/page.html" in done.stderr
    page, svg = (folder / "out/page.html").read_text(), (folder / "out/curves.svg").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;$zs$" in page
    assert "http://" not in re.sub(r"http://www\.w3\.org/\S*|http://purl\.org/\S*|http://creativecommons\.org/\S*", "", page)
    assert svg.startswith("<svg") and "AUC" in svg
    czsl(*args, "--plot", "curves.png")
    with Image.open(folder / "curves.png") as image:
        assert min(image.size) > 500
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_the_area_under_the_drawn_line_is_the_auc(czsl, folder):
    from czsl.evaluation import SavedEvaluation
    from czsl_cli.compare import curves_figure

    shown = json.loads(czsl("compare", "zs", "csp", "--resamples", 1, "--json").stdout)
    extremes = [SavedEvaluation.load(folder / name / "extremes-test-closed.npz").extremes for name in ("zs", "csp")]
    lines = curves_figure(shown["runs"], extremes).axes[0].get_lines()
    curves = [line for line in lines if len(line.get_xdata()) > 1]
    for run, line in zip(shown["runs"], curves, strict=True):
        seen, unseen = line.get_data()
        assert np.trapezoid(seen, unseen) / 1e4 == pytest.approx(run["auc"])
        assert line.get_label() == f"{run['name']} (AUC {100 * run['auc']:.1f})"
    dots, diamonds = ([line for line in lines if line.get_marker() == mark] for mark in "oD")
    for run, dot in zip(shown["runs"], dots, strict=True):
        s, u = dot.get_xdata()[0], dot.get_ydata()[0]
        assert 2 * s * u / (s + u) / 100 == pytest.approx(run["hm"])
    for run, diamond in zip(shown["runs"], diamonds, strict=True):  # at each run's operating point
        assert (diamond.get_xdata()[0], diamond.get_ydata()[0]) == pytest.approx((100 * run["op_seen"], 100 * run["op_unseen"]))
    assert {"op_seen", "op_unseen", "op_hm", "op_acc"} <= set(shown["differences"][0])


def test_other_data_is_refused_before_anything_is_scored(czsl, folder, made):
    from czsl.data.table import Record, write_dataset
    from czsl.data.toy import dataset as toy

    records = (Record(f"new/{n}", image, attr, obj, split) for n, attr, obj, split, image in toy.samples(scale=0.01))
    write_dataset(folder / "redrawn", toy.space(), records, "redrawn")
    config = folder / "csp" / "config.yaml"
    config.write_text(config.read_text().replace(str(made / "drawn"), str(folder / "redrawn")))
    done = czsl("compare", "zs", "csp", expect=3)
    assert "csp has other data than zs" in done.stderr
    assert "evaluating" not in done.stderr
    assert json.loads(czsl("compare", "zs", "csp", "--data", "redrawn", "--resamples", 5, "--json").stdout)["images"] == 40


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["zs"], 2, "1 runs to compare"),
        ([], 2, "no runs to compare"),
        (["zs", "./zs"], 2, "was given twice"),
        (["zs", "nowhere"], 2, "nowhere is not a run folder"),
        (["zs", "csp", "--plot", "x.pdf"], 2, "neither .svg nor .png"),
        (["zs", "csp", "--scores"], 2, "--scores without --space"),
        (["zs", "csp", "--resamples", 0], 2, "--resamples"),
        (["zs", "csp", "--checkpoint", "step-00000077"], 2, "no usable checkpoint"),
    ],
)
def test_bad_arguments(czsl, folder, args, code, message):
    assert message in czsl("compare", *args, expect=code).stderr


# -- score files -----------------------------------------------------------------------------------------------------
@pytest.fixture
def scored(tmp_path):
    """Scores of two methods for the same 60 images."""
    from czsl.compositions import CompositionSpace

    rng = np.random.default_rng(0)
    keys = rng.permutation(12)
    pair = lambda chosen: np.stack(divmod(chosen, 4), axis=1)  # noqa: E731
    space = CompositionSpace(tuple("abc"), tuple("wxyz"), pair(keys[:5]), pair(keys[5:7]), pair(np.append(keys[7:], keys[:2])))
    labels = np.concatenate([space.test_pairs] * 9)[:60]
    scores = rng.normal(size=(2, 60, len(space.closed_pairs)))
    true = space.locate(labels, space.closed_pairs)
    scores[0, np.arange(60), true] += 1
    scores[1, np.arange(60), true] += 4
    for name, values in zip(("one", "two"), scores, strict=True):
        write_scores(tmp_path / name, values, labels, space)
    return space, scores, labels


def test_score_files_are_compared_as_well(czsl, scored):
    from czsl.evaluation import Candidates, reduce_scores

    space, scores, labels = scored
    shown = json.loads(czsl("compare", "--scores", "one.npz", "two.npz", "--space", "one.json", "--json").stdout)
    extremes = [reduce_scores(values, labels, Candidates.build(space)) for values in scores]
    expected = compare(*extremes)
    assert shown["differences"][0]["auc"] == expected["auc"]
    assert shown["differences"][0]["auc"]["holds"]
    assert [row["auc"] for row in shown["runs"]] == [evaluate(values, labels, space)["auc"] for values in scores]
    names = [[space.attributes[a], space.objects[o]] for a, o in (row["label"] for row in pair_accuracies(extremes))]
    assert [[row["attr"], row["obj"]] for row in shown["pairs"]] == names
    assert "two.npz" in czsl("compare", "--scores", "one.npz", "two.npz", "--space", "one.json", "--plot", "c.svg").stdout


def test_score_files_of_other_images_and_without_unseen_pairs(czsl, scored):
    space, scores, labels = scored
    write_scores("fewer", scores[1][:-1], labels[:-1], space)
    shown = czsl("compare", "--scores", "one.npz", "fewer.npz", "--space", "one.json", expect=3).stderr
    assert "not evaluated on the same images" in shown
    seen = space.seen_mask(labels)
    for name, values in zip(("a", "b"), scores, strict=True):
        write_scores(name, values[seen], labels[seen], space)
    args = ("compare", "--scores", "a.npz", "b.npz", "--space", "a.json", "--resamples", 10)
    done = czsl(*args, "--json", "--plot", "c.svg", "--html", "c.html")
    assert "no image shows a pair unseen in training" in done.stderr
    found = json.loads(done.stdout)["differences"][0]
    assert (found["auc"]["interval"], found["auc"]["holds"]) == (None, None)
    assert found["seen"]["holds"] is True
    assert re.search(r"AUC +- +- +-", czsl(*args).stdout)
