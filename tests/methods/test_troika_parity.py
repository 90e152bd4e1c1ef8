"""Troika against what the public program computed from one checkpoint on one batch."""

import json

import pytest
import torch

from methods import from_reference
from methods.features import Targets
from methods.parts.prompts import SoftPrompts
from methods.troika.reference import PUBLIC

ANY = {"atol": 5e-5, "rtol": 2e-4}  # where the specification gives no tolerance


@pytest.fixture(scope="module")
def arrays(reference):
    return reference("troika_reference")


@pytest.fixture(scope="module")
def about(shared):
    return json.loads((shared / "fixtures/troika_reference.json").read_text())


@pytest.fixture(scope="module")
def method(arrays, about):
    state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
    return from_reference("troika", state, about["attributes"], about["objects"], about["config"])


@pytest.fixture(scope="module")
def sides(method, arrays):
    return method.encode_images({"images": arrays["inputs/images"]}), method.encode_compositions(arrays["pairs/train"])


def test_the_initial_table(method, arrays):
    fresh = SoftPrompts(method.clip.text, method.attribute_names, method.object_names, 0.0, True)
    torch.testing.assert_close(fresh.table.detach(), arrays["tensors/soft_att_obj_init"], atol=1e-6, rtol=0)


def test_text_before_it_meets_an_image(sides, arrays):
    for got, name in ((sides[1].pair, "pair"), (sides[1].attribute, "attr"), (sides[1].object, "obj")):
        torch.testing.assert_close(got.detach(), arrays[f"tensors/text_{name}"], atol=1e-5, rtol=0)


def test_logits_of_all_branches(method, sides, arrays):
    for got, name in zip(method.logits(*sides), ("pair", "attr", "obj"), strict=True):
        torch.testing.assert_close(got.detach(), arrays[f"tensors/logits_{name}"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_fused_open_world_scores(method, arrays):
    scores = method.score_images(arrays["inputs/images"], arrays["pairs/open"])
    torch.testing.assert_close(scores, arrays["tensors/fused_open"], atol=1e-5, rtol=0)


def test_loss_and_gradients(method, sides, arrays, about):
    method.zero_grad()
    targets = Targets(*(arrays[f"inputs/{k}"] for k in ("attr", "obj", "pair")))
    loss = torch.stack(list(method.losses(*sides, targets).values())).sum()
    assert loss.item() == pytest.approx(about["scalars"]["loss"], abs=1e-5)
    loss.backward(retain_graph=True)
    gradients = {PUBLIC.public_name(name): p.grad for name, p in method.named_parameters()}
    compared = [k.removeprefix("tensors/grad.") for k in arrays if k.startswith("tensors/grad.")]
    assert len(compared) == 8
    for name in compared:
        torch.testing.assert_close(gradients[name], arrays[f"tensors/grad.{name}"], **ANY)


def test_an_imported_checkpoint_has_the_public_loops_training_mode(method):
    assert method.config.train_mode == "reference"
    assert method.config.patch_norm == "cumulative"


@torch.no_grad()
def test_the_norm_applied_once_is_something_else(method, arrays):
    """Otherwise the parity above would not tell the two forms apart."""
    try:
        method.config.patch_norm = "once"
        logits = method.branch_logits(arrays["inputs/images"], arrays["pairs/train"])
    finally:
        method.config.patch_norm = "cumulative"
    torch.testing.assert_close(logits[0], arrays["tensors/logits_pair"], atol=1e-4, rtol=0)
    assert (logits[2] - arrays["tensors/logits_obj"]).abs().max() > 1e-3
