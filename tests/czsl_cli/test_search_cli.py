"""``czsl search`` and ``czsl index``: what they understand, and what they answer on drawn images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from czsl.data.toy import dataset as toy
from czsl.errors import UsageError
from czsl.spaces import space_from_json
from czsl_cli.main import cli
from czsl_cli.search import candidates, read_composition

CZSL = str(Path(sys.executable).parent / "czsl")
SPACE = space_from_json(
    {
        "attributes": ["wet", "Faux.Leather", "navy_blue"],
        "objects": ["dog", "smith", "granny smith"],
        "train_pairs": [["wet", "dog"]],
        "test_pairs": [["wet", "smith"]],
    }
)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("wet dog", ("wet", "dog")),
        ("WET Dog", ("wet", "dog")),
        ("wet granny smith", ("wet", "granny smith")),
        ("navy blue dog", ("navy_blue", "dog")),
        ("faux leather granny smith", ("Faux.Leather", "granny smith")),
        ("old stone bridge", ("old", "stone bridge")),
        ("very old dog", ("very old", "dog")),
        ("peeled, granny smith", ("peeled", "granny smith")),
    ],
)
def test_a_composition_is_read_in_the_spelling_of_the_space(text, pair):
    assert read_composition(text, SPACE) == pair


@pytest.mark.parametrize("text", ["dog", "", "  ", "wet,", ",dog"])
def test_what_is_no_composition_is_refused(text):
    with pytest.raises(UsageError, match="not a composition"):
        read_composition(text, SPACE)


def test_candidates_are_the_closed_world_and_what_is_asked_for():
    space, pairs = candidates(SPACE, [("wet", "cat"), ("wet", "dog")])
    assert space["objects"] == ["dog", "smith", "granny smith", "cat"]
    assert space["attributes"] == list(SPACE.attributes)
    assert pairs == [["wet", "dog"], ["wet", "smith"], ["wet", "cat"]]


@pytest.fixture(scope="module")
def work(tmp_path_factory, czsl_cache):
    """A zero-shot run of the toy, and pictures of three compositions."""
    from czsl.runs.run import Run
    from czsl_cli.config import resolve

    folder = tmp_path_factory.mktemp("search")
    Run.create(resolve({"method": "zero-shot", "threads": 2}), toy.space(), folder / "runs", "plain")
    for i, (attribute, obj) in enumerate([("red", "apple"), ("blue", "apple"), ("red", "ball")] * 3):
        file = folder / "photos" / f"{attribute} {obj} {i}.png"
        file.parent.mkdir(exist_ok=True)
        toy.draw(attribute, obj, seed=i).save(file)
    (folder / "photos" / "broken.png").write_bytes(b"no image")
    return folder


def test_errors_come_before_a_cluster_is_started(work, monkeypatch):
    monkeypatch.chdir(work)
    for args, why in (
        (["search", "apple", "--in", "photos"], "not a composition"),
        (["search", "runs/plain", "--in", "photos"], "no composition"),
        (["search", "red apple", "--in", "runs"], "no images below"),
        (["index", "build", "runs/plain", "--cells", "3"], "--cells goes with"),
        (["index", "show", "runs/plain"], "has no index"),
        (["predict", "photos", "--probes", "3"], "--probes goes with --open-world"),
        (["predict", "photos", "--open-world", "--probes", "3"], "--probes needs an index"),
    ):
        done = CliRunner().invoke(cli, args, standalone_mode=False)
        assert why in str(done.exception), args


def test_an_index_is_built_and_described(work, monkeypatch):
    monkeypatch.chdir(work)
    done = CliRunner().invoke(cli, ["index", "build", "--kind", "ivf", "--cells", "5"], standalone_mode=False)
    assert done.exception is None
    assert done.stdout.strip().endswith("runs/plain/index")
    shown = CliRunner().invoke(cli, ["index", "show", "runs/plain", "--json"], standalone_mode=False)
    facts = json.loads(shown.stdout)
    assert (facts["kind"], facts["fresh"], facts["pairs"]) == ("ivf", True, 168)
    done = CliRunner().invoke(cli, ["predict", "photos", "--open-world", "--probes", "3", "--no-index"], standalone_mode=False)
    assert "--probes needs an index" in str(done.exception)


@pytest.mark.slow
def test_search_ranks_the_images_and_shows_them(work):
    args = [CZSL, "search", "red apple", "blue,apple", "--in", "photos", "--top", "4", "--json", "--html", "page.html"]
    done = subprocess.run(args, cwd=work, capture_output=True, text=True)
    assert done.returncode == 6, done.stderr  # one file is no image
    assert "broken.png" in done.stderr
    red, blue = json.loads(done.stdout)
    assert (red["attr"], red["obj"]) == ("red", "apple")
    assert len(red["images"]) == 4
    assert all(a["prob"] >= b["prob"] for a, b in zip(red["images"], red["images"][1:], strict=False))
    assert blue["images"][0]["image"].startswith("blue apple")
    page = (work / "page.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 8
    assert "blue apple" in page
