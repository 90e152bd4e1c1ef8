"""The memory of a training step, counted without values, against the tensors of a real step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cluster.work.device_checks import small_clip, small_space
from cluster.work.estimate import memory_of
from cluster.work.kept import Counted, _Share, step_bytes
from czsl.clip.prompt_tree import skeleton
from czsl.runs.config import RunConfig
from methods.building import build
from methods.contract import Contract
from methods.parts.label_confidences import LabelConfidences
from methods.registry import METHODS, config_class

TRAINED = [name for name in METHODS if config_class(name).trains and config_class(name).steps]
CLOSE = 0.15


def method_of(name, **settings):
    torch.manual_seed(0)
    method = build(name, small_space(), small_clip(), settings)
    if name == "clusPro":  # as its first pass would leave them
        bank = method.prototypes.bank
        bank.copy_(nn.functional.normalize(torch.randn_like(bank), dim=-1))
    return method


def config_of(name, **settings):
    return RunConfig(**{"method": name, "batch": 8, "precision": "float32", **settings})


def batch_of(method, config, rows):
    size = method.clip.image_size
    images = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8)
    batch = {"images": images}
    if method.frozen_images and not config.augments(True):
        with torch.no_grad():
            batch = {"features": method.image_features(batch)}
    place = np.arange(config.batch) % len(method.space.train_pairs)
    pairs = torch.from_numpy(method.space.train_pairs[place].copy())
    labels = {"attr": pairs[:, 0], "obj": pairs[:, 1], "pair": torch.from_numpy(place)}
    return {**batch, "index": torch.arange(config.batch), **({} if method.confidences else labels)}


def counted(method, config, precision="float32", workers=1):
    """The plain count: every storage that autograd saves in a real step, without weights."""
    method.comm = _Share(workers, config.batch, config.accumulate)
    method.clip.compute_in(precision)
    method.begin_epoch(0)
    weights = {t.untyped_storage().data_ptr() for owner in (method, method.clip) for t in (*owner.parameters(), *owner.buffers())}
    share = method.comm.share(config.batch)
    batch, kept, held = batch_of(method, config, share.stop - share.start), {}, []

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return x

    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), cast:
        out = method.training_step(batch)
    assert all(torch.isfinite(x) for x in out.values())
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TRAINED)
def test_estimate_of_each_method(name, precision):
    method, config = method_of(name), config_of(name)
    found = step_bytes(method, config, precision).activations
    assert found == pytest.approx(counted(method, config, precision), rel=CLOSE)


@pytest.mark.parametrize("batch", [2, 24])
@pytest.mark.parametrize(("name", "settings"), [("troika", {"adapter_dim": 8}), ("clusPro", {"adapter_dim": 0}), ("csp", {})])
def test_estimate_of_other_sizes(name, settings, batch):
    method, config = method_of(name, **settings), config_of(name, batch=batch)
    assert step_bytes(method, config, "float32").activations == pytest.approx(counted(method, config), rel=CLOSE)


@pytest.mark.parametrize("name", ["csp", "clusPro", "msci", "caila", "dfsp"])
def test_a_workers_share(name):
    method, config = method_of(name), config_of(name)
    found = step_bytes(method, config, "float32", workers=3).activations
    assert found == pytest.approx(counted(method, config, workers=3), rel=CLOSE)
    assert found < step_bytes(method, config, "float32").activations


@pytest.mark.parametrize("name", ["csp", "clip-pzsl", "clusPro"])
def test_candidate_labels(name):
    method, config = method_of(name), config_of(name)
    index = np.array([[0, 1, -1], [2, 3, 4]] * 4)
    method.confidences = LabelConfidences(index, method.space.train_pairs, 6, 5)
    plain = step_bytes(method, config, "float32")
    method.confidences = None
    confidences = LabelConfidences(index, method.space.train_pairs, 6, 5)
    found = step_bytes(method, config, "float32", confidences=confidences)
    assert found.buffers == plain.buffers + 8 * 3 * (8 + 1 + 4)
    assert torch.equal(confidences.weight_NS[0], torch.tensor([0.5, 0.5, 0.0]))
    method.confidences = confidences
    assert found.activations == pytest.approx(counted(method, config), rel=CLOSE)


def test_augmented_images_of_a_frozen_tower_are_encoded():
    method = method_of("csp")
    kept, encoded = (step_bytes(method, config_of("csp", augment=a), "float32") for a in (False, True))
    assert kept.batch == 8 * (64 * 4 + 4 * 8)
    assert encoded.batch == 8 * (3 * 64 * 64 + 4 * 8)


@pytest.mark.parametrize("name", ["clusPro", "caila"])
def test_parts_and_recomputed_blocks_keep_less(name):
    method = method_of(name)
    whole, parts, blocks, both = (
        step_bytes(method, config_of(name, **s), "float32").activations
        for s in ({}, {"accumulate": 4}, {"checkpoint_blocks": True}, {"accumulate": 4, "checkpoint_blocks": True})
    )
    assert both <= parts < whole
    assert both < blocks < whole


@pytest.mark.parametrize(
    "settings", [{"accumulate": 3}, {"checkpoint_blocks": True}, {"accumulate": 2, "checkpoint_blocks": True}]
)
def test_parts_are_counted_as_in_a_real_step(settings):
    """The same counter on real tensors: parts are then computed as they are counted, one after the other."""
    method, config = method_of("clusPro"), config_of("clusPro", **settings)
    found = step_bytes(method, config, "float32").activations
    method.comm = _Share(1, config.batch, config.accumulate)
    method.clip.visual.checkpointing = config.checkpoint_blocks
    method.begin_epoch(0)
    count = Counted([t for owner in (method, method.clip) for t in (*owner.parameters(), *owner.buffers())])
    with count.counting():
        method.training_step(batch_of(method, config, config.batch))
    assert found == pytest.approx(count.total, rel=CLOSE)


def test_nothing_of_the_method_changes():
    method, config = method_of("dfsp"), config_of("dfsp", checkpoint_blocks=True)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    torch.manual_seed(3)
    expected = counted(method, config), torch.rand(1)
    for precision in ("float32", "bfloat16", "float64"):
        step_bytes(method, config, precision)
    assert skeleton.cache_info().currsize == 0
    assert not method.clip.visual.checkpointing
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert next(method.clip.visual.blocks.parameters()).dtype == torch.float32
    torch.manual_seed(3)
    assert (counted(method, config), torch.rand(1)) == expected


def test_parts_of_the_memory():
    method, config = method_of("csp"), config_of("csp")
    trained = sum(p.numel() for p in method.parameters()) * 4
    single, double, half = (memory_of(config, method, p) for p in ("float32", "float64", "bfloat16"))
    assert (single["trained"], single["gradients"], single["optimizer"]) == (trained, trained, 2 * trained)
    assert single["clip"] == sum(t.numel() * 4 for t in (*method.clip.parameters(), *method.clip.buffers()))
    assert double["trained"] == 2 * trained
    assert double["activations"] == pytest.approx(2 * single["activations"], rel=0.05)
    assert half["clip"] < single["clip"]
    assert single["total"] == sum(single.values()) - single["total"]
    assert memory_of(config_of("zero-shot"), method_of("zero-shot"), "float32").keys() == {"clip", "total"}


def test_a_step_that_depends_on_values_leaves_its_activations_out(monkeypatch):
    def step(self, batch):
        return {"pair": self.encode_compositions(self.train_pairs[: int(batch["attr"].max()) + 7].nonzero()).pair.sum()}

    method = method_of("csp")
    monkeypatch.setattr(type(method), "training_step", step)
    memory = memory_of(config_of("csp"), method, "float32")
    assert memory.keys() == {"clip", "trained_with_optimizer", "total"}


def test_the_contract_has_nothing_to_do_for_most_methods():
    assert [n for n in TRAINED if type(method_of(n)).without_values is not Contract.without_values] == ["clusPro"]
