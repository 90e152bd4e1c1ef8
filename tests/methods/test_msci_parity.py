"""MSCI against what the public program computed from one checkpoint on one batch."""

import copy
import json

import pytest
import torch
from msci_plain import plain_tensors
from torch.nn import functional as F

from czsl.errors import UsageError
from czsl.runs.optimizers import make_optimizer
from methods import from_reference
from methods.features import Targets
from methods.msci.reference import PUBLIC
from methods.parts import branches

TOLERANCE = {"atol": 2e-5, "rtol": 2e-4}
NAMES = ("pair", "attr", "obj")
CONCEPTS = {
    "prompt.primitive_tokens": "prompts.table",
    "prompt.ctx_pair": "prompts.context.pair",
    "gate.stage1": "gates.low",
    "gate.stage2": "gates.high",
    "agg_low.linear.weight": "aggregators.low.0.weight",
}


@pytest.fixture(scope="module")
def arrays(reference):
    return reference("msci_reference")


@pytest.fixture(scope="module")
def about(shared):
    return json.loads((shared / "fixtures/msci_reference.json").read_text())


@pytest.fixture(scope="module")
def state(arrays):
    return {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}


@pytest.fixture(scope="module")
def method(state, about):
    return from_reference("msci", state, about["attributes"], about["objects"], about["config"])


@pytest.fixture(scope="module")
def targets(arrays):
    return Targets(*(arrays[f"inputs/{k}"] for k in ("attr", "obj", "pair")))


@pytest.fixture(scope="module")
def compared(arrays):
    """Names of the fixture's tensors that some test has compared."""
    seen = set()
    yield seen
    missing = {k.removeprefix("tensors/") for k in arrays if k.startswith("tensors/")} - seen
    assert not missing or len(seen) < 20, missing  # a single test was chosen


@pytest.fixture
def close(arrays, compared):
    def check(got, name):
        torch.testing.assert_close(got.detach(), arrays[f"tensors/{name}"], **TOLERANCE, msg=lambda m: f"{name}: {m}")
        compared.add(name)

    return check


@torch.no_grad()
def test_blocks_taps_and_aggregators(method, arrays, close):
    images = arrays["inputs/images"]
    tapped = method.clip.visual.tapped(method.clip.normalise(images), (0, 1, 23), method.adapters)
    close(torch.stack([tapped[i] for i in (0, 1, 23)]), "block_features")
    assert [list(method.taps[s]) for s in ("low", "high")] == [[0, 1, 2], [21, 22, 23]]
    features = method.image_features({"images": images})
    close(features[:, 0], "x_cls")
    for part, name in zip(features[:, 1:].chunk(2, dim=1), ("low", "high"), strict=True):
        close(part, name)
    for branch in ("attribute", "object"):
        close(method.disentanglers[branch](features[:, 0]), f"x_{branch.removesuffix('ibute').removesuffix('ect')}")


@torch.no_grad()
def test_text_and_both_stages(method, arrays, close):
    encoded, text = method.encode_images({"images": arrays["inputs/images"]}), method.encode_compositions(arrays["pairs/train"])
    for t, name in zip((text.pair, text.attribute, text.object), NAMES, strict=True):
        torch.testing.assert_close(t, F.normalize(arrays[f"tensors/text_raw_{name}"], dim=-1), **TOLERANCE)
        answers = method.answers(t, encoded.memory)
        close(answers["low"], f"q1_{name}")
        close(answers["high"], f"q2_{name}")


@torch.no_grad()
def test_text_before_its_norm(method, arrays, close):
    words = method.prompts.words()
    trees = [method.prompts.pairs(words, arrays["pairs/train"]), *method.prompts.primitives(words)]
    for tree, name in zip(trees, NAMES, strict=True):
        close(method.clip.text.encode_tree(tree), f"text_raw_{name}")


@torch.no_grad()
def test_logits_of_all_branches(method, arrays, close):
    images = arrays["inputs/images"]
    for got, name in zip(method.branch_logits(images, arrays["pairs/train"]), NAMES, strict=True):
        close(got, f"logits_{name}")
    close(method.branch_logits(images, arrays["pairs/closed"])[0], "logits_pair_all")
    close(method.branch_logits(images, arrays["pairs/open"])[0], "logits_open_pair")


@torch.no_grad()
def test_fused_scores_with_and_without_repeated_primitives(method, arrays, close, monkeypatch):
    images = arrays["inputs/images"]
    close(method.score_images(images, arrays["pairs/train"]), "fused_train_pairs")
    close(method.score_images(images, arrays["pairs/closed"]), "fused_all")
    for chunk, name in ((7, "fused_open_dup3"), (5, "fused_open_dup4"), (1024, "fused_open_nodup")):
        monkeypatch.setattr(branches, "REFERENCE_CHUNK", chunk)
        close(method.score_images(images, arrays["pairs/open"]), name)
    corrected = copy.deepcopy(method)
    corrected.config.primitive_repeat = "correct"
    monkeypatch.setattr(branches, "REFERENCE_CHUNK", 7)
    close(corrected.score_images(images, arrays["pairs/open"]), "fused_open_nodup")
    products = arrays["tensors/fused_open_nodup"] - arrays["tensors/fused_open_dup3"]
    assert products.abs().max() > 0.1  # the two forms differ here


def terms_of(method, arrays, targets):
    encoded, text = method.encode_images({"images": arrays["inputs/images"]}), method.encode_compositions(arrays["pairs/train"])
    return method.losses(encoded, text, targets)


def gradients_are(method, close, prefix):
    own = dict(method.named_parameters())
    for concept, name in CONCEPTS.items():
        close(own[name].grad, f"{prefix}.{concept}")


def test_losses_gradients_and_one_step_of_both_optimizers(method, arrays, about, targets, close):
    method = copy.deepcopy(method)
    terms, scalars = terms_of(method, arrays, targets), about["scalars"]
    for name, weight in zip(NAMES, (1.0, 0.7, 0.4), strict=True):
        assert terms[name].item() / weight == pytest.approx(scalars[f"loss_{name}"], abs=2e-5, rel=2e-4)
    loss = sum(terms.values())
    assert loss.item() == pytest.approx(scalars["loss"], abs=2e-5)
    loss.backward()
    gradients_are(method, close, "grad_eval")
    for kind, name in (("Adam", "adam"), ("AdamW", "adamw")):
        stepped = copy.deepcopy(method)
        for parameter, own in zip(stepped.parameters(), method.parameters(), strict=True):
            parameter.grad = own.grad.clone()
        make_optimizer(name, stepped.parameters(), lr=1e-3, weight_decay=1e-2).step()
        found = {PUBLIC.public_name(n): p for n, p in stepped.named_parameters()}
        stage = "stage1_local_alignment.cross_attn_layers.0.cross_attn.q_proj.weight"
        for parameter in ("lamda", "soft_att_obj", stage):
            close(found[parameter], f"after_{kind}.{parameter}")


def test_training_mode_without_dropout(method, arrays, about, targets, close):
    method = copy.deepcopy(method).train()
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    encoded, text = method.encode_images({"images": arrays["inputs/images"]}), method.encode_compositions(arrays["pairs/train"])
    for got, name in zip(method.logits(encoded, text), NAMES, strict=True):
        close(got, f"train_logits_{name}")
    loss = sum(method.losses(encoded, text, targets).values())
    assert loss.item() == pytest.approx(about["scalars"]["loss_train_mode_nodropout"], abs=2e-5)
    loss.backward()
    gradients_are(method, close, "grad_train")


@torch.no_grad()
def test_the_oracle_of_the_accelerations_is_the_public_program(method, arrays):
    plain = plain_tensors(method, arrays["inputs/images"], arrays["pairs/train"])
    for branch in NAMES:
        for name in (f"q1_{branch}", f"q2_{branch}", f"logits_{branch}"):
            torch.testing.assert_close(plain[name], arrays[f"tensors/{name}"], **TOLERANCE)


@torch.no_grad()
def test_another_number_of_heads_is_another_function(method, state, about, arrays):
    """Shapes do not tell: without a stored number, weights of 4 heads would load as those of 6."""
    config = {**about["config"], "stage_1_num_heads": 6, "stage_2_num_heads": 6}
    other = from_reference("msci", state, about["attributes"], about["objects"], config)
    moved = other.branch_logits(arrays["inputs/images"], arrays["pairs/train"])[0] - arrays["tensors/logits_pair"]
    assert moved.abs().max() > 0.1
    with pytest.raises(UsageError, match=r"attention heads(.|\n)*\[4, 4\]; here: \[6, 6\]"):
        other.load_state_dict(method.state_dict())


def test_heads_are_asked_for_and_never_guessed(state, about):
    config = {k: v for k, v in about["config"].items() if k != "stage_2_num_heads"}
    with pytest.raises(UsageError, match=r"stage_2_num_heads(.|\n)*--config"):
        from_reference("msci", state, about["attributes"], about["objects"], config)
    with pytest.raises(UsageError, match="stage_2_num_heads"):
        from_reference("msci", state, about["attributes"], about["objects"], {**config, "stage_2_num_heads": 0})


@torch.no_grad()
def test_a_complete_public_file_with_dead_modules_and_aliases(state, about, arrays):
    dead = {"cmt.0.cross_attn.q_proj.weight": (96, 96), "patch_norm.weight": (96,), "fusion_module.linear.bias": (96,)}
    whole = {**state, **{k: torch.randn(shape) for k, shape in dead.items()}, "token_ids": torch.zeros(3, 8)}
    whole |= {k.replace("clip.", "text_encoder."): v for k, v in state.items() if k.startswith("clip.transformer.")}
    method = from_reference("msci", whole, about["attributes"], about["objects"], about["config"])
    scores = method.score_images(arrays["inputs/images"], arrays["pairs/open"])
    torch.testing.assert_close(scores, arrays["tensors/fused_open_nodup"], **TOLERANCE)


@torch.no_grad()
def test_a_single_map_leaves_the_public_aggregator_unread(state, about, arrays):
    thin = {k: v for k, v in state.items() if not k.startswith("concat_projection")}
    for level in ("low", "high"):
        thin |= {f"concat_projection_{level}.0.weight": torch.randn(96, 96)}
        thin |= {f"concat_projection_{level}.{k}": torch.randn(96) for k in ("0.bias", "1.weight", "1.bias")}
    config = {**about["config"], "selected_low_layers": 1, "selected_high_layers": 1}
    method = from_reference("msci", thin, about["attributes"], about["objects"], config)
    assert (list(method.taps["low"]), list(method.taps["high"])) == ([0], [23])
    features = method.image_features({"images": arrays["inputs/images"]})
    torch.testing.assert_close(features[:, 1:11], arrays["tensors/block_features"][0], **TOLERANCE)
    with pytest.raises(UsageError, match="selected_low_layers 1"):
        from_reference("msci", thin, about["attributes"], about["objects"], about["config"])
