"""Runs of an experiment: on a Ray they share it and end as they do one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.experiment import make_run, plan, train_all, train_one
from czsl.data.table import open_data
from czsl.reading import read_safetensors
from czsl.runs import checkpoint
from czsl.runs.config import RunConfig


def planned(dataset, folder, rate, seed=0):
    data = open_data(dataset)
    config = RunConfig(method="csp", data=str(dataset), epochs=1, batch=32, lr=rate, seed=seed, threads=1)
    config.remember(data.decode)
    return plan(f"lr{rate}", "drawn", seed, config, folder, f"lr{rate}-seed{seed}", data), data


def weights(one):
    return read_safetensors(checkpoint.find(one.run.checkpoints) / "method.safetensors")


def test_settings_choose_the_folder(dataset, tmp_path):
    one, data = planned(dataset, tmp_path, 1e-3)
    assert (one.state, one.steps) == ("missing", 3)
    make_run(one, data)
    assert planned(dataset, tmp_path, 1e-3)[0].state == "new"
    one.config.lr = 2e-3
    other = plan(one.row, "drawn", 0, one.config, tmp_path, one.path.name, data)
    assert other.path.name == f"{one.path.name}-2"
    assert "lr=0.001" in other.changed


@pytest.mark.slow
def test_runs_that_share_a_ray_end_as_those_that_follow_each_other(dataset, tmp_path, ray_local):
    together = [planned(dataset, tmp_path / "together", rate) for rate in (1e-3, 1e30, 2e-3)]
    for one, data in together:
        make_run(one, data)
    over = set()
    status = train_all(
        [one for one, _ in together],
        tmp_path / "together",
        on_trial=lambda trial: over.add((trial.path.name, trial.status())),
    )
    assert status == "done"
    assert [one.state for one, _ in together] == ["done", "failed", "done"]
    assert ("lr1e+30-seed0", "failed") in over
    for rate in (1e-3, 2e-3):
        alone, data = planned(dataset, tmp_path / "alone", rate)
        make_run(alone, data)
        assert train_one(alone, engine="local") == "done"
        match = next(one for one, _ in together if one.config.lr == rate)
        for name, value in weights(alone).items():
            np.testing.assert_array_equal(value, weights(match)[name])
