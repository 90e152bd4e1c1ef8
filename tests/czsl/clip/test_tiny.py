"""The built-in CLIP: small, aligned on drawn pictures, and without knowledge of the toy data's unseen pairs."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from czsl.clip.compat import import_open_clip
from czsl.clip.loading import load_clip
from czsl.data.toy import dataset as toy

ROOT = Path(__file__).parents[3]
TINY = ROOT / "czsl" / "clip" / "tiny"


@pytest.fixture(scope="module")
def pretrain(request):
    """The pre-training script as a module."""
    path = ROOT / "examples" / "pretrain_tiny.py"
    if not path.is_file():
        pytest.skip("the examples are not part of an installation")
    spec = importlib.util.spec_from_file_location("pretrain_tiny", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    request.addfinalizer(lambda: sys.modules.pop(spec.name))
    spec.loader.exec_module(module)
    return module


def unseen_pairs() -> set[tuple[int, int]]:
    space = toy.space(0)
    held_out = np.concatenate([space.val_pairs, space.test_pairs])
    return {(int(a), int(o)) for a, o in held_out[~space.seen_mask(held_out)]}


def test_the_file_is_small_and_half_precision():
    from safetensors.torch import load_file

    assert (TINY / "weights.safetensors").stat().st_size < 6_000_000
    state = load_file(TINY / "weights.safetensors")
    ids = state["token_embedding.ids"]
    assert len(ids) == len(state["token_embedding.rows"])
    assert (ids.diff() > 0).all()
    assert ids.max() == 49407  # the end token, which the text tower pools at
    assert all(torch.isfinite(v.float()).all() for v in state.values())


def test_the_file_holds_the_architecture_of_its_config():
    from safetensors.torch import load_file

    config = json.loads((TINY / "config.json").read_text())
    config.pop("image_mean"), config.pop("image_std")
    model = import_open_clip().CLIP(**config)
    state = load_file(TINY / "weights.safetensors")
    expected = {k: v.shape for k, v in model.state_dict().items() if k != "token_embedding.weight"}
    assert {k: v.shape for k, v in state.items() if not k.startswith("token_embedding.")} == expected


def test_every_word_of_the_toy_data_was_trained():
    from safetensors.torch import load_file

    ids = set(load_file(TINY / "weights.safetensors")["token_embedding.ids"].tolist())
    tokenizer = import_open_clip().tokenizer.SimpleTokenizer()
    for word in (*toy.ATTRIBUTES, *toy.OBJECTS, "a photo of"):
        assert set(tokenizer.encode(word)) <= ids, word


def test_pretraining_holds_no_unseen_pair(pretrain):
    """Neither in the scenes (whatever the captions say of them) nor, by words, in the captions."""
    unseen = unseen_pairs()
    assert len(unseen) == 36
    pairs = pretrain.allowed_pairs()
    assert not unseen & {(int(a), int(o)) for a, o in pairs}
    rng = np.random.Generator(np.random.PCG64(3))
    texts = []
    for _ in range(4000):
        content = pretrain.scene(rng, pairs)
        assert not unseen & set(content)
        texts.append(f" {pretrain.caption(content, rng).text.rstrip('.')} ")
    assert "a photo of" in " ".join(texts)
    for a, o in unseen:
        attribute, obj = toy.ATTRIBUTES[a], toy.OBJECTS[o]
        for form in (f" {attribute} {obj} ", f" {obj} is {attribute} ", f" {obj} that is {attribute} "):
            assert not any(form in text for text in texts)


def test_matches_knows_which_captions_are_true(pretrain):
    scenes = [[(0, 1)], [(0, 1), (2, 3)], [(-1, 3)]]
    says = [((0, 1),), ((-1, 3),), ((0, 1), (2, 3)), ((2, -1),), ((0, 3),)]
    captions = [pretrain.Caption("", s) for s in says]
    expected = [[1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [0, 1, 0, 0, 0]]
    assert pretrain.matches(captions, scenes).astype(int).tolist() == expected


def test_a_scene_is_a_function_of_seed_and_number(pretrain):
    images, scenes = pretrain.draw_block((0, 3, 6))
    later, later_scenes = pretrain.draw_block((0, 5, 6))
    assert scenes[2:] == later_scenes
    assert np.array_equal(images[2:], later)


def test_zero_shot_finds_compositions_it_never_met():
    """A fixed part of the toy's test split against the 104 pairs of its closed world; chance is below 1 %."""
    space = toy.space(0)
    pairs = space.closed_pairs[space.split_mask(space.closed_pairs, "test")]
    clip = load_clip("tiny")
    texts = [f"a photo of {toy.ATTRIBUTES[a]} {toy.OBJECTS[o]}" for a, o in pairs]
    pictures, truth = [], []
    for _, attribute, obj, split, content in toy.samples(scale=0.15):
        if split == "test":
            pictures.append(np.asarray(Image.open(io.BytesIO(content))))
            truth.append((toy.ATTRIBUTES.index(attribute), toy.OBJECTS.index(obj)))
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    with torch.no_grad():
        image_BD = clip.visual(clip.normalise(images))
        text_PD = clip.text.encode(texts)
    predicted = pairs[(image_BD @ text_PD.T).argmax(1).numpy()]
    right = (predicted == np.array(truth)).all(1)
    seen = space.seen_mask(np.array(truth))
    assert right.mean() >= 0.25
    assert right[~seen].mean() >= 0.05
