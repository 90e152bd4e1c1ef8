"""A local Ray for the tests of this folder, and a small CLIP that workers can load by path."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

# public_loops.py, and the plain forms that tests of methods have.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "methods")]

OBJECT_STORE = 100 * 2**20


@pytest.fixture(scope="session")
def ray_local(tmp_path_factory):
    """Ray with four logical CPUs, whatever the machine has; stopped at the end."""
    import os

    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def engine(request):
    """Each engine that can run one worker: what they promise is the same."""
    if request.param == "ray":
        request.getfixturevalue("ray_local")
    return request.param


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory, czsl_cache):
    """A random CLIP of two layers as a state dict in OpenAI's format."""
    import torch

    from czsl.clip.compat import import_open_clip

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    model = import_open_clip().CLIP(32, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    path = tmp_path_factory.mktemp("clip") / "small.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def candidates_file(dataset, tmp_path_factory):
    """Candidate sets of the drawn data, some nine an image."""
    from czsl.data.files.ambiguity import make_partial_labels
    from czsl.data.files.partial_labels import write_partial_labels
    from czsl.data.table import open_data

    data = open_data(dataset)
    path = tmp_path_factory.mktemp("candidates") / "candidates-uniform-0.1-0.parquet"
    write_partial_labels(path, make_partial_labels(data, "uniform", 0.1, 0), data.split("train").ids)
    return path


@pytest.fixture
def make_run(tmp_path, dataset, clip_file):
    """A new run with quick settings; further settings by keyword."""
    from czsl.runs.run import Run
    from czsl_cli.config import resolve

    numbers = iter(np.arange(100))

    def make(**settings):
        quick = {"data": str(dataset), "clip": str(clip_file), "epochs": 2, "batch": 24, "eval_batch": 16, "threads": 1}
        config = resolve({**quick, **settings})
        from czsl.data.table import open_data

        return Run.create(config, open_data(config.data).space, tmp_path / "runs", f"run-{next(numbers)}")

    return make


@pytest.fixture
def stopped_after(monkeypatch):
    """Trains a run in this process until it is stopped after a step, and makes it ready to go on."""
    import torch

    from cluster.work.comm import Group
    from cluster.work.training import train_worker

    def train_until(run, step):
        log = run.log

        def stop_soon(record):
            log(record)
            if record.get("event") == "step" and record["step"] == step:
                run.stop_file.touch()

        with monkeypatch.context() as patch:
            patch.setattr(run, "log", stop_soon)
            assert train_worker(run, Group(), torch.device("cpu")) == "stopped"
        run.stop_file.unlink()

    return train_until


@pytest.fixture(scope="module")
def source(dataset, clip_file, tmp_path_factory):
    """A CSP run of three epochs."""
    import torch

    from cluster.work.comm import Group
    from cluster.work.training import train_worker
    from czsl.data.table import open_data
    from czsl.runs.run import Run
    from czsl_cli.config import resolve

    options = {"method": "csp", "data": str(dataset), "clip": str(clip_file), "epochs": 3, "lr": 0.01, "threads": 1}
    run = Run.create(resolve(options), open_data(str(dataset)).space, tmp_path_factory.mktemp("source"), "source")
    assert train_worker(run, Group(), torch.device("cpu")) == "done"
    return run
