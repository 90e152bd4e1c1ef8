"""ComCLIP as a run: a file of regions travels with it, features are kept by their regions, parts of a split, several workers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cluster.evaluate import evaluate_run
from cluster.work.comm import Group
from cluster.work.evaluation import EvalConfig, saved_evaluation
from cluster.work.feature_loader import FeatureLoader
from czsl.clip.loading import load_clip
from czsl.data.images import decode
from czsl.data.table import open_data
from czsl.runs.run import Run
from czsl_cli.config import resolve
from methods.building import build
from methods.loading import load


@pytest.fixture(scope="module")
def run(dataset, clip_file, tmp_path_factory):
    """A run whose file of regions is gone since; it knows two of the test images."""
    folder, data = tmp_path_factory.mktemp("comclip"), open_data(str(dataset))
    ids = data.split("test").ids
    file = folder / "regions.json"
    file.write_text(
        json.dumps([{"image": ids[i], "regions": [{"phrase": "x", "box": [5, 5, 40, 50]}] * (i + 1)} for i in range(2)])
    )
    options = {"method": "comclip", "data": str(dataset), "clip": str(clip_file), "threads": 1}
    config = resolve(options, ["regions=file", f"regions_file={file}", "max_regions=3"])
    file.unlink()
    return Run.create(config, data.space, folder, "run")


def test_regions_are_kept_with_the_run_and_found_by_name(run, dataset):
    method, data = load(Run(run.path)), open_data(str(dataset))
    loader = FeatureLoader(method, data, "test", Group(), 16)
    views = loader.features.unflatten(1, (-1, method.clip.dim))
    assert views.shape[1] == 1 + 3
    assert ((views[:3] != 0).any(-1)).tolist() == [
        [True, True, False, False],
        [True, True, True, False],
        [True, False, False, False],
    ]
    prepared = method.prepare(decode(loader.split.image_bytes(1)), loader.split.ids[1])
    with torch.inference_mode():
        fresh = method.image_features({key: value[None] for key, value in prepared.items()})
    torch.testing.assert_close(loader.features[1:2], fresh)


def test_features_are_kept_apart_from_those_of_other_regions(run, dataset, clip_file):
    data = open_data(str(dataset))

    def features(*overrides):
        config = resolve({"method": "comclip", "data": str(dataset), "clip": str(clip_file)}, overrides)
        return FeatureLoader(
            build("comclip", data.space, load_clip(config.clip), config.model), data, "test", Group(), 16
        ).features

    grid, patch = features("regions=grid"), features("regions=patch")
    dim = load_clip(str(clip_file)).dim
    assert grid.shape == (40, 35 * dim)
    assert patch.shape[1] % dim == 0 and patch.shape != grid.shape
    assert torch.equal(features("regions=grid", "mode=raw", "beta=0.3", "relation=union"), grid)
    assert not torch.equal(features("regions=grid", "fill=blur"), grid)


def test_a_part_of_a_split_is_told_and_kept_apart(tmp_path):
    data = open_data("toy")
    run = Run.create(resolve({"method": "zero-shot", "data": "toy", "threads": 1}), data.space, tmp_path, "run")
    eval_config, pairs = EvalConfig(split="val", per_pair=2), data.split("val").pairs
    part = evaluate_run(run, eval_config)
    assert part["images"] == 2 * len(np.unique(pairs, axis=0)) < len(pairs)
    assert part["subset"] == {"per_pair": 2, "seed": 0, "of_images": len(pairs)}
    assert evaluate_run(run, eval_config) == part
    assert eval_config.name == "val-closed-2-per-pair"
    assert json.loads((run.path / "report-val-closed-2-per-pair.json").read_text()) == part
    assert saved_evaluation(run, eval_config)[0] is not None
    assert saved_evaluation(run, EvalConfig(split="val"))[0] is None
    whole = evaluate_run(run, EvalConfig(split="val"))
    assert "subset" not in whole
    assert whole["images"] == len(pairs)


@pytest.mark.slow
def test_evaluation_is_the_same_on_several_workers(ray_local, run, czsl_cache):
    alone = evaluate_run(run, EvalConfig())
    assert alone["images"] == 40
    for file in (czsl_cache / "features").glob("test-*.npy"):
        file.unlink()  # so that the workers encode again
    several = evaluate_run(run, EvalConfig(), workers_per_node=2)
    assert json.dumps(several) == json.dumps(alone)
