"""CAILA: checkpoints in their published form against plain arithmetic, and what is its own."""

import copy

import numpy as np
import pytest
import torch
from caila_states import BASE, LARGE, SMALL, Plain, random_state
from PIL import Image
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from czsl.clip.loading import load_clip
from czsl.data.toy import dataset as toy
from czsl.errors import UsageError
from methods import from_reference
from methods.building import build
from methods.caila.model import CAILA, released_name
from methods.caila.reference import ADAPTER, PUBLIC

ATTRIBUTES, OBJECTS = ("Faux.Fur", "wet", "old"), ("Boots.Ankle", "dog")
PAIRS = torch.tensor([(a, o) for a in range(3) for o in range(2)])
SPELLED = ["fake fur", "wet", "old"], ["ankle boots", "dog"]


@pytest.fixture(scope="module", params=[True, False], ids=["both towers", "vision only"])
def imported(request):
    state = random_state(SMALL, text_adapters=request.param)
    return from_reference("caila", state, ATTRIBUTES, OBJECTS, {"img_dropout": 0.1}), Plain(state)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_settings_come_from_the_tensors(imported):
    method, plain = imported
    c = method.config
    assert (c.reduction, c.fusion_start, c.image_dropout, c.names, c.crop) == (4, 2, 0.1, "reference", "reference")
    assert c.text_adapters is any("text_model" in k and "adapter" in k for k in plain.state)
    assert method.attribute_scale.item() == pytest.approx(3.9)


@torch.no_grad()
def test_one_layer_of_each_concept_is_plain_arithmetic(imported):
    method, plain = imported
    x = torch.randn(1, 9, 128, generator=torch.Generator().manual_seed(2))
    for i, mode, concept in ((0, "attr", "attribute"), (1, "obj", "object"), (3, "mixture", "mixture")):
        got = method.vision.layer(method.clip.visual.blocks[i], i, concept, x, method.vision.for_pass(concept), False)[0]
        torch.testing.assert_close(got, plain.layer("vision", i, mode, x[0]), atol=1e-5, rtol=1e-5)
    if method.text is not None:
        x = x[..., :64]
        got = method.text.layer(method.clip.text.blocks[2], 2, "pair", x, method.text.for_pass("pair"), True)[0]
        torch.testing.assert_close(got, plain.layer("text", 2, "pair", x[0]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_three_streams_of_an_image_are_plain_arithmetic(imported, images):
    method, plain = imported
    got = method.image_features({"images": images})
    want = torch.stack([plain.image(image) for image in images])
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    assert (F.cosine_similarity(want[:, 0], want[:, 1]) < 0.999).all()  # the fusion changes something


@torch.no_grad()
def test_scores_are_cosines_of_the_fused_stream_with_the_mean_of_three_texts(imported, images):
    method, plain = imported
    tokenizer = method.clip.text.tokenizer

    def text(prompt, mode):
        return plain.text(torch.tensor([49406, *tokenizer.encode(prompt), 49407]), mode)

    attributes = [text(f"a photo of a {a} object", "attr") for a in SPELLED[0]]
    objects = [text(f"a photo of a {o}", "obj") for o in SPELLED[1]]
    pairs = [
        (text(f"a photo of a {SPELLED[0][a]} {SPELLED[1][o]}", "pair") + attributes[a] + objects[o]) / 3
        for a, o in PAIRS.tolist()
    ]
    fused, of_attr, of_obj = torch.stack([plain.image(image) for image in images]).unbind(1)
    scales = np.exp([4.6, 3.9, 4.1])
    for got, scale, x, texts in zip(
        method.branch_logits(images, PAIRS), scales, (fused, of_attr, of_obj), (pairs, attributes, objects), strict=True
    ):
        want = scale * F.normalize(x, dim=-1) @ F.normalize(torch.stack(texts), dim=-1).T
        torch.testing.assert_close(got, want.float(), atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(method.score_images(images, PAIRS), method.branch_logits(images, PAIRS)[0])
    torch.testing.assert_close(method.encode_pairs(PAIRS[3:]), method.encode_compositions(PAIRS).pair[3:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_adapters_at_their_start_leave_clip_as_it_is(small_space, small_clip):
    method = build("caila", small_space, small_clip, {}).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    features = method.image_features({"images": images})
    plain = small_clip.visual(small_clip.normalise(images))
    torch.testing.assert_close(features, plain[:, None].expand(-1, 3, -1), atol=1e-4, rtol=1e-4)  # twice the tokens weigh alike
    text = method.encode_compositions(torch.tensor([[0, 0]]))
    torch.testing.assert_close(text.object[0], small_clip.text.encode(["a photo of a dog"])[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [BASE, LARGE], ids=["base", "large"])
def test_names_and_shapes_at_both_published_sizes(size):
    """On torch's ``meta`` device, which knows shapes and no numbers."""
    with torch.device("meta"):
        (V, layers, patch, side), (W, depth), D = size["vision"], size["text"], size["dim"]
        from czsl.clip.compat import import_open_clip

        vision = {"image_size": side, "patch_size": patch, "width": V, "layers": layers}
        text = {"context_length": 77, "vocab_size": 49408, "width": W, "heads": W // 64, "layers": depth}
        clip = import_open_clip().CLIP(D, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    real = torch.randn
    try:
        torch.randn = lambda *shape, generator=None: torch.empty(*shape, device="meta")
        state = {k: v.to("meta") for k, v in random_state(size).items()}
    finally:
        torch.randn = real
    towers = PUBLIC.towers(state)
    assert {k: v.shape for k, v in towers.items()} == {k: v.shape for k, v in clip.state_dict().items() if k != "attn_mask"}
    moved = PUBLIC.translate(state)
    assert len(moved.tensors) == sum(bool(ADAPTER.fullmatch(k)) for k in state) + 2
    assert moved.tensors[f"vision.layers.{layers - 1}.mlp.mixture.down.weight"].shape == (V // 4, V)
    assert moved.tensors["text.layers.0.attention.pair.up.weight"].shape == (W, W // 4)
    assert PUBLIC.settings(state, {})["fusion_start"] == layers // 2
    for own, (public,) in moved.origin.items():
        assert PUBLIC.public_name(own) == public


def test_files_that_are_not_whole_are_refused():
    state = random_state(SMALL)
    for key in ("clip_model.visual_projection.weight", "clip_model.vision_model.encoder.layers.2.self_attn.k_proj.weight"):
        with pytest.raises(UsageError):
            from_reference("caila", {k: v for k, v in state.items() if k != key}, ATTRIBUTES, OBJECTS)
    concat = "clip_model.vision_model.encoder.layers.2.adapter1.mixture.latent_concat_op.weight"
    with pytest.raises(UsageError, match="latent_concat_op"):
        from_reference("caila", {**state, concat: torch.zeros(32, 96)}, ATTRIBUTES, OBJECTS)
    with pytest.raises(UsageError, match="no adapters"):
        from_reference("caila", {k: v for k, v in state.items() if "mixture" not in k}, ATTRIBUTES, OBJECTS)
    with pytest.raises(UsageError, match=r"NaN"):
        bad = "clip_model.text_model.encoder.layers.0.adapter1.pair.up_sampler.bias"
        from_reference("caila", {**state, bad: state[bad] * float("nan")}, ATTRIBUTES, OBJECTS)


def test_labels_are_spelled_as_in_the_public_program():
    assert released_name("Full.grain.leather") == "thick leather"
    assert released_name("Shoes.Sneakers.and.Athletic.Shoes") == "sneakers"
    assert released_name("black_and_white") == "black_white"
    assert released_name("Coffee_Table") == "coffee_table"
    assert released_name("Nubuck.X") == "nubuck.x"


def test_the_released_crop_is_the_middle_of_a_larger_image(small_space, small_clip):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (146, 200, 3), np.uint8))
    ours, theirs = (build("caila", small_space, small_clip, {"crop": crop}) for crop in ("clip", "reference"))
    pixels = theirs.prepare(image, "0")["images"].numpy()
    short = round(64 * 8 / 7)
    resized = image.resize((int(short * 200 / 146), short), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 64) / 2), round((short - 64) / 2)
    np.testing.assert_array_equal(pixels, np.asarray(resized.crop((left, top, left + 64, top + 64))).transpose(2, 0, 1))
    assert ours.cache_key != theirs.cache_key
    assert not np.array_equal(ours.prepare(image, "0")["images"].numpy(), pixels)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"fusion_start": 2}, "2 layers"),
        ({"fusion_start": -1}, "0"),
        ({"reduction": 0}, "1 or more"),
        ({"image_dropout": 1.0}, "between 0 and 1"),
        ({"primitive_scale": 0}, "above 0"),
    ],
)
def test_bad_settings_are_refused(small_space, small_clip, settings, what):
    with pytest.raises(UsageError, match=what):
        build("caila", small_space, small_clip, settings)


def test_recomputed_layers_give_the_same_gradients(small_space, small_clip):
    torch.manual_seed(0)
    method = build("caila", small_space, small_clip, {}).train()
    assert isinstance(method, CAILA)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    grads = []
    for recompute in (False, True):
        method.zero_grad()
        method.clip.visual.checkpointing = recompute
        try:
            method.image_features({"images": images}).square().sum().backward()
        finally:
            method.clip.visual.checkpointing = False
        grads.append([p.grad.clone() for p in method.vision.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_weights_converted_together_give_the_digits_of_autocast_that_converts_one_by_one(monkeypatch):
    clip = load_clip("tiny")
    clip.compute_in("bfloat16")
    method = build("caila", toy.space(), clip, {}).train()
    generator = torch.Generator().manual_seed(1)
    for parameter in [*method.vision.parameters(), *method.text.parameters()]:
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    images = torch.randint(0, 256, (2, 3, clip.image_size, clip.image_size), dtype=torch.uint8, generator=generator)
    found = []
    for together in (True, False):
        if not together:
            monkeypatch.setattr("methods.caila.adapters.under_autocast", lambda *weights: weights)
        method.zero_grad()
        with Casts() as casts:
            side = method.encode_compositions(torch.tensor([[0, 0], [1, 2]]))
            loss = method.image_features({"images": images}).sin().sum() + side.pair.sin().sum()
            loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in method.named_parameters() if p.grad is not None}, casts.count))
    (one, grads, together), (other, expected, apart) = found
    assert one == other
    assert grads.keys() == expected.keys()
    assert all(torch.equal(grads[name], expected[name]) for name in grads)
    assert together < apart / 2


class Casts(TorchDispatchMode):
    """Counts conversions to another format that are done one by one."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_prompts_are_tokenised_once_whatever_meets_them_first(small_clip, small_space, monkeypatch):
    """Validation, which saves nothing for a backward pass, comes before training here."""
    method = build("caila", small_space, copy.deepcopy(small_clip), {})
    pairs = torch.from_numpy(small_space.train_pairs.copy())
    with torch.inference_mode():
        expected = method.eval().encode_compositions(pairs)
    monkeypatch.setattr(method.clip.text, "tokenize", lambda prompts: pytest.fail("tokenised again"))
    found = method.encode_compositions(pairs)
    assert torch.equal(found.pair, expected.pair)
    found.pair.sum().backward()
    assert all(p.grad is not None for p in method.text.parameters() if p.requires_grad)
