"""Models of every family behind the interface of features: what open_clip itself computes, with its own pre-processing."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from czsl.clip.backbone import Clip
from czsl.clip.compat import import_open_clip
from czsl.clip.features import FeatureClip
from czsl.clip.loading import load_clip, sketch_clip
from czsl.data.pixels import Pixels
from czsl.errors import SetupError, UsageError

PROMPTS = ["a photo of wet dog", "an old chair", "x"]
WORDS = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
SIGMOID = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}


def timm(name, side=64, **more):
    return {"timm_model_name": name, "timm_model_pretrained": False, "image_size": side, **more}


# Small members of each family, as open_clip's own configurations are written.
FAMILIES = {
    "siglip": {
        "custom_text": True, "init_logit_bias": -10,
        "vision_cfg": timm("vit_tiny_patch16_224", 224, timm_pool="map", timm_proj="none"), "text_cfg": {**WORDS, **SIGMOID},
    },
    "eva": {"custom_text": True, "vision_cfg": timm("eva02_tiny_patch14_224", 224, timm_pool="token"), "text_cfg": WORDS},
    "convnext": {"vision_cfg": timm("convnext_atto", timm_pool="", timm_proj="linear"), "text_cfg": WORDS},
    "resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 32}, "text_cfg": WORDS},
    "mobileclip": {
        "custom_text": True, "vision_cfg": timm("fastvit_t8", timm_pool="avg"), "text_cfg": {**WORDS, "no_causal_mask": True},
    },
}  # fmt: skip


# open_clip takes every name with "siglip" for one with a tokenizer of transformers.
ALIAS = {"siglip": "sigmoid"}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """The families under names in open_clip's list."""
    folder = tmp_path_factory.mktemp("configs")
    for family, config in FAMILIES.items():
        dim = 192 if family in ("siglip", "eva") else 32
        (folder / f"czsl-{ALIAS.get(family, family)}.json").write_text(json.dumps({"embed_dim": dim, **config}))
    import_open_clip().add_model_config(folder)
    return {family: f"czsl-{ALIAS.get(family, family)}" for family in FAMILIES}


def of(model, ids):
    with torch.no_grad():
        return model.encode_text(ids, normalize=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_open_clips_own(named, family):
    clip = load_clip(named[family], "random", features=True)
    assert isinstance(clip, FeatureClip)
    model, ids = clip.model, import_open_clip().get_tokenizer(named[family])(PROMPTS)
    images = torch.randn(2, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(clip.visual(images), model.encode_image(images), rtol=0, atol=0)
    torch.testing.assert_close(clip.text.encode(PROMPTS), of(model, ids), rtol=0, atol=1e-6)
    assert clip.text.encode([]).shape == (0, clip.dim)
    assert clip.dim == clip.text.encode(PROMPTS).shape[1] == clip.visual(images).shape[1]
    assert not any(p.requires_grad for p in clip.parameters())
    assert load_clip(named[family], "random", features=True).sha256 == clip.sha256
    logits = clip.biased(clip.logit_scale * of(model, ids) @ of(model, ids).T)
    bias = 0 if model.logit_bias is None else model.logit_bias
    torch.testing.assert_close(logits, model.logit_scale.exp() * of(model, ids) @ of(model, ids).T + bias, rtol=0, atol=1e-4)
    assert (model.logit_bias is not None) == (family == "siglip")


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_that_cannot_be_opened_are_refused_where_they_must_be(named, family):
    with pytest.raises(UsageError, match="is not a CLIP with"):
        load_clip(named[family], "random")
    with pytest.raises(UsageError, match="is not a CLIP with"):
        sketch_clip(named[family], "random")
    assert sketch_clip(named[family], "random", features=True).device.type == "meta"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["file", "training checkpoint", "folder", "other text names"])
def test_weights_from_files_and_folders(named, family, form, tmp_path):
    clip = load_clip(named[family], "random", features=True)
    with torch.no_grad():
        clip.model.logit_scale.fill_(1.5)
    state = {k: v.contiguous().clone() for k, v in clip.model.state_dict().items()}
    name, weights = named[family], str(tmp_path / "w.pt")
    if form == "file":
        torch.save(state, weights)
    elif form == "training checkpoint":  # of open_clip's program
        extra = {"epoch": 3, "name": "run", "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}}
        torch.save({**extra, "state_dict": {f"module.{k}": v for k, v in state.items()}}, weights)
    elif form == "other text names":  # custom text towers have a prefix, plain ones have not
        custom = any(k.startswith("text.") for k in state)
        heads = ("visual.", "logit_")
        moved = {k.removeprefix("text.") if custom else k if k.startswith(heads) else f"text.{k}": v for k, v in state.items()}
        torch.save(moved, weights)
    else:
        save_file(state, tmp_path / "open_clip_model.safetensors")
        config = {
            "model_cfg": {"embed_dim": clip.dim, **FAMILIES[family]},
            "preprocess_cfg": {"mean": [0.5] * 3, "resize_mode": "squash"},
        }
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        name, weights = str(tmp_path), None
    other = load_clip(name, weights, features=True)
    images = torch.randn(1, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(other.visual(images), clip.visual(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(other.text.encode(PROMPTS), clip.text.encode(PROMPTS), rtol=0, atol=1e-6)
    assert float(other.logit_scale) == pytest.approx(np.exp(1.5))
    if form == "folder":
        assert (other.pixels.resize_mode, other.mean.tolist()) == ("squash", [0.5] * 3)


def photograph(width, height):
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray((ramp + 40 * np.random.default_rng(0).random(ramp.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (48, 48), (31, 200), (20, 10)])
def test_the_image_pipeline_is_open_clips(resize_mode, interpolation, size):
    import_open_clip()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    image = photograph(*size)
    config = PreprocessCfg(48, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation, resize_mode=resize_mode, fill_color=7)
    theirs = (image_transform_v2(config, is_train=False)(image) * 255).round().byte().numpy()
    np.testing.assert_array_equal(Pixels(48, interpolation, resize_mode, 7)(image), theirs)


def test_published_models_bring_their_own_preparation():
    """By name, without weights: what open_clip publishes of them."""
    from czsl.clip.loading import preprocessing

    assert preprocessing("ViT-B-16-SigLIP", "webli") == {
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash",
    } | {k: v for k, v in preprocessing("ViT-B-16-SigLIP", "webli").items() if k == "fill_color"}  # fmt: skip
    assert preprocessing("MobileCLIP-S1")["interpolation"] == "bilinear"


def test_a_name_that_is_cut_is_told(named, small_clip):
    long = "a photo of " + "very " * 40 + "wet dog"
    for clip in (load_clip(named["resnet"], "random", features=True), load_clip(named["siglip"], "random", features=True)):
        assert clip.text.cut(["a photo of wet dog", long]) == [long]
        assert clip.text.cut([]) == []
    exact = "a photo of" + " dog" * 11  # with its two marks 16 tokens
    assert load_clip(named["eva"], "random", features=True).text.cut([exact, exact + " dog"]) == [exact + " dog"]
    assert small_clip.text.cut([long, "very " * 90]) == ["very " * 90]


def test_a_tokenizer_of_another_package_is_asked_for(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'transformers'")

    monkeypatch.setattr(import_open_clip(), "get_tokenizer", missing)
    with pytest.raises(SetupError, match="pip install transformers"):
        load_clip("ViT-B-16-SigLIP", "random", features=True)


def test_a_plain_clip_stays_one(open_clip_model, tmp_path):
    save_file({k: v.contiguous() for k, v in open_clip_model.state_dict().items()}, tmp_path / "w.safetensors")
    assert isinstance(load_clip(str(tmp_path / "w.safetensors"), features=True), Clip)
