"""Methods from public checkpoints: the fixtures' own, and states written under public names from methods of ours."""

import json

import numpy as np
import pytest
import torch
from public_states import public_state

from czsl.clip.backbone import Clip
from czsl.errors import UsageError
from methods import from_reference
from methods.building import build
from methods.reference import PUBLIC, public_names

FIXTURES = ("csp", "troika", "cluspro", "msci")
SETTINGS = {
    "csp": {},
    "troika": {"adapter_dim": 4, "traction_layers": 3},
    "clusPro": {"adapter_dim": 4, "num_prototypes": 3, "heads": 2, "fusion": "logit"},
    "msci": {"adapter_dim": 4, "low_blocks": 2, "high_blocks": 2, "stage2_layers": 2, "stage1_heads": 2, "stage2_heads": 4},
    "caila": {"crop": "reference"},
}
HEADS = {"stage_1_num_heads": 2, "stage_2_num_heads": 4}  # no tensor tells them
PRESET = {"names": "reference"}


@pytest.fixture(params=sorted(PUBLIC))
def moved(request, small_space, small_clip):
    """A method none of whose tensors is at its initial value, and its public state."""
    torch.manual_seed(0)
    extra = {"patch_norm": "cumulative"} if request.param == "troika" else {}
    method = build(request.param, small_space, small_clip, {**PRESET, **SETTINGS[request.param], **extra}).eval()
    with torch.no_grad():
        for value in method.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand_like(value))
    return method, public_state(method)


def again(moved, state=None, **changes):
    method, own = moved
    given = {"attributes": method.space.attributes, "objects": method.space.objects, "clip": method.clip, "config": {}, **changes}
    given["config"] = {**given["config"], **(HEADS if method.name == "msci" else {})}
    return from_reference(method.name, own if state is None else state, **given)


@pytest.mark.parametrize("name", FIXTURES)
@torch.no_grad()
def test_fixtures_are_read_under_their_own_names_and_configuration(shared, reference, name):
    arrays = reference(f"{name}_reference")
    about = json.loads((shared / f"fixtures/{name}_reference.json").read_text())
    state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
    method = from_reference(name, state, about["attributes"], about["objects"], about["config"])
    assert not method.training
    prefix, fused = ("tensors/eval_", "fused_open") if name == "cluspro" else ("tensors/", "fused_open")
    fused = {"csp": "logits_open", "msci": "fused_open_nodup"}.get(name, fused)
    logits = method.branch_logits(arrays["inputs/images"], arrays["pairs/train"])
    assert len(logits) == (1 if name == "csp" else 3)
    for got, branch in zip(logits, ("pair", "attr", "obj"), strict=False):
        torch.testing.assert_close(got, arrays[f"{prefix}logits_{branch}"], atol=1e-4, rtol=0)
    scores = method.score_images(arrays["inputs/images"], arrays["pairs/open"])
    torch.testing.assert_close(scores, arrays[f"{prefix}{fused}"], atol=1e-5, rtol=1e-5 if name == "msci" else 0)
    if name != "csp":
        weights = [getattr(method.config, f"{k}_loss_weight") for k in ("pair", "attr", "obj")]
        assert weights == [1.0, 0.7, 0.4]  # from the configuration


@torch.no_grad()
def test_there_and_back_gives_the_same_scores(moved):
    method = moved[0]
    back = again(moved)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pairs = torch.from_numpy(method.space.open_pairs)
    torch.testing.assert_close(back.score_images(images, pairs), method.score_images(images, pairs), rtol=1e-6, atol=1e-5)
    for key, value in method.state_dict().items():
        if key not in public_names(method.name).absent and key != "prototypes.seeded":
            torch.testing.assert_close(back.state_dict()[key], value, rtol=0, atol=0)


def test_a_key_that_is_missing_unexpected_or_misshapen_is_named(moved):
    state = moved[1]
    for key in state:
        with pytest.raises(UsageError):
            again(moved, {k: v for k, v in state.items() if k != key})
    key = {"csp": "soft_embeddings", "troika": "cmt.2.mlp.3.bias", "clusPro": "attr1.fc1.bias", "msci": "lamda_2"}
    key = {**key, "caila": public_names("caila").public_name("vision.layers.1.mlp.mixture.up.bias")}[moved[0].name]
    with pytest.raises(UsageError, match=key):
        again(moved, {k: v for k, v in state.items() if k != key})
    with pytest.raises(UsageError, match=key):
        again(moved, {**state, key: state[key][..., :-1]})
    with pytest.raises(UsageError, match=r"stray\.weight"):
        again(moved, {**state, "stray.weight": torch.zeros(1)})
    with pytest.raises(UsageError, match=r"has no tensor|not complete|has no adapters"):
        again(moved, {})


def test_a_key_of_another_size_of_the_same_method_is_named(moved):
    method, state = moved
    if method.name == "csp":
        pytest.skip("one tensor")
    if method.name == "caila":
        deeper = public_names("caila").public_name("vision.layers.9.mlp.attribute.up.bias")
        with pytest.raises(UsageError, match=r"layers\.9"):
            again(moved, {**state, deeper: torch.zeros(64)})
        return
    extra = {"additional_visual_params.9.down_proj.weight": torch.zeros(4, 64)}
    with pytest.raises(UsageError, match=r"additional_visual_params\.9"):
        again(moved, {**state, **extra})


def test_nan_is_refused(moved):
    state = {k: v.clone() for k, v in moved[1].items()}
    key = next(k for k, v in state.items() if v.is_floating_point())
    state[key].view(-1)[0] = float("nan")
    with pytest.raises(UsageError, match=r"NaN"):
        again(moved, state)


def test_labels_and_clip_must_be_those_of_the_checkpoint(moved):
    method = moved[0]
    if method.name == "caila":  # its texts follow from the names
        assert again(moved, attributes=(*method.space.attributes, "new")).space.num_attributes == 7
        with pytest.raises(UsageError, match="shape"):
            again(moved, clip=_wider(method.clip))
        return
    with pytest.raises(UsageError, match=r"attributes(.|\n)*7 \+ 5"):
        again(moved, attributes=(*method.space.attributes, "new"))
    with pytest.raises(UsageError, match="no CLIP"):
        again(moved, clip=None)
    with pytest.raises(UsageError, match=r"another CLIP(.|\n)*64 wide"):
        again(moved, clip=_wider(method.clip))
    if method.name == "clusPro":  # as many labels, split otherwise: the prototypes tell
        with pytest.raises(UsageError, match="6 attributes and 5 objects"):
            again(moved, attributes=method.space.attributes[:-1], objects=(*method.space.objects, "new"))


def _wider(clip):
    from czsl.clip.compat import import_open_clip

    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 1, "layers": 2}
    return Clip(import_open_clip().CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text), "wide")


def test_numbers_that_tensors_tell_are_not_taken_from_the_configuration(moved):
    method = moved[0]
    if method.name == "csp":
        assert again(moved, config={"attr_dropout": 0.1, "lr": "1e-4"}).config.attr_dropout == 0.1
    elif method.name == "troika":
        assert again(moved, config={"cmt_layers": 3, "cross_attn_dropout": 0.25}).config.traction_dropout == 0.25
        with pytest.raises(UsageError, match="cmt_layers 3"):
            again(moved, config={"cmt_layers": 2})
    elif method.name == "msci":
        with pytest.raises(UsageError, match="stage_2_num_cmt_layers 2"):
            again(moved, config={"stage_2_num_cmt_layers": 1})
        assert again(moved, config={"stage_1_dropout": 0.3}).config.stage1_dropout == 0.3
    elif method.name == "caila":
        back = again(moved, config={"img_dropout": 0.1, "prompt_template": "a photo of x"}).config
        assert (back.image_dropout, back.reduction, back.fusion_start, back.text_adapters) == (0.1, 4, 1, True)
        return
    else:
        assert again(moved).config.num_prototypes == 3
        with pytest.raises(UsageError, match="adapter_dim 4"):
            again(moved, config={"adapter_dim": 64})
    with pytest.raises(UsageError, match="attr_dropout"):
        again(moved, config={"attr_dropout": "much"})
    with pytest.raises(UsageError, match="prompt_template"):
        again(moved, config={"prompt_template": ["the x x", "a photo of x"]})


def test_half_precision_and_arrays_are_taken(moved):
    method, state = moved
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    back = again(moved, {k: np.asarray(v) for k, v in half.items()}).state_dict()
    for key, value in method.state_dict().items():
        if key.startswith("prompts."):
            assert back[key].dtype == torch.float32
            assert torch.equal(back[key], value.half().float())


def test_methods_without_public_checkpoints_say_so():
    with pytest.raises(UsageError, match=r"zero-shot(.|\n)*csp, troika, clusPro, msci, caila"):
        from_reference("zero-shot", {}, ("wet",), ("dog",))
