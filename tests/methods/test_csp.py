"""CSP against the public program's numbers, and what it learned in another label space."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from czsl.clip.loading import load_clip
from czsl.compositions import CompositionSpace
from czsl.data.images import BadImage
from czsl.errors import UsageError
from czsl_cli.config import resolve
from methods.building import build
from methods.csp.config import CSPConfig
from methods.csp.model import CSP
from methods.features import ImageFeatures, Targets
from methods.presets import load_presets
from methods.reference import from_reference

ATOL, RTOL = 2e-5, 2e-4  # what an independent implementation can be expected to reach


@pytest.fixture(scope="module")
def fixture(shared, reference, tmp_path_factory):
    """The fixture's arrays, and CSP as it was initialised there."""
    arrays = reference("csp_reference")
    about = json.loads((shared / "fixtures" / "csp_reference.json").read_text())
    prefix, path = "state/clip.", tmp_path_factory.mktemp("csp") / "clip.safetensors"
    save_file({k.removeprefix(prefix): v.contiguous() for k, v in arrays.items() if k.startswith(prefix)}, path)
    none = np.zeros((0, 2), np.int64)
    space = CompositionSpace(tuple(about["attributes"]), tuple(about["objects"]), arrays["pairs/train"].numpy(), none, none)
    return arrays, about, CSP(space, load_clip(str(path)), CSPConfig(names="reference", attr_dropout=0.0))


def test_the_table_starts_from_the_words_of_clip(fixture):
    arrays, about, _ = fixture
    clip = fixture[2].clip
    method = CSP(fixture[2].space, clip, CSPConfig(names="reference"))
    torch.testing.assert_close(method.prompts.table.detach(), arrays["tensors/soft_embeddings_init"], rtol=0, atol=1e-6)
    assert about["attributes"][1] == "faux.fur"  # names that need cleaning are part of it


@pytest.fixture(scope="module")
def learned(fixture):
    arrays, _, method = fixture
    method.load_state_dict({"prompts.table": arrays["state/soft_embeddings"]})  # and nothing else is saved
    return method


@torch.no_grad()
def test_logits_of_both_worlds(fixture, learned):
    arrays = fixture[0]
    learned.eval()
    images = arrays["inputs/images"]
    torch.testing.assert_close(learned.image_features({"images": images}), arrays["tensors/image_features"], rtol=RTOL, atol=ATOL)
    for world, expected in (("train", "logits_pair"), ("open", "logits_open")):
        scores = learned.score_images(images, arrays[f"pairs/{world}"])
        torch.testing.assert_close(scores, arrays[f"tensors/{expected}"], rtol=RTOL, atol=ATOL)


def test_loss_and_gradient(fixture, learned):
    arrays, about, _ = fixture
    learned.train()
    learned.zero_grad()
    batch = {k: arrays[f"inputs/{k}"] for k in ("attr", "obj", "pair")} | {"features": arrays["tensors/image_features"]}
    losses = learned.training_step(batch)
    (loss,) = losses.values()
    assert loss.item() == pytest.approx(about["scalars"]["loss"], rel=1e-5)
    loss.backward()
    torch.testing.assert_close(learned.prompts.table.grad, arrays["tensors/grad.soft_embeddings"], rtol=RTOL, atol=ATOL)
    assert {n for n, p in learned.named_parameters() if p.requires_grad} == {"prompts.table"}
    assert all(p.grad is None for p in learned.clip.parameters())


# -- without the fixture -------------------------------------------------------------------------------------------
@pytest.fixture
def method(small_space, small_clip):
    method = CSP(small_space, small_clip, CSPConfig())
    with torch.no_grad():
        method.prompts.table.copy_(torch.randn(11, 64, generator=torch.Generator().manual_seed(3)))
    return method.eval()


@torch.no_grad()
def test_scores_are_scaled_cosines_of_prompts_with_the_learned_words(method, small_clip):
    """Written out for one pair: the words' embeddings between those of "a photo of" and the end token."""
    text, table = small_clip.text, method.prompts.table
    ids = torch.tensor([text.start_id, *text.tokenizer.encode("a photo of"), 0, 0, text.end_id])
    x = text.embed_tokens(ids)[None].clone()
    x[0, 4], x[0, 5] = table[2], table[6 + 3]
    feature = torch.nn.functional.normalize(text.encode_embeddings(x, torch.tensor([6])), dim=-1)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.normalize(small_clip.visual(small_clip.normalise(images)), dim=-1)
    expected = small_clip.logit_scale * image @ feature.T
    scores = method.score_images(images, torch.tensor([[2, 3], [0, 0]]))
    torch.testing.assert_close(scores[:, :1], expected, rtol=1e-5, atol=1e-5)
    assert method.branch_logits(images, torch.tensor([[2, 3]]))[0].shape == (4, 1)
    assert len(method.branch_logits(images, torch.tensor([[2, 3]]))) == 1  # CSP has no branches


def test_the_loss_is_the_cross_entropy_over_training_pairs(method):
    text = method.encode_compositions(torch.from_numpy(method.space.train_pairs.copy()))
    images = ImageFeatures(torch.nn.functional.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)), dim=-1))
    target = torch.tensor([0, 13, 5])
    loss = method.losses(images, text, Targets(target, target, target))["pair"]
    logits = (method.clip.logit_scale * images.pair @ text.pair.T).double()
    by_hand = (torch.logsumexp(logits, 1) - logits[torch.arange(3), target]).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_one_mask_of_words_a_forward(small_space, small_clip):
    """Dropout falls on the table, once: prompts that share a word share its mask."""
    method = CSP(small_space, small_clip, CSPConfig(attr_dropout=0.5)).train()
    torch.manual_seed(0)
    words = method.prompts.words()
    kept = words != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(words[kept], 2 * method.prompts.table[kept])
    x, _ = method.prompts.pairs(words, torch.tensor([[0, 0], [0, 1]])).flat()
    assert torch.equal(x[0, 4], x[1, 4])
    assert torch.equal(method.eval().prompts.words(), method.prompts.table)


def test_what_was_learned_follows_its_name_into_another_space(method, small_clip):
    """`wet` moves to another row, `Faux.Leather` is spelt otherwise, `blue` and `horse` are new."""
    attributes, objects = ("blue", "faux_leather", "wet"), ("horse", "Dog")
    other_space = CompositionSpace(attributes, objects, np.array([[0, 0], [2, 1]]), np.zeros((0, 2)), np.zeros((0, 2)))
    other = method.for_space(other_space)
    new, old = other.prompts.table.detach(), method.prompts.table.detach()
    assert torch.equal(new[2], old[0])  # wet
    assert torch.equal(new[1], old[2])  # faux leather
    assert torch.equal(new[4], old[6])  # dog
    torch.testing.assert_close(new[[0, 3]], small_clip.text.name_embeddings(["blue", "horse"]), rtol=0, atol=0)
    assert not other.training
    assert other.space is other_space
    assert torch.equal(method.prompts.table.detach(), old)  # and the method itself is unchanged
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with torch.no_grad():
        here, there = method.score_images(images, torch.tensor([[0, 0]])), other.score_images(images, torch.tensor([[2, 1]]))
    torch.testing.assert_close(here, there)


def test_fields_are_checked(small_space, small_clip):
    with pytest.raises(UsageError, match=r"no field 'attr_dropuot'(.|\n)*'attr_dropout'"):
        build("csp", small_space, small_clip, {"attr_dropuot": 0.1})
    with pytest.raises(UsageError, match="'refrence'"):
        build("csp", small_space, small_clip, {"names": "refrence"})
    assert build("CSP", small_space, small_clip, {"attr_dropout": 0.1}).config == CSPConfig(attr_dropout=0.1)


def test_predict_takes_images_and_files_and_decodes_under_the_limits(method, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    method.train()
    given, from_path, from_text = method.predict([image, tmp_path / "a.png", str(tmp_path / "a.png")], k=3)
    # Rows of a batch may differ in their last digits when several threads share a matrix product.
    for other in (from_path, from_text):
        for one, same in zip(given["predictions"], other["predictions"], strict=True):
            assert (one["attr"], one["obj"]) == (same["attr"], same["obj"])
            assert one["score"] == pytest.approx(same["score"], rel=1e-5)
    assert len(given["predictions"]) == 3
    assert method.predict([]) == []
    (tmp_path / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(BadImage, match="not an image"):  # Pillow alone would start Ghostscript
        method.predict([tmp_path / "page.eps"])
    assert method.training


# -- the base model of TOMCAT ----------------------------------------------------------------------------------------
BASE = {"context": True, "adapter_dim": 8, "adapter_dropout": 0.0, "attr_dropout": 0.0}


@pytest.fixture
def base(small_space, small_clip):
    """CSP with learned context and adapters, moved off its start."""
    method = build("csp", small_space, small_clip, BASE)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return method.eval()


@torch.no_grad()
def test_the_base_model_starts_as_csp(method, small_space, small_clip):
    pairs, images = torch.tensor([[2, 3], [0, 0]]), torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    plain, fresh = build("csp", small_space, small_clip, {}).eval(), build("csp", small_space, small_clip, BASE).eval()
    torch.testing.assert_close(fresh.score_images(images, pairs), plain.score_images(images, pairs), rtol=1e-5, atol=1e-5)
    assert {n for n, _ in plain.named_parameters()} == {"prompts.table"}
    assert plain.frozen_images
    assert not fresh.frozen_images


@torch.no_grad()
def test_context_and_adapters_enter_the_scores(base, small_clip):
    """Written out for one pair: learned words all the way, and the adapted tower."""
    text, table = small_clip.text, base.prompts.table
    ids = torch.tensor([text.start_id, 0, 0, 0, 0, 0, text.end_id])
    x = text.embed_tokens(ids)[None].clone()
    x[0, 1:4], x[0, 4], x[0, 5] = base.prompts.context["pair"], table[2], table[6 + 3]
    feature = torch.nn.functional.normalize(text.encode_embeddings(x, torch.tensor([6])), dim=-1)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    adapted = small_clip.visual(small_clip.normalise(images), adapters=base.adapters)
    assert not torch.allclose(adapted, small_clip.visual(small_clip.normalise(images)), atol=1e-3)
    expected = small_clip.logit_scale * torch.nn.functional.normalize(adapted, dim=-1) @ feature.T
    torch.testing.assert_close(base.score_images(images, torch.tensor([[2, 3], [0, 0]]))[:, :1], expected, rtol=1e-5, atol=1e-5)


def test_everything_of_the_base_model_learns(base):
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = {"attr": torch.zeros(4, dtype=torch.int64), "obj": torch.zeros(4, dtype=torch.int64), "pair": torch.arange(4)}
    base.train()
    sum(base.training_step({"images": images, **labels}).values()).backward()
    assert {n for n, p in base.named_parameters() if p.grad is None or not p.grad.any()} == set()


@torch.no_grad()
def test_public_checkpoints_of_the_base_model(base):
    """Under the names of TOMCAT's program, with the towers it saves along."""
    renamed = {"prompts.table": "soft_a_and_o_embedding", "prompts.context.pair": "comp_ctx_vectors"}
    state = {renamed.get(k, k.replace("adapters.", "additional_visual_params.")): v for k, v in base.state_dict().items()}
    state |= {"text_encoder.ln_final.weight": torch.ones(3)}
    space = base.space
    read = from_reference("csp", state, space.attributes, space.objects, {"adapter_dropout": 0.0}, base.clip)
    assert (read.config.context, read.config.adapter_dim, read.config.adapter_dropout) == (True, 8, 0.0)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(read.score_images(images, torch.tensor([[2, 3]])), base.score_images(images, torch.tensor([[2, 3]])))
    with pytest.raises(UsageError, match="adapter_dim"):
        from_reference("csp", state, space.attributes, space.objects, {"adapter_dim": 64}, base.clip)
    del state["comp_ctx_vectors"]
    fixed = from_reference("csp", state, space.attributes, space.objects, None, base.clip)
    assert not fixed.config.context
    with pytest.raises(UsageError, match="unknown tensors"):
        from_reference("csp", {**state, "cmt.0": torch.ones(1)}, space.attributes, space.objects, None, base.clip)


def test_presets_of_the_base_model():
    found = load_presets("csp")
    recipes = {name for name in found["recipes"] if name.startswith("tomcat-")}
    assert recipes == {"tomcat-mit-states", "tomcat-ut-zappos", "tomcat-cgqa", "tomcat-clothing16k"}
    for recipe in recipes:
        config = resolve({"method": "csp", "data": "mine", "preset": "tomcat-base", "recipe": recipe})
        assert (config.model["context"], config.model["adapter_dim"], config.precision) == (True, 64, "bfloat16")
        assert (config.lr_step, config.lr_gamma, config.lr) == (5, 0.5, found["recipes"][recipe]["lr"])
