"""CLIP in the form of Hugging Face's programs: the same features as the same weights in OpenAI's form."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from czsl.clip.backbone import Clip
from czsl.clip.compat import import_open_clip
from czsl.clip.hugging_face import preprocessing
from czsl.clip.loading import load_clip, sketch_clip
from czsl.clip.weights import find_weights
from czsl.errors import SetupError, UsageError

PROMPTS = ["a photo of wet dog", "a photo of an old chair", "x"]
INNER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
INNER["attn.out_proj"] = "self_attn.out_proj"
OUTER = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}


def as_hugging_face(state):
    """OpenAI's names in Hugging Face's: the map of the program, written the other way round."""
    out = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        if key in ("visual.proj", "text_projection"):
            out["visual_projection.weight" if key == "visual.proj" else "text_projection.weight"] = value.T.contiguous()
        elif key in OUTER:
            out[OUTER[key]] = value
        elif stem in OUTER:
            out[f"{OUTER[stem]}.{kind}"] = value
        else:
            number, inner = key.split("resblocks.")[1].split(".", 1)
            root = f"{'vision' if key.startswith('visual') else 'text'}_model.encoder.layers.{number}"
            if "in_proj" in inner:
                for name, part in zip("qkv", value.chunk(3), strict=True):
                    out[f"{root}.self_attn.{name}_proj.{inner.rpartition('_')[2]}"] = part.contiguous()
            else:
                stem, _, kind = inner.rpartition(".")
                out[f"{root}.{INNER[stem]}.{kind}"] = value
    return out


def config_of(**changes):
    tower = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256}
    return {
        "model_type": "clip",
        "projection_dim": 32,
        "vision_config": {**tower, "image_size": 64, "patch_size": 16, "hidden_act": "quick_gelu"} | changes.get("vision", {}),
        "text_config": {**tower, "hidden_act": "quick_gelu"} | changes.get("text", {}),
    }


@pytest.fixture
def folder(open_clip_model, tmp_path):
    state = {k: v.contiguous() for k, v in as_hugging_face(open_clip_model.state_dict()).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # older files hold it
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_of()))
    return tmp_path


def agree(clip, model):
    """Equal to the same weights in OpenAI's form to 1e-6, and to open_clip's own towers to the noise of another order of sums."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ids = import_open_clip().tokenizer.SimpleTokenizer()(PROMPTS)
    same = Clip(model, "OpenAI's form")
    with torch.no_grad():
        torch.testing.assert_close(clip.visual(images), same.visual(images), rtol=0, atol=1e-6)
        torch.testing.assert_close(clip.text.encode(PROMPTS), same.text.encode(PROMPTS), rtol=0, atol=1e-6)
        torch.testing.assert_close(clip.visual(images), model.encode_image(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(clip.text.encode(PROMPTS, unit=False), model.encode_text(ids), rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.logit_scale, model.logit_scale.exp())


@pytest.mark.parametrize("form", ["folder", "safetensors", "bin", "parts"])
def test_the_features_are_those_of_openais_form(folder, open_clip_model, form):
    weights = folder / "model.safetensors"
    if form in ("bin", "parts"):
        from safetensors.torch import load_file

        state = load_file(weights)
        weights.unlink()
        if form == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            names = sorted(state)
            for i, part in enumerate((names[::2], names[1::2]), 1):
                save_file({k: state[k] for k in part}, folder / f"model-{i:05d}-of-00002.safetensors")
    name = {"safetensors": weights, "bin": folder / "pytorch_model.bin"}.get(form, folder)
    clip = load_clip(str(name))
    agree(clip, open_clip_model)
    same = load_clip(str(folder)).sha256
    assert clip.sha256 == same


@pytest.mark.parametrize("resample", [{}, [2], "2", None, 7, 2, 3])
def test_only_pillows_number_of_bilinear_is_bilinear(tmp_path, resample):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": resample}))
    assert preprocessing(tmp_path)["interpolation"] == ("bilinear" if resample == 2 else "bicubic")


def test_a_split_model_needs_all_of_its_parts(folder, tmp_path, monkeypatch):
    weights = folder / "model.safetensors"
    weights.rename(folder / "model-00002-of-00003.safetensors")
    for use in (load_clip, find_weights):
        with pytest.raises(UsageError, match="holds 1 of 3 parts"):
            use(str(folder))
    (folder / "model-00002-of-00003.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UsageError, match="none of them is there"):
        find_weights(str(folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for use in (load_clip, find_weights, sketch_clip):
        with pytest.raises(UsageError, match="a folder without a model"):
            use("photos")
    for use in (load_clip, sketch_clip):
        with pytest.raises(UsageError, match=r"unknown CLIP model 'ViT-B-33'[\s\S]*ViT-B-32"):
            use("ViT-B-33")


def test_heads_activation_and_norms_are_those_of_the_config(folder, open_clip_model):
    """Each change alone changes the features, so it is read."""
    plain = load_clip(str(folder))
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for where, change in [
        ("vision", {"hidden_act": "gelu"}),
        ("vision", {"num_attention_heads": 2}),
        ("text", {"hidden_act": "gelu"}),
        ("text", {"num_attention_heads": 4}),
        ("vision", {"layer_norm_eps": 0.1}),
        ("text", {"layer_norm_eps": 0.1}),
    ]:
        (folder / "config.json").write_text(json.dumps(config_of(**{where: change})))
        other = load_clip(str(folder))
        with torch.no_grad():
            seen = not torch.allclose(plain.visual(images), other.visual(images), atol=1e-6)
            read = not torch.allclose(plain.text.encode(PROMPTS), other.text.encode(PROMPTS), atol=1e-6)
        assert (seen, read) == (where == "vision", where == "text"), change


def test_the_weights_of_a_named_model_may_have_this_form(folder, open_clip_model, tmp_path_factory):
    names = tmp_path_factory.mktemp("configs")
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {"width": 64, "heads": 1, "layers": 2}}
    (names / "ViT-Hugging-16-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    import_open_clip().add_model_config(names)
    agree(load_clip("ViT-Hugging-16-quickgelu", str(folder)), open_clip_model)
    (folder / "config.json").unlink()
    agree(load_clip("ViT-Hugging-16-quickgelu", str(folder / "model.safetensors")), open_clip_model)
    with pytest.raises(UsageError, match=r"without its config\.json"):
        load_clip(str(folder / "model.safetensors"))


def test_the_hubs_cache_serves_without_a_network(folder, open_clip_model, tmp_path, monkeypatch):
    """The layout of the hub's own cache, and HF_HUB_OFFLINE."""
    cache = tmp_path / "hub" / "models--lab--small-clip"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_bytes((folder / name).read_bytes())
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    agree(load_clip("hf-hub:lab/small-clip"), open_clip_model)
    with pytest.raises(SetupError, match="is not in the local cache"):
        load_clip("hf-hub:lab/other")
    with pytest.raises(UsageError, match="not a name on the Hugging Face hub"):
        load_clip("hf-hub:../../etc")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", "cannot read"),
        (b"[]", "is not a model configuration"),
        (json.dumps({**config_of(), "model_type": "siglip"}).encode(), "'siglip'"),
        (json.dumps(config_of(text={"hidden_act": "swish"})).encode(), "hidden_act is 'swish'"),
        (json.dumps(config_of(vision={"num_attention_heads": 3})).encode(), "3 heads do not divide"),
        (json.dumps(config_of(vision={"hidden_size": -1})).encode(), "hidden_size is '-1'"),
        (json.dumps(config_of(vision={"patch_size": [16]})).encode(), "patch_size"),
        (json.dumps(config_of(text={"hidden_size": 128})).encode(), "does not fit the model"),
        (json.dumps({"model_type": "clip", "vision_config": 5}).encode(), "vision_config is missing"),
    ],
)
def test_a_configuration_that_is_none_is_refused(folder, content, named):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=named):
        load_clip(str(folder))


def test_what_hugging_faces_own_program_computes(shared):
    """Features that Hugging Face's ``CLIPModel`` gave, computed outside of this project."""
    case = shared / "cases" / "weights-hugging-face"
    if not case.is_dir():
        pytest.skip("the case files (../shared/cases) are not beside the repository")
    with np.load(case / "expected.npz", allow_pickle=False) as arrays:
        known = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    for name in (case, case / "model.safetensors"):
        clip = load_clip(str(name))
        with torch.no_grad():
            found = clip.visual(known["pixels"])
            ids = known["ids"]
            text = clip.text.encode_embeddings(clip.text.embed_tokens(ids), ids.argmax(1))
        torch.testing.assert_close(found, known["image_features"], rtol=0, atol=1e-5)
        torch.testing.assert_close(text, known["text_features"], rtol=0, atol=1e-5)
