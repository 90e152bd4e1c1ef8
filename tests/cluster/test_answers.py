"""Evaluation and prediction: the same answer from one worker and from several, to the last digit."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from cluster.evaluate import evaluate_run
from cluster.predict import BATCH, PredictConfig, predict_files
from cluster.train import train
from cluster.work.evaluation import EvalConfig
from czsl.data.images import list_images
from czsl.data.toy import dataset as toy
from czsl.errors import CzslError, DataError, UsageError


@pytest.fixture(scope="module")
def trained(ray_local, dataset, clip_file, tmp_path_factory):
    """A CSP run of one epoch; nobody pins the number of threads."""
    from czsl.data.table import open_data
    from czsl.runs.run import Run
    from czsl_cli.config import resolve

    options = {
        "method": "csp",
        "data": str(dataset),
        "clip": str(clip_file),
        "epochs": 1,
        "eval_batch": 16,
        "lr": 0.01,
    }
    run = Run.create(resolve(options), open_data(str(dataset)).space, tmp_path_factory.mktemp("runs"), "trained")
    assert train(run) == "done"
    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """More files than a batch holds, one of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(BATCH + 7):
        (folder / f"sub{i % 2}").mkdir(exist_ok=True)
        image = toy.draw(toy.ATTRIBUTES[i % 5], toy.OBJECTS[i % 7], seed=i)
        image.save(folder / f"sub{i % 2}" / f"{i:03d}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("open_world", [False, True])
def test_evaluation_is_the_same_on_several_workers(trained, open_world):
    eval_config = EvalConfig(open_world=open_world)
    alone = evaluate_run(trained, eval_config)
    assert alone["images"] == 40
    assert alone["pairs"] == (168 if open_world else 104)
    several = evaluate_run(trained, eval_config, workers_per_node=2)
    assert json.dumps(several) == json.dumps(alone)
    kept = trained.path / f"report-test-{'open' if open_world else 'closed'}.json"
    assert json.loads(kept.read_text()) == alone


def test_the_feature_cache_changes_nothing(trained, tmp_path, monkeypatch):
    before = evaluate_run(trained, EvalConfig())
    monkeypatch.setenv("CZSL_CACHE", str(tmp_path))
    assert json.dumps(evaluate_run(trained, EvalConfig())) == json.dumps(before)


def test_prediction_is_the_same_on_several_workers_and_as_the_method_alone(trained, photos):
    from methods import load

    names = [p.relative_to(photos).as_posix() for p in list_images(photos)]
    config = PredictConfig(run=str(trained.path), top=3)
    one = list(predict_files(config, photos, names))
    two = list(predict_files(config, photos, names, workers_per_node=2))
    assert json.dumps(one) == json.dumps(two)
    assert [r["image"] for r in one] == names
    broken = [r for r in one if r["error"]]
    assert [r["image"] for r in broken] == ["broken.jpg"]
    assert "not an image" in broken[0]["error"]
    good = [r for r in one if not r["error"]][:3]
    direct = load(trained.path).predict([Image.open(photos / r["image"]) for r in good], k=3)
    for record, expected in zip(good, direct, strict=True):
        assert [(p["attr"], p["obj"]) for p in record["predictions"]] == [(p["attr"], p["obj"]) for p in expected["predictions"]]


def test_images_in_archives_are_read_by_every_worker(trained, photos, tmp_path):
    import tarfile
    import zipfile

    from czsl.data.inputs import gather

    names = [p.relative_to(photos).as_posix() for p in list_images(photos)]
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as packed, tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tarred:
        for name in names:
            packed.write(photos / name, name)
            tarred.add(photos / name, name)
    config = PredictConfig(run=str(trained.path), top=3)
    expected = json.dumps(list(predict_files(config, photos, names)))
    for archive in ("z.zip", "t.tar.gz"):
        found = gather([tmp_path / archive])
        assert sorted(found.source.names) == sorted(names)
        answers = list(predict_files(config, found.source, names, workers_per_node=2))
        assert json.dumps(answers) == expected


def test_a_worker_says_why_it_cannot_predict(trained, photos):
    config = PredictConfig(run=str(trained.path), checkpoint="step-00000077")
    with pytest.raises(CzslError, match="no usable checkpoint"):
        list(predict_files(config, photos, ["sub0/000.png"]))


def test_another_label_space_is_refused(trained, tmp_path):
    from czsl.compositions import CompositionSpace
    from czsl.data.table import Record, write_dataset

    space = CompositionSpace(("wet",), ("dog",), [[0, 0]], [], [[0, 0]])
    write_dataset(tmp_path / "other", space, [Record("a.png", b"x", "wet", "dog", "test")], "other")
    with pytest.raises(DataError, match="another label space"):
        evaluate_run(trained, EvalConfig(data=str(tmp_path / "other")))


def test_a_checkpoint_of_another_clip_is_refused(trained, tmp_path, clip_file):
    """Swap the weights under the run: the kept hash tells."""
    import torch

    from methods import load

    state = torch.load(clip_file, weights_only=True)
    before = clip_file.read_bytes()
    try:
        state["visual.proj"] = state["visual.proj"] * 1.001
        torch.save(state, clip_file)
        with pytest.raises(UsageError, match="CLIP weights"):
            load(trained.path)
    finally:
        clip_file.write_bytes(before)
