"""``czsl explain``: tables, JSON and page on small runs, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from czsl.data.toy import dataset as toy
from czsl_cli.overlays import MAX_SIDE, draw_boxes, draw_heat


@pytest.fixture(scope="module")
def runs(tmp_path_factory, czsl_cache, dataset):
    """Checkpoints of untrained clusPro (with seeded prototypes) and msci on drawn images, and a zero-shot run."""
    import torch

    from cluster.work.comm import Group
    from cluster.work.saving import save
    from cluster.work.training import initialise, prepare
    from czsl.runs.run import Run
    from czsl_cli.config import resolve

    folder = tmp_path_factory.mktemp("explain")
    shutil.copytree(dataset, folder / "drawn")
    for name, settings in (("clusPro", {"adapter_dim": 0, "num_prototypes": 2}), ("msci", {"adapter_dim": 4}), ("zero-shot", {})):
        options = {"method": name, "data": str(folder / "drawn"), "threads": 1, **settings}
        run = Run.create(resolve(options), toy.space(), folder / "runs", name)
        if name != "zero-shot":
            trainer = prepare(run, Group(), torch.device("cpu"))
            if trainer.method.needs_initialisation:
                initialise(trainer)
            save(trainer)
    toy.draw("red", "apple", seed=1).resize((300, 200)).save(folder / "apple.png")
    return folder


def test_msci_shows_maps_and_shares(runs, czsl, tmp_path):
    args = ("explain", runs / "apple.png", "--run", runs / "runs" / "msci", "--top", 1)
    done = czsl(*args, "--json", "--html", "why.html")
    (answer,) = json.loads(done.stdout)["compositions"]
    parts = answer["explanation"]["parts"]
    maps = [p for p in parts if p["kind"] == "heat map"]
    assert len(maps) == 6
    assert {p["title"] for p in maps} == {f"{answer['attr']} {answer['obj']}", answer["attr"], answer["obj"]}
    assert all(np.sum(p["values"]) + p["elsewhere"] == pytest.approx(1, abs=1e-5) for p in maps)
    assert answer["rank"] == 1
    page = (tmp_path / "why.html").read_text()
    assert page.count("<img") == 1 + 6
    assert "times an even spread" in page
    assert "outside of what CLIP sees" in page


def test_clus_pro_shows_training_images_where_they_are(runs, czsl, tmp_path, monkeypatch):
    args = ("explain", runs / "apple.png", "--run", runs / "runs" / "clusPro", "-c", "red apple", "-c", "blue zebra")
    done = czsl(*args, "--json", "--html", "why.html")
    content = json.loads(done.stdout)
    assert [(a["attr"], a["obj"]) for a in content["compositions"]] == [("red", "apple"), ("blue", "zebra")]
    assert "training never saw" in done.stderr
    red, zebra = content["compositions"]
    shown = [p for p in red["explanation"]["parts"] if p["kind"] == "neighbours"]
    assert len(shown) == 4
    assert all("red" in i["labels"] or "apple" in i["labels"] for p in shown for i in p["images"])
    assert len([p for p in zebra["explanation"]["parts"] if p["kind"] == "neighbours"]) == 2
    assert zebra["explanation"]["notes"] == ["training never saw the object zebra: it has no prototypes"]
    assert (tmp_path / "why.html").read_text().count("<img") > 10

    moved = runs / "elsewhere"
    (runs / "drawn").rename(moved)
    try:
        done = czsl(*args[:4], "--top", 1)
    finally:
        moved.rename(runs / "drawn")
    assert "training images are not shown" in done.stderr
    assert "Prototypes of the composition" in done.stdout


def test_a_method_without_a_run_takes_its_labels_from_data_or_a_file(runs, czsl, tmp_path):
    (tmp_path / "pairs.csv").write_text("red,apple\nblue,apple\nred,ball\n")
    args = ("explain", runs / "apple.png", "--method", "lazsl", "--pairs", "pairs.csv", "num_regions=6")
    content = json.loads(czsl(*args, "--json", "--html", "why.html").stdout)
    assert len(content["compositions"]) == 3
    assert sum(a["prob"] for a in content["compositions"]) == pytest.approx(1)
    for answer in content["compositions"]:
        why = answer["explanation"]
        assert why["score"] * why["logit_scale"] == pytest.approx(answer["score"], abs=1e-3)
        assert np.sum(why["local"]) + np.sum(why["whole"]) == pytest.approx(why["score"], abs=1e-9)
    assert "red): " in (tmp_path / "why.html").read_text()


def test_the_newest_run_of_a_method_is_found(runs, czsl, monkeypatch):
    monkeypatch.chdir(runs)
    done = czsl("explain", "apple.png", "--method", "zero-shot", "--top", 1)
    assert "runs/zero-shot" in done.stderr
    assert "What the branches say" in done.stdout


def test_what_cannot_be_is_refused(runs, czsl):
    image, msci = runs / "apple.png", runs / "runs" / "msci"
    for args, why in (
        (("--method", "msci"), "no run of msci"),
        (("--method", "lazsl"), "no run of lazsl"),
        (("--method", "msci", "--data", "toy"), "has to be trained"),
        (("--run", msci, "--method", "csp"), "is a run of msci"),
        (("--run", msci, "--clip", "tiny"), "a run has its own"),
        (("--run", msci, "epochs=1"), "a run has its own"),
        (("--run", msci, "-c", "apple"), "not a composition"),
        (("--method", "lazsl", "--data", "toy", "--pairs", image), "both give labels"),
    ):
        assert why in czsl("explain", image, *args, expect=2).stderr, args
    (runs / "broken.png").write_bytes(b"no image")
    assert "broken.png" in czsl("explain", runs / "broken.png", "--run", msci, expect=3).stderr


def test_a_heat_map_lies_over_its_rectangle():
    image = Image.new("RGB", (MAX_SIDE // 2, MAX_SIDE // 4), "black")
    values = np.array([[0.0, 0.0], [0.0, 1.0]])
    drawn = np.asarray(draw_heat(image, values, (60, 0, 180, 120))).astype(int)
    assert drawn.shape == (MAX_SIDE // 2, MAX_SIDE, 3)
    assert (drawn[:, :120] == drawn[0, 0]).all() and (drawn[:, 360:] == drawn[0, 0]).all()
    assert drawn[230, 350, 0] > 120 and drawn[230, 350, 2] < 60  # yellow
    assert drawn[10, 130, 0] < 60 and drawn[10, 130, 2] > 40  # dark violet
    flat = draw_heat(image, np.full((3, 3), 0.5), (0, 0, *image.size))
    assert len(flat.getcolors()) == 1


def test_boxes_are_drawn_where_they_are():
    image = Image.new("RGB", (2 * MAX_SIDE, MAX_SIDE), "black")
    drawn = draw_boxes(image, [(100, 100, 500, 300)])
    assert drawn.size == (MAX_SIDE, MAX_SIDE // 2)
    assert drawn.getpixel((50, 100)) == drawn.getpixel((249, 120)) != (0, 0, 0)
    assert drawn.getpixel((300, 100)) == (0, 0, 0)
