"""Methods from run folders, and what a new run takes from an old one, for every method that trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from czsl.clip.loading import load_clip
from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from czsl.runs import checkpoint
from czsl.runs.checkpoint import Checkpoint
from czsl.runs.config import RunConfig
from czsl.runs.run import Run
from methods.building import build
from methods.fingerprint import fingerprint
from methods.loading import load, starting_point
from methods.registry import METHODS, method_class

TRAINED = sorted(name for name in METHODS if method_class(name).trains and method_class(name).steps)


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny")


def trained_run(name: str, clip, space, folder) -> Run:
    """A run whose weights are not those that the method starts from."""
    method = build(name, space, clip, {})
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in method.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.02 * torch.randn_like(tensor))
    run = Run.create(RunConfig(method=name, data="toy", clip="tiny", model={}), space, folder, f"{name}-trained")
    labels = {"attributes": list(space.attributes), "objects": list(space.objects)}
    state = {"step": 5, "epoch": 1, "place": 0, "best_auc": 0.1, "method": name, "clip_sha256": clip.sha256}
    state |= {"clip": clip.architecture, "space": labels}
    path = checkpoint.save(run.checkpoints, Checkpoint(method.state_dict(), {}, state))
    checkpoint.mark_best(run.checkpoints, path, step=5, epoch=1, auc=0.1)
    return run


@pytest.mark.parametrize("name", TRAINED)
def test_a_new_run_in_other_labels_starts_with_what_was_learned_of_its_names(name, clip, small_space, tmp_path):
    run = trained_run(name, clip, small_space, tmp_path)
    old = load(run)
    a, o = small_space.attributes, small_space.objects
    pairs = np.array([(0, 0), (1, 1), (2, 1)])  # the compared ones are seen here as they are there
    space = CompositionSpace((a[2], "shiny new", a[0]), (o[1], o[0]), pairs, pairs[:0], pairs[:0])
    torch.manual_seed(11)
    new = build(name, space, clip, {})
    before = {k: v.clone() for k, v in new.state_dict().items()}
    start = starting_point(run, new, "data")
    assert all(torch.equal(v, before[k]) for k, v in new.state_dict().items())  # a proposal, not yet taken
    assert (start.state["step"], start.optimizer) == (0, {})
    new.load_state_dict(start.method)
    new.eval()
    with torch.no_grad():
        here, there = (m.encode_compositions(torch.tensor(p)) for m, p in ((old, [[2, 1], [0, 0]]), (new, [[0, 0], [2, 1]])))
        torch.testing.assert_close(there.pair, here.pair, rtol=1e-5, atol=1e-6)
        plain = build(name, small_space, clip, {}).eval().encode_compositions(torch.tensor([[2, 1], [0, 0]]))
        assert not torch.allclose(plain.pair, here.pair, atol=1e-3)  # something was learned


@pytest.mark.parametrize("name", ["clusPro", "msci", "troika"])
def test_settings_by_which_weights_have_other_shapes_are_named(name, clip, small_space, tmp_path):
    run = trained_run(name, clip, small_space, tmp_path)
    other = build(name, small_space, clip, {"adapter_dim": 3})
    with pytest.raises(UsageError, match="do not fit") as caught:
        starting_point(run, other, "data")
    assert "adapter_dim" in caught.value.why


def test_a_fingerprint_follows_weights_and_settings_and_not_the_data(clip, small_space, tmp_path):
    run = trained_run("csp", clip, small_space, tmp_path)
    before = fingerprint(run)
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("data: toy", "data: elsewhere"))
    assert fingerprint(Run(run.path)) == before
    (run.path / "config.yaml").write_text(text.replace("clip: tiny", "clip: other"))
    assert fingerprint(Run(run.path)) != before
    (run.path / "config.yaml").write_text(text)
    kept = checkpoint.load(checkpoint.find(run.checkpoints, "best"))
    kept.method = {k: v + 1 for k, v in kept.method.items()}
    kept.state["step"] = 6
    assert fingerprint(run) == before
    checkpoint.mark_best(run.checkpoints, checkpoint.save(run.checkpoints, kept), step=6, epoch=2, auc=0.2)
    assert fingerprint(run) != before
