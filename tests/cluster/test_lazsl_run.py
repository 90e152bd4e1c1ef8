"""LaZSL as a run: its descriptors travel with it, its regions are kept as features, one worker answers like several."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.evaluate import evaluate_run
from cluster.work.comm import Group
from cluster.work.evaluation import EvalConfig
from cluster.work.feature_loader import FeatureLoader
from cluster.work.predictor import PredictConfig, Predictor
from czsl.clip.loading import load_clip
from czsl.data.images import decode
from czsl.data.table import open_data
from czsl.data.toy import dataset as toy
from czsl.runs.run import Run
from czsl_cli.config import resolve
from methods.building import build
from methods.loading import load

DESCRIBED = {"attributes": {"red": ["a red surface"]}, "objects": {"tree": ["green leaves", "a trunk"]}}
REGIONS = 5


@pytest.fixture(scope="module")
def run(dataset, clip_file, tmp_path_factory):
    """A run whose file of descriptors is gone since."""
    folder = tmp_path_factory.mktemp("lazsl")
    file = folder / "descriptors.json"
    file.write_text(json.dumps(DESCRIBED))
    options = {"method": "lazsl", "data": str(dataset), "clip": str(clip_file), "threads": 1}
    config = resolve(options, [f"descriptors={file}", f"num_regions={REGIONS}"])
    file.unlink()
    return Run.create(config, open_data(str(dataset)).space, folder, "run")


def test_what_the_file_said_is_kept_with_the_run(run):
    method = load(Run(run.path))
    assert method.config.descriptors == DESCRIBED
    text = method.encode_compositions(torch.tensor([[0, 0]]))
    assert "red, which is a red surface" in text.banks[0].texts
    assert text.banks[1].count[list(method.space.objects).index("tree")] == 2


def test_features_of_regions_are_kept_apart_from_those_of_other_settings(run, dataset, clip_file):
    method, data = load(run), open_data(str(dataset))
    loader = FeatureLoader(method, data, "test", Group(), 16)
    assert loader.features.shape == (40, (1 + REGIONS) * method.clip.dim)
    row = np.array([3])
    image = loader.split.image_bytes(3)
    prepared = method.prepare(decode(image), loader.split.ids[3])
    with torch.inference_mode():
        fresh = method.image_features({key: value[None] for key, value in prepared.items()})
    assert torch.equal(loader.batch(row)["features"], fresh)

    def other(name, *overrides):
        config = resolve({"method": name, "data": str(dataset), "clip": str(clip_file)}, overrides)
        return FeatureLoader(build(name, data.space, load_clip(config.clip), config.model), data, "test", Group(), 16).features

    assert other("zero-shot").shape == (40, method.clip.dim)
    moved = other("lazsl", f"num_regions={REGIONS}", "region_seed=2")
    dim = method.clip.dim
    assert torch.equal(moved[:, :dim], loader.features[:, :dim])
    assert not torch.equal(moved[:, dim:], loader.features[:, dim:])
    assert torch.equal(other("lazsl", f"num_regions={REGIONS}", "theta=0.5"), loader.features)


def test_prediction_scores_a_file_as_evaluation_scores_the_image_of_that_name(run, tmp_path):
    toy.draw("red", "tree", seed=3).save(tmp_path / "a.png")
    predictor = Predictor(PredictConfig(run=str(run.path), wanted=[["red", "tree"]], open_world=True), torch.device("cpu"))
    (record,) = predictor.predict(tmp_path, ["a.png"])
    found = predictor.method.explain(Image.open(tmp_path / "a.png"), ("red", "tree"), "a.png")
    assert record["wanted"][0]["score"] == pytest.approx(found.logit_scale * found.score, abs=1e-4)


@pytest.mark.slow
def test_evaluation_is_the_same_on_several_workers(ray_local, run, czsl_cache):
    alone = evaluate_run(run, EvalConfig())
    assert alone["images"] == 40
    for file in (czsl_cache / "features").glob("test-*.npy"):
        file.unlink()  # so that the workers encode again
    several = evaluate_run(run, EvalConfig(), workers_per_node=2)
    assert json.dumps(several) == json.dumps(alone)
