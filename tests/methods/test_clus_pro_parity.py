"""ClusPro against what the public program computed from one checkpoint on one batch."""

import functools
import json

import pytest
import torch
from clus_pro_fixtures import own_noise, public_method, public_state

from czsl.errors import UsageError
from methods.clus_pro.hsic import normalised_hsic
from methods.clus_pro.reference import PUBLIC
from methods.parts.prompts import SoftPrompts

ANY = {"atol": 5e-5, "rtol": 2e-4}  # where the specification gives no tolerance


@pytest.fixture(scope="module")
def reference(reference):
    return functools.cache(reference)


@pytest.fixture(scope="module")
def evaluated(shared, reference):
    method, batch = public_method(shared, reference)
    method.eval()
    with torch.no_grad():
        arrays = reference("cluspro_reference")
        texts = {k: method.encode_compositions(arrays[f"pairs/{k}"]) for k in ("train", "open")}
        return method, method.encode_images(batch), texts, batch


@pytest.fixture(scope="module")
def stepped(shared, reference):
    """The method after a training step's backward pass, and what was seen on the way."""
    method, batch = public_method(shared, reference)
    method.train()
    bank, seen, noise = method.prototypes, {}, own_noise(reference)
    plans, step, losses = bank.plans, bank.step, method.losses
    bank.gumbel = lambda plan: noise

    def spy_plans(g_MD, problems):
        seen["problems"], seen["similarity"] = problems, bank.similarities(g_MD, problems)
        seen["plans"] = plans(g_MD, problems)
        return seen["plans"]

    def spy_step(*args):
        seen["labels"] = step(*args)
        return seen["labels"]

    def spy_losses(images, text, targets):
        seen["images"], seen["logits"] = images, method.logits(images, text)
        return losses(images, text, targets)

    bank.plans, bank.step, method.losses = spy_plans, spy_step, spy_losses
    seen["terms"] = method.training_step(batch)
    sum(seen["terms"].values()).backward()
    return method, seen, batch


def test_initial_table_and_context(shared, reference):
    method, _ = public_method(shared, reference)
    expected = reference("cluspro_parts")["soft_att_obj_init"]
    fresh = SoftPrompts(method.clip.text, method.attribute_names, method.object_names, 0.0, True)
    torch.testing.assert_close(fresh.table.detach(), expected, atol=1e-6, rtol=0)
    words = method.clip.text.embed_tokens(torch.tensor([320, 1125, 539]))
    for vectors in fresh.context.values():
        torch.testing.assert_close(vectors.detach(), words, atol=1e-6, rtol=0)


def test_text_and_image_features(evaluated, reference):
    method, _, texts, batch = evaluated
    parts = reference("cluspro_parts")
    for got, name in (
        (texts["train"].pair, "text_pair"),
        (texts["open"].pair, "text_pair_open"),
        (texts["train"].attribute, "text_attr"),
        (texts["train"].object, "text_obj"),
    ):
        torch.testing.assert_close(got, parts[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(method.image_features(batch), parts["image_features"], atol=1e-4, rtol=0)


def test_heads_and_logits_in_evaluation(evaluated, reference):
    method, images, texts, _ = evaluated
    parts, arrays = reference("cluspro_parts"), reference("cluspro_reference")
    for i, name in enumerate(("attr", "obj")):
        torch.testing.assert_close(images.hidden[i], parts[f"g_{name}_eval"], **ANY)
        torch.testing.assert_close(images.branches[i], parts[f"z_{name}_eval"], **ANY)
    for got, name in zip(method.logits(images, texts["train"]), ("pair", "attr", "obj"), strict=True):
        torch.testing.assert_close(got, arrays[f"tensors/eval_logits_{name}"], atol=1e-4, rtol=0)


def test_fused_open_world_scores(evaluated, reference):
    method, images, texts, _ = evaluated
    expected = reference("cluspro_reference")["tensors/eval_fused_open"]
    torch.testing.assert_close(method.scores(images, texts["open"]), expected, atol=1e-5, rtol=0)


def test_fusion_alone(evaluated, reference):
    """Without the noise of the towers: the fixture's own logits, fused."""
    method, images, texts, _ = evaluated
    arrays = reference("cluspro_reference")
    attr, obj = (arrays[f"tensors/eval_logits_{k}"] for k in ("attr", "obj"))
    pair = method.logits(images, texts["open"])[0]
    pairs = arrays["pairs/open"]
    expected = pair + attr.softmax(1)[:, pairs[:, 0]] * obj.softmax(1)[:, pairs[:, 1]]
    torch.testing.assert_close(method.scores(images, texts["open"]), expected, atol=1e-6, rtol=0)


def test_training_features_and_logits(stepped, reference):
    _, seen, _ = stepped
    arrays = reference("cluspro_reference")
    for i, name in enumerate(("attr", "obj")):
        torch.testing.assert_close(seen["images"].hidden[i].detach(), arrays[f"tensors/g_{name}"], **ANY)
        torch.testing.assert_close(seen["images"].branches[i].detach(), arrays[f"tensors/z_{name}"], **ANY)
    for got, name in zip(seen["logits"], ("pair", "attr", "obj"), strict=True):
        torch.testing.assert_close(got.detach(), arrays[f"tensors/train_logits_{name}"], atol=1e-4, rtol=0)


def test_similarities_plans_and_labels(stepped, reference):
    _, seen, batch = stepped
    arrays, parts = reference("cluspro_reference"), reference("cluspro_parts")
    present = seen["problems"].primitives
    similarity = torch.cat([parts["similarity_attr"], parts["similarity_obj"]])[present]
    torch.testing.assert_close(seen["similarity"], similarity, atol=1e-6, rtol=0)
    plans = torch.cat([arrays["tensors/plans_attr"], arrays["tensors/plans_obj"]])[present]
    assert (seen["plans"] - plans).abs().max() < 1e-6 / len(batch["attr"])
    labels = seen["labels"] + 5 * torch.stack([batch["attr"], batch["obj"]])
    assert torch.equal(labels, torch.stack([parts["labels_attr"], parts["labels_obj"]]))


def test_prototypes_after_the_step(stepped, reference):
    arrays = reference("cluspro_reference")
    expected = torch.cat([arrays["tensors/prototypes_attr_after"], arrays["tensors/prototypes_obj_after"]])
    torch.testing.assert_close(stepped[0].prototypes.bank, expected, atol=1e-6, rtol=0)


def test_prototypes_from_the_public_features_agree_but_for_the_order_of_sums(shared, reference):
    method, batch = public_method(shared, reference)
    arrays, noise = reference("cluspro_reference"), own_noise(reference)
    method.prototypes.gumbel = lambda plan: noise
    features = torch.stack([arrays["tensors/g_attr"], arrays["tensors/g_obj"]])
    method.prototypes.step(features, batch["attr"], batch["obj"])
    expected = torch.cat([arrays["tensors/prototypes_attr_after"], arrays["tensors/prototypes_obj_after"]])
    # Features of one prototype are added in another order, which shows in the last bit.
    torch.testing.assert_close(method.prototypes.bank, expected, atol=2e-9, rtol=0)


def test_losses(stepped, shared, reference):
    method, seen, batch = stepped
    scalars = json.loads((shared / "fixtures/cluspro_reference.json").read_text())["scalars"]
    assert float(seen["terms"]["pcl"].detach()) / 0.1 == pytest.approx(scalars["contrastive"], abs=1e-5)
    assert float(sum(seen["terms"].values()).detach()) == pytest.approx(scalars["loss"], abs=1e-4)
    assert set(seen["terms"]) == {"pair", "attr", "obj", "pcl"}
    with torch.no_grad():
        ids = method.prototypes.ids(batch["attr"], batch["obj"]).view(2, -1)
        rows, targets = method._prototype_rows(ids, seen["labels"])
        z = seen["images"].branches
        hsic = normalised_hsic(z[0], rows[targets[1]], "biased") + 0.5 * normalised_hsic(z[1], rows[targets[0]], "biased")
    assert float(hsic) == pytest.approx(scalars["hsic_weighted_sum"], abs=1e-5)


def test_gradients(stepped, reference):
    method, _, _ = stepped
    arrays = reference("cluspro_reference")
    for name, parameter in {
        "soft_att_obj": method.prompts.table,
        "comp_ctx_vectors": method.prompts.context["pair"],
        "attr1.fc1.weight": method.head_mlps["attribute"].fc1.weight,
        "obj_disentangler.fc1.weight": method.hidden_mlps["object"].fc1.weight,
        "additional_visual_params.0.down_proj.weight": method.adapters[0].down_proj.weight,
    }.items():
        torch.testing.assert_close(parameter.grad, arrays[f"tensors/grad.{name}"], atol=1e-5, rtol=1e-4)
    assert all(p.grad is not None for p in method.parameters())


def test_batch_norm_buffers_follow_features_prototypes_and_rings(shared, reference):
    method, batch = public_method(shared, reference)
    noise = own_noise(reference)
    method.prototypes.gumbel = lambda plan: noise
    method.train()
    method.training_step(batch)
    parts = reference("cluspro_parts")
    before = reference("cluspro_reference")
    for public, mlp, updates in (
        ("attr_disentangler", method.hidden_mlps["attribute"], 1),
        ("obj_disentangler", method.hidden_mlps["object"], 1),
        ("attr1", method.head_mlps["attribute"], 3),
        ("obj1", method.head_mlps["object"], 3),
    ):
        for name in ("running_mean", "running_var"):
            expected = parts[f"after.{public}.bn1_fc.{name}"]
            torch.testing.assert_close(getattr(mlp.bn1_fc, name), expected, atol=1e-6, rtol=0)
        counted = mlp.bn1_fc.num_batches_tracked - before[f"state/{public}.bn1_fc.num_batches_tracked"]
        assert int(counted) == updates


def test_ring_buffers_receive_the_features_of_the_step(shared, reference):
    method, batch = public_method(shared, reference)
    before = method.prototypes.ring.clone()
    method.train()
    method.training_step(batch)
    changed = (method.prototypes.ring != before).any(-1)
    assert int(method.prototypes.ring_place.sum()) == int(changed.sum()) == 2 * len(batch["attr"])


def test_other_tensors_are_refused(reference):
    state = public_state(reference("cluspro_reference"))
    with pytest.raises(UsageError, match="cmt"):
        PUBLIC.translate({**state, "cmt.0.weight": torch.zeros(1)})
    with pytest.raises(UsageError, match="obj_queue"):
        PUBLIC.translate({k: v for k, v in state.items() if k != "obj_queue2"})
    with pytest.raises(UsageError, match="complete"):
        PUBLIC.translate({})
