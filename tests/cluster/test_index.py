"""Indexes of runs: the same for any number of workers and after an interruption, and the same answers as without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import methods.method
from cluster.index import build_index
from cluster.work import indexing
from cluster.work.comm import Group
from cluster.work.indexing import IndexConfig, compute, folder_of, fresh_index
from cluster.work.predictor import PredictConfig, Predictor
from czsl.data.toy import dataset as toy
from czsl.errors import UsageError
from czsl.retrieval.index import CompositionIndex
from czsl.runs import checkpoint
from czsl.runs.checkpoint import Checkpoint
from czsl.runs.run import Run
from czsl_cli.config import resolve
from methods.building import build
from methods.loading import load

CPU = torch.device("cpu")
NEW = ("coop", "vp-cmjl", "vp-cmjl fusion=product", "caila", "dfsp")


def make_run(tmp_path, clip_file, method="clusPro", step=1, run=None, **settings):
    """A run with a checkpoint whose weights are moved off their start, as after training."""
    options = {"method": method, "clip": str(clip_file), "threads": 1, "data": "toy", **settings}
    run = run or Run.create(resolve(options), toy.space(), tmp_path, "run")
    from czsl.clip.loading import load_clip

    clip = load_clip(str(clip_file))
    trained = build(method, run.space, clip, run.config.model)
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    state = {"step": step, "method": trained.name, "clip_sha256": clip.sha256, "clip": clip.architecture}
    state["space"] = {"attributes": list(run.space.attributes), "objects": list(run.space.objects)}
    checkpoint.save(run.checkpoints, Checkpoint(trained.state_dict(), {}, state))
    return run


@pytest.fixture
def run(tmp_path, clip_file):
    return make_run(tmp_path, clip_file)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(9):
        toy.draw(toy.ATTRIBUTES[i % 5], toy.OBJECTS[i % 7], seed=i).save(folder / f"{i}.png")
    return folder


def encoded(run) -> np.ndarray:
    method = load(run)
    with torch.inference_mode():
        return method.encode_compositions(torch.from_numpy(run.space.open_pairs.copy())).pair.numpy()


def test_the_index_holds_the_open_world_and_goes_stale_with_the_checkpoint(run, tmp_path, clip_file):
    assert fresh_index(run) is None
    seen = []
    folder = build_index(IndexConfig(str(run.path)), progress=lambda *facts: seen.append(facts))
    assert folder == folder_of(run) == fresh_index(run)
    index = CompositionIndex.load(folder)
    assert np.array_equal(index.pairs, run.space.open_pairs)
    assert np.array_equal(index.vectors, encoded(run))
    assert ("encoding compositions", len(index), len(index)) in seen
    assert not list(run.path.glob(".index*"))  # shards are gone
    make_run(tmp_path, clip_file, step=2, run=run)
    assert fresh_index(run) is None
    assert fresh_index(run, "1") == folder


class Turn(Group):
    """One of several workers, whose turn comes alone."""

    def __init__(self, rank, world):
        super().__init__()
        self.rank, self.world = rank, world

    def gather_objects(self, thing):
        return [thing]


def test_shards_of_several_workers_and_of_an_interrupted_build_make_the_same_index(run, monkeypatch):
    for module, name in ((methods.method, "TEXT_CHUNK"), (indexing, "TEXT_CHUNK"), (indexing, "SHARD")):
        monkeypatch.setattr(module, name, 48)  # 168 pairs: four shards, the last one short
    alone = CompositionIndex.load(build_index(IndexConfig(str(run.path)))).vectors.copy()
    plan = IndexConfig(str(run.path))
    parts = indexing.parts_folder(run, plan)
    parts.mkdir()
    compute(plan, Turn(1, 2), CPU)
    assert sorted(p.name for p in parts.iterdir()) == ["000001.npy", "000003.npy"]
    written = {p.name: p.stat().st_mtime_ns for p in parts.iterdir()}
    compute(plan, Turn(0, 2), CPU)
    assert written.items() <= {p.name: p.stat().st_mtime_ns for p in parts.iterdir()}.items()  # nothing was done twice
    assert np.array_equal(CompositionIndex.load(folder_of(run)).vectors, alone)


@pytest.mark.parametrize("method", ["clusPro", "clusPro fusion=probability", "csp", *NEW])
@pytest.mark.parametrize(("kind", "cells"), [("flat", None), ("ivf", 9)])
def test_predictions_are_the_same_with_an_index(tmp_path, clip_file, photos, method, kind, cells):
    method, _, setting = method.partition(" ")
    run = make_run(tmp_path, clip_file, method, **dict([setting.split("=")] if setting else []))
    folder = build_index(IndexConfig(str(run.path), kind=kind, cells=cells))
    names = sorted(p.name for p in photos.iterdir())
    scored = Predictor(PredictConfig(run=str(run.path), open_world=True), CPU).predict(photos, names)
    found = Predictor(PredictConfig(run=str(run.path), open_world=True, index=str(folder)), CPU).predict(photos, names)
    for one, other in zip(scored, found, strict=True):
        assert other["retrieval"]["exact"]
        for key in ("predictions", "attributes", "objects"):
            for a, b in zip(one[key], other[key], strict=True):
                assert a.keys() == b.keys()
                for name, value in a.items():
                    assert b[name] == (pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value), name


def test_texts_that_depend_on_the_image_cannot_be_indexed(tmp_path, clip_file):
    run = make_run(tmp_path, clip_file, "troika")
    with pytest.raises(UsageError, match="cannot be indexed"):
        build_index(IndexConfig(str(run.path)))


@pytest.mark.slow
def test_workers_of_a_cluster_build_the_same_index(ray_local, run):
    alone = CompositionIndex.load(build_index(IndexConfig(str(run.path)))).vectors.copy()
    folder = build_index(IndexConfig(str(run.path), kind="ivf"), workers_per_node=2)
    index = CompositionIndex.load(folder)
    assert index.kind == "ivf"
    assert np.array_equal(index.embeddings(np.arange(len(index))), alone)
