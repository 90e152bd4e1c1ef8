"""A new run that starts from another run's weights (`czsl train --from`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cluster.train import train
from cluster.work.comm import Group
from cluster.work.training import train_worker
from czsl.data.toy import dataset as toy
from czsl.errors import UsageError
from czsl.runs import checkpoint
from czsl.runs.run import Run


def new_run(source: Run, out: Path, *settings: str) -> Run:
    """As ``czsl train --from`` makes it."""
    from czsl_cli.config import resolve
    from czsl_cli.train import _as_in, _new_run

    return _new_run(resolve(_as_in(source.path, {}, settings, None), settings), out, None, source.path)


def test_a_run_from_weights_starts_with_them_and_with_a_fresh_optimizer(source, tmp_path):
    run = new_run(source, tmp_path, "epochs=1", "lr=1e-7", "threads=1", "seed=7")
    assert run.config.clip == source.config.clip
    assert run.config.lr == 1e-7
    best = checkpoint.find(source.checkpoints, "best")
    start = checkpoint.load(checkpoint.find(run.start, "last"))
    for key, value in checkpoint.load(best).method.items():
        assert torch.equal(start.method[key], value), key
    assert not start.optimizer
    assert train_worker(run, Group(), torch.device("cpu")) == "done"
    assert next(run.metrics("step"))["step"] == 1
    end = checkpoint.load(checkpoint.find(run.checkpoints, "last"))
    for key, value in end.method.items():
        torch.testing.assert_close(value, start.method[key], rtol=0, atol=1e-5)  # this learning rate leads no farther
    moments = end.optimizer
    assert {float(v) for k, v in moments.items() if k.startswith("step.")} == {float(len(list(run.metrics("step"))))}
    from_ = run.environment()["started_from"]
    assert from_["run"] == str(source.path)
    assert from_["checkpoint"] == best.name
    assert from_["sha256"] == json.loads((best / "manifest.json").read_text())["method.safetensors"]


def test_names_that_both_runs_know_keep_what_was_learned(source, tmp_path):
    """A label space in another order and with other words."""
    from czsl.data.table import Record, write_dataset

    space = toy.space()
    samples = [(n, i, a, o, s) for n, a, o, s, i in toy.samples(scale=0.01) if a != toy.ATTRIBUTES[0]]
    other = toy.space().__class__.from_json(
        {
            "attributes": ["brand-new", *reversed(toy.ATTRIBUTES[1:])],
            "objects": list(toy.OBJECTS),
            **{
                f"{split}_pairs": sorted({(a, o) for _, _, a, o, s in samples if s == split})
                for split in ("train", "val", "test")
            },
        }
    )
    write_dataset(tmp_path / "other", other, (Record(*s) for s in samples), "other")
    run = new_run(source, tmp_path, f"data={tmp_path / 'other'}", "epochs=1")
    old = checkpoint.load(checkpoint.find(source.checkpoints, "best")).method["prompts.table"]
    new = checkpoint.load(checkpoint.find(run.start, "last")).method["prompts.table"]
    for name in toy.ATTRIBUTES[1:]:
        assert torch.equal(new[other.attributes.index(name)], old[space.attributes.index(name)])
    assert torch.equal(new[other.num_attributes :], old[space.num_attributes :])
    assert not any(torch.equal(new[0], row) for row in old)


def test_weights_that_cannot_fit_are_refused(source, tmp_path):
    with pytest.raises(UsageError, match="trained csp"):
        new_run(source, tmp_path, "method=clusPro")
    with pytest.raises(UsageError, match="another CLIP"):
        new_run(source, tmp_path, "clip=tiny")
    with pytest.raises(UsageError, match="no weights"):
        from czsl.data.table import open_data
        from czsl_cli.config import resolve

        config = resolve({"method": "zero-shot", "data": source.config.data, "clip": source.config.clip})
        plain = Run.create(config, open_data(config.data).space, tmp_path, "plain")
        new_run(plain, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["plain"]


def test_damaged_starting_weights_are_not_replaced_by_random_ones(source, tmp_path):
    run = new_run(source, tmp_path, "epochs=1")
    (checkpoint.find(run.start, "last") / "method.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="damaged"):
        train(run)
