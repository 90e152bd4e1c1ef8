"""CLIP from every source agrees with open_clip's own forward pass and with the reference programs' numbers."""

import copy
import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from czsl.clip.backbone import Clip
from czsl.clip.compat import import_open_clip
from czsl.clip.loading import load_clip
from czsl.clip.towers import OPENAI_MEAN, OPENAI_STD
from czsl.errors import UsageError
from methods.parts.adapters import BlockAdapters
from methods.parts.prompts import SoftPrompts

PROMPTS = ["a photo of wet dog", "wet", "a photo of something else altogether", ""]


@pytest.fixture(scope="module")
def weight_file(open_clip_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file({k: v.contiguous() for k, v in open_clip_model.state_dict().items()}, path)
    return path


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def agree(clip, model, images, atol=1e-5):
    """Whether the towers compute what open_clip does."""
    ids = import_open_clip().tokenizer.SimpleTokenizer()(PROMPTS, context_length=clip.text.context_length)
    with torch.no_grad():
        torch.testing.assert_close(clip.visual(images), model.encode_image(images), rtol=0, atol=atol)
        torch.testing.assert_close(clip.text.encode(PROMPTS), model.encode_text(ids, normalize=True), rtol=0, atol=atol)


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_a_file_in_openais_format_needs_no_other_word(open_clip_model, weight_file, tmp_path, images, form):
    path = weight_file
    if form == "pt":
        path = tmp_path / "openai.pt"  # OpenAI's files carry these beside the weights
        extras = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}
        torch.save({**open_clip_model.state_dict(), **extras}, path)
    clip = load_clip(str(path))
    agree(clip, open_clip_model, images)
    assert clip.architecture == {
        "dim": 32, "image_size": 64, "patch": 16, "vision_width": 64, "vision_layers": 2, "vision_heads": 1,
        "text_width": 64, "text_layers": 2, "text_heads": 1, "activation": "QuickGELU",
    }  # fmt: skip
    assert clip.logit_scale == open_clip_model.logit_scale.exp()
    assert not any(p.requires_grad for p in clip.parameters())


def spoil(**changes):
    def change(state):
        for key, value in changes.items():
            key = key.replace("__", ".")
            if value is None:
                del state[key]
            else:
                state[key] = value
        return state

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (spoil(visual__proj=None), "does not fit the model"),
        (spoil(visual__proj=torch.zeros(64, 31)), "does not fit the model"),
        (spoil(something__else=torch.zeros(1)), "does not fit the model"),
        (spoil(visual__positional_embedding=torch.zeros(18, 64)), "does not fit the model"),
        (spoil(visual__conv1__weight=None), "has no 'visual.conv1.weight'"),
        (spoil(ln_final__weight=torch.zeros(2, 2)), "is not a CLIP ViT in OpenAI's format"),
        (spoil(ln_final__weight=torch.zeros(32)), "not multiples of 64"),
        (spoil(token_embedding__weight=torch.zeros(100, 64)), "is not a CLIP with"),
    ],
)
def test_a_file_that_is_not_quite_one_is_refused(open_clip_model, tmp_path, change, named):
    path = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in change(open_clip_model.state_dict()).items()}, path)
    with pytest.raises(UsageError, match=named):
        load_clip(str(path))


@pytest.fixture(scope="module")
def model_name(open_clip_model, tmp_path_factory):
    """The small architecture under names of its own in open_clip's list."""
    folder = tmp_path_factory.mktemp("configs")
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {"width": 64, "heads": 1, "layers": 2}}
    (folder / "ViT-Czsl-16.json").write_text(json.dumps(config))
    (folder / "ViT-Czsl-16-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    import_open_clip().add_model_config(folder)
    return "ViT-Czsl-16"


@pytest.mark.parametrize("how", ["quickgelu in the name", "marks of OpenAI's archive"])
def test_the_activation_goes_with_the_weights(open_clip_model, model_name, weight_file, tmp_path, images, how):
    name, path = f"{model_name}-quickgelu", weight_file
    if how != "quickgelu in the name":
        name, path = model_name.replace("-16", "/16"), tmp_path / "w.pt"  # OpenAI's spelling of names, too
        torch.save({**open_clip_model.state_dict(), "input_resolution": torch.tensor(64)}, path)
    agree(load_clip(name, str(path)), open_clip_model, images)
    plain = load_clip(model_name, str(weight_file))
    assert plain.architecture["activation"] == "GELU"
    with pytest.raises(AssertionError):
        agree(plain, open_clip_model, images)


def test_weights_of_another_model_are_refused(model_name, tmp_path):
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="does not fit the model"):
        load_clip(model_name, str(tmp_path / "w.safetensors"))


def test_random_weights_are_the_same_on_every_worker(model_name, caplog):
    torch.manual_seed(1)
    first = load_clip(model_name, "random")
    assert torch.initial_seed() == 1
    torch.manual_seed(2)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert load_clip(model_name, "random").sha256 == first.sha256
    assert torch.rand(1) == drawn  # the caller's generator is left alone
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("name", "weights", "why"),
    [
        ("ViT-L-41", None, "ViT-L-14"),
        ("tinny", None, "tiny"),
        ("ViT-B-16", "opneai", "openai"),
        ("ViT-B-32-256", None, "datacomp_s34b_b86k"),
        ("tiny", "x.pt", "x.pt was given"),
        ("some/file.pt", "openai", "openai was given"),
    ],
)
def test_unknown_names_give_the_nearest(name, weights, why):
    with pytest.raises(UsageError) as error:
        load_clip(name, weights)
    assert why in error.value.why
    assert error.value.fix


@pytest.mark.parametrize(
    ("name", "weights"), [("RN50", None), ("ViT-L-14-CLIPA", "datacomp1b"), ("coca_ViT-B-32", "laion2b_s13b_b90k")]
)
def test_other_architectures_are_refused_before_anything_is_downloaded(name, weights, monkeypatch):
    monkeypatch.setattr("czsl.clip.loading.fetch", lambda *args: pytest.fail("downloads"))
    with pytest.raises(UsageError, match=f"{name} is not a CLIP with"):
        load_clip(name, weights)


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({"pool_type": "avg"}, {}),
        ({"attentional_pool": True, "attn_pooler_heads": 1}, {}),
        ({}, {"pool_type": "last"}),
        ({}, {"no_causal_mask": True}),
        ({}, {"proj_bias": True}),
        ({}, {"vocab_size": 100}),
    ],
)
def test_towers_that_pool_or_mask_otherwise_are_refused(vision, text):
    tower = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 16}
    words = {"context_length": 8, "width": 16, "heads": 1, "layers": 1}
    model = import_open_clip().CLIP(16, vision_cfg={**tower, **vision}, text_cfg={**words, **text})
    with pytest.raises(UsageError, match="is not a CLIP with"):
        Clip(model, "other")


def fresh(clip, **normalisation):
    copied = copy.deepcopy(clip)
    copied.__dict__.pop("sha256", None)
    for name, value in normalisation.items():
        setattr(copied, name, torch.tensor(value))
    return copied


def test_the_hash_is_that_of_the_weights_and_the_normalisation(small_clip, weight_file):
    assert len(small_clip.sha256) == 64
    assert load_clip(str(weight_file)).sha256 == small_clip.sha256  # not of the name or the file
    assert fresh(small_clip).double().sha256 == small_clip.sha256  # nor of the precision in use
    for change in ("visual", "text", "scale"):
        other = fresh(small_clip)
        weight = {"visual": other.visual.vit.proj, "text": other.text.token_embedding.weight, "scale": other.logit_scale}[change]
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-3
        assert other.sha256 != small_clip.sha256
    assert fresh(small_clip, mean=(0.5, 0.5, 0.5)).sha256 != small_clip.sha256


def test_normalise(small_clip):
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_hand = [
        [[(v / 255 - m) / s for v in c.flatten().tolist()] for c, m, s in zip(i, OPENAI_MEAN, OPENAI_STD, strict=True)]
        for i in images
    ]
    torch.testing.assert_close(small_clip.normalise(images).flatten(2), torch.tensor(by_hand), rtol=0, atol=1e-5)
    floats = torch.randn(2, 3, 4, 4)
    assert torch.equal(small_clip.normalise(floats), floats)


# -- the reference programs' numbers -------------------------------------------------------------------------------
def clip_of(arrays, tmp_path):
    """The CLIP of a fixture, by way of a file."""
    path = tmp_path / "fixture.safetensors"
    prefix = "state/clip."
    save_file({k.removeprefix(prefix): v.contiguous() for k, v in arrays.items() if k.startswith(prefix)}, path)
    return load_clip(str(path))


@torch.no_grad()
def test_image_features_of_csp(reference, tmp_path):
    arrays = reference("csp_reference")
    clip = clip_of(arrays, tmp_path)
    torch.testing.assert_close(clip.visual(arrays["inputs/images"]), arrays["tensors/image_features"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def cluspro(reference, tmp_path_factory):
    arrays = reference("cluspro_reference")
    return arrays, reference("cluspro_parts"), clip_of(arrays, tmp_path_factory.mktemp("cluspro"))


@torch.no_grad()
def test_image_features_of_cluspro_with_its_adapters(cluspro):
    arrays, parts, clip = cluspro
    adapters = BlockAdapters(len(clip.visual.blocks), clip.visual.width, rank=8, dropout=0.0)
    prefix = "state/additional_visual_params."
    adapters.load_state_dict({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
    images = arrays["inputs/images"]
    torch.testing.assert_close(clip.visual(images, adapters), parts["image_features"], rtol=0, atol=1e-4)
    patches = clip.visual(images[:2], adapters, tokens=True)
    torch.testing.assert_close(patches, parts["patch_features"], rtol=0, atol=1e-4)
    without = clip.visual(images[:2])
    assert (without - parts["image_features"][:2]).abs().max() > 1e-3  # the adapters matter


@torch.no_grad()
def test_text_features_of_cluspro(cluspro, shared):
    arrays, parts, clip = cluspro
    names = json.loads((shared / "fixtures" / "cluspro_reference.json").read_text())
    prompts = SoftPrompts(clip.text, names["attributes"], names["objects"], dropout=0.0, learn_context=True)
    torch.testing.assert_close(prompts.table, parts["soft_att_obj_init"], rtol=0, atol=1e-6)
    prompts.table.copy_(arrays["state/soft_att_obj"])
    for branch, name in (("pair", "comp"), ("attribute", "attr"), ("object", "obj")):
        prompts.context[branch].copy_(arrays[f"state/{name}_ctx_vectors"])

    def encode(x_PTW, end_P):
        return torch.nn.functional.normalize(clip.text.encode_embeddings(x_PTW, end_P), dim=-1)

    for split, expected in (("train", "text_pair"), ("open", "text_pair_open")):
        found = encode(*prompts.pairs(prompts.words(), arrays[f"pairs/{split}"]).flat())
        torch.testing.assert_close(found, parts[expected], rtol=0, atol=1e-5)
    attribute, obj = (encode(*p.flat()) for p in prompts.primitives(prompts.words()))
    torch.testing.assert_close(attribute, parts["text_attr"], rtol=0, atol=1e-5)
    torch.testing.assert_close(obj, parts["text_obj"], rtol=0, atol=1e-5)


def test_token_ids_of_cluspro(cluspro, shared):
    _, parts, clip = cluspro
    about = json.loads((shared / "fixtures" / "cluspro_reference.json").read_text())
    for prompts, expected in (
        (about["config"]["prompt_template"], parts["token_ids"]),
        (about["attributes"] + about["objects"], parts["name_token_ids"]),
    ):
        clip.text.context_length, kept = 77, clip.text.context_length  # the fixture's towers keep 8 positions
        ids, end = clip.text.tokenize(prompts)
        clip.text.context_length = kept
        assert torch.equal(ids, expected[:, : ids.shape[1]].long())
        assert not expected[:, ids.shape[1] :].any()
        assert torch.equal(end, expected.argmax(dim=1))
