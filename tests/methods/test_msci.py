"""MSCI's accelerations against its plain form, its switches, and what its streaming may not change."""

import copy

import numpy as np
import pytest
import torch
from msci_plain import BRANCHES, plain_maps, plain_tensors
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from czsl.clip.backbone import Clip
from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from czsl.evaluation import Candidates, ExtremesAccumulator
from methods.building import build
from methods.features import Targets
from methods.parts import cross_attention
from methods.parts.cross_attention import branch_cosines, moved_cosines
from methods.presets import load_presets

PLAIN = {"adapter_dim": 4, "low_blocks": 2, "high_blocks": 3, "stage1_heads": 4, "stage2_heads": 2, "stage2_layers": 2}
NO_DROPOUT = dict.fromkeys(
    ("attr_dropout", "adapter_dropout", "head_dropout", "aggregator_dropout", "stage1_dropout", "stage2_dropout"), 0.0
)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def deep_clip():
    """Five blocks, so that taps are some of the blocks; 48 channels in the joint space."""
    from czsl.clip.compat import import_open_clip

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        vision = {"image_size": 48, "patch_size": 16, "width": 64, "layers": 5}
        text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
        model = import_open_clip().CLIP(embed_dim=48, vision_cfg=vision, text_cfg=text, quick_gelu=True)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Clip(model.eval(), "deep")


@pytest.fixture
def make(small_space, deep_clip):
    """A method none of whose tensors is at its initial value."""

    def made(**settings):
        torch.manual_seed(0)
        method = build("msci", small_space, copy.deepcopy(deep_clip), {**PLAIN, **settings})
        with torch.no_grad():
            for value in method.parameters():
                value.add_(0.1 * torch.randn_like(value))
        return method.eval()

    return made


@pytest.fixture
def images():
    return torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def loss_of(logits):
    return sum((x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in logits)


def gradients(method, logits):
    method.zero_grad()
    loss_of(logits).backward()
    return {n: p.grad for n, p in method.named_parameters()}


ABLATIONS = [
    {},
    {"stage1_layers": 2, "stage1_heads": 3},
    {"stage_order": "parallel", "aggregator": "mean"},
    {"stage_order": "low", "aggregator": "last"},
    {"stage_order": "high", "residual_terms": "q2", "high_blocks": 1},
    {"residual_terms": "q2", "low_blocks": 5},
    {"residual_terms": "q1"},
    {"stage_order": "parallel", "residual_terms": "q2", "adapter_dim": 0},
]


@pytest.mark.parametrize("settings", ABLATIONS, ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()) or "default")
@pytest.mark.parametrize("elements", [1 << 23, 1], ids=["whole", "tiles"])
def test_the_fast_form_is_the_plain_form_in_values_and_gradients(make, images, settings, elements, monkeypatch):
    """Branches in one set of queries, keys and values once, first queries once, tapped blocks alone projected, shared beginnings of
    prompts, SDPA, and tiles computed again: all at once, in training mode without dropout, in float64.
    """
    monkeypatch.setattr(cross_attention, "TILE_ELEMENTS", elements)
    method = make(**NO_DROPOUT, **settings).double().train()
    pairs = torch.from_numpy(method.space.train_pairs.copy())
    plain = plain_tensors(method, images, pairs)
    expected = gradients(method, [plain[f"logits_{b}"] for b in BRANCHES])
    encoded, text = method.encode_images({"images": images}), method.encode_compositions(pairs)
    logits = method.logits(encoded, text)
    for got, branch in zip(logits, BRANCHES, strict=True):
        torch.testing.assert_close(got, plain[f"logits_{branch}"], **EXACT)
    found = gradients(method, logits)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None and gradient.abs().sum() > 0, name  # nothing is built that is not used
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")
    answers = method.answers(text.pair, encoded.memory)
    for i, stage in ((1, "low"), (2, "high")):
        assert (stage in answers) == (f"q{i}_pair" in plain)
        if stage in answers:
            torch.testing.assert_close(answers[stage], plain[f"q{i}_pair"], **EXACT)


def test_each_thing_is_computed_as_often_as_it_must(make, images, monkeypatch):
    method, calls = make(low_blocks=1, high_blocks=2), {"project": 0, "keys": 0, "queries": []}
    project = method.clip.visual.project
    monkeypatch.setattr(method.clip.visual, "project", lambda x: calls.__setitem__("project", calls["project"] + 1) or project(x))
    first = method.stages["low"].cross_attn_layers[0].cross_attn
    layers = [layer.cross_attn for s in method.stages.values() for layer in s.cross_attn_layers]
    for layer in layers:
        layer.k_proj.register_forward_hook(lambda *_: calls.__setitem__("keys", calls["keys"] + 1))
    first.q_proj.register_forward_hook(lambda _, given, __: calls["queries"].append(given[0].shape))
    with torch.no_grad():
        text = method.encode_compositions(torch.from_numpy(method.space.open_pairs))
        encoded = method.encode_images({"images": images})
        for start in (0, 15):
            method.scores(encoded, text.tile(start, start + 15))
    assert calls["project"] == 3  # of five blocks
    assert calls["keys"] == len(layers)  # once an image for three branches and two tiles
    # All branches in one call, without an image dimension; primitives with the first tile alone.
    assert calls["queries"] == [(15 + 6 + 5, 48), (15, 48)]


@torch.no_grad()
def test_tapped_blocks_are_those_of_the_whole_tower(make, images):
    method = make()
    maps = plain_maps(method, images)
    tapped = method.clip.visual.tapped(images, {1, 4}, method.adapters)
    assert sorted(tapped) == [1, 4]
    for i, x in tapped.items():
        torch.testing.assert_close(x, maps[i], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tapped[4], method.clip.visual(images, method.adapters, tokens=True), rtol=0, atol=0)


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("elements", [1 << 23, 1])
def test_branches_together_are_branches_alone(elements, monkeypatch):
    monkeypatch.setattr(cross_attention, "TILE_ELEMENTS", elements)
    images = [F.normalize(drawn(3, 8, seed=k), dim=-1) for k in range(3)]
    texts = [drawn(n, 8, seed=9 + n).requires_grad_() for n in (37, 2, 21)]
    turn = drawn(3, 8, 8, seed=5)

    def move(text_nD):
        return text_nD @ turn

    together = branch_cosines(images, texts, move)
    alone = [moved_cosines(image, text, move) for image, text in zip(images, texts, strict=True)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    pairs = zip(*(torch.autograd.grad(loss_of(x), texts) for x in (together, alone)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_in_bfloat16_streams_sums_and_cosines_stay_in_float32(make, images, monkeypatch):
    method, seen = make(**NO_DROPOUT).train(), []
    pairs = torch.from_numpy(method.space.train_pairs.copy())
    exact = method.logits(method.encode_images({"images": images}), method.encode_compositions(pairs))
    for stage in method.stages.values():
        stage.cross_attn_layers.register_forward_hook(lambda _, given, out: seen.extend((given[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        features = method.image_features({"images": images})
        text = method.encode_compositions(pairs)
        logits = method.logits(method.embed_images(features), text)
        assert method.stages["low"].cross_attn_layers[0].cross_attn.q_proj(text.pair).dtype == torch.bfloat16
    assert {features.dtype, text.pair.dtype, *seen, *(x.dtype for x in logits)} == {torch.float32}
    for got, expected in zip(logits, exact, strict=True):
        assert 0 < (got - expected).abs().max() < 0.5  # batch statistics of four images make much of small differences


def test_a_tile_that_is_computed_again_draws_the_same_dropout(make, images, monkeypatch):
    monkeypatch.setattr(cross_attention, "TILE_ELEMENTS", 1)
    method, results = make().train(), []
    pairs = torch.from_numpy(method.space.train_pairs.copy())
    again = cross_attention.recomputed
    for wrapper in (again, lambda f, *args: f(*args)):
        monkeypatch.setattr(cross_attention, "recomputed", wrapper)
        torch.manual_seed(7)
        logits = method.logits(method.encode_images({"images": images}), method.encode_compositions(pairs))
        results.append(([x.detach() for x in logits], gradients(method, logits)))
    for one, other in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(one, other)
    for name, gradient in results[1][1].items():
        torch.testing.assert_close(results[0][1][name], gradient, rtol=1e-5, atol=1e-5)


def saved_bytes(action):
    """Bytes that autograd keeps for the backward pass, each storage once."""
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = (x.untyped_storage().nbytes(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = action()
    assert torch.isfinite(loss_of(result))
    return sum(size for size, _ in kept.values())


def test_tiles_keep_a_fraction_of_what_the_plain_form_keeps(make, images, monkeypatch):
    monkeypatch.setattr(cross_attention, "TILE_ELEMENTS", 1)
    method = make().train()
    encoded, text = (
        method.encode_images({"images": images}),
        method.encode_compositions(torch.from_numpy(method.space.open_pairs)),
    )
    tiled = saved_bytes(lambda: method.logits(encoded, text))
    monkeypatch.setattr(cross_attention, "TILE_ELEMENTS", 1 << 23)
    assert tiled < saved_bytes(lambda: method.logits(encoded, text)) / 5


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


@torch.no_grad()
def test_open_world_scores_stream_over_tiles_of_pairs(make, images, monkeypatch):
    """4 images and 3,600 pairs: the same extremes as from the whole matrix, and nothing as large as [images, pairs]."""
    monkeypatch.setattr(cross_attention, "TILE_ELEMENTS", 1)
    pairs = np.stack(np.divmod(np.arange(3600), 60), axis=1)
    seen, none = pairs[::7], pairs[:0]
    words = tuple(f"{a}{b}" for a in ("wet", "dry", "old", "new", "red", "tin") for b in "abcdefghij")
    space = CompositionSpace(words, tuple(f"{w}x" for w in words), seen, none, pairs[1:40:10])
    method = make().for_space(space)
    candidates = Candidates.build(space, split="test", open_world=True)
    text = method.encode_compositions(torch.from_numpy(candidates.pairs[candidates.order]))
    labels, rows = pairs[1:40:10], slice(0, 4)
    streamed, whole = (ExtremesAccumulator(candidates, labels) for _ in range(2))
    encoded, start = method.encode_images({"images": images}), 0
    with Largest() as largest:
        for tile in candidates.tiles(128):
            scores = method.scores(encoded, text.tile(start, start + len(tile)))
            streamed.update(rows, tile, scores.numpy())
            start += len(tile)
    assert start == 3600
    assert largest.numbers < 4 * 3600
    fresh = method.encode_images({"images": images})
    monkeypatch.setattr(cross_attention, "TILE_ELEMENTS", 1 << 23)
    with Largest() as largest:
        scores, start = method.scores(fresh, text).numpy(), 0
    assert largest.numbers > 4 * 3600 * 48  # the question was a fair one
    for tile in candidates.tiles(3600):
        whole.update(rows, tile, np.ascontiguousarray(scores[:, start : start + len(tile)]))
        start += len(tile)
    one, other = streamed.result(), whole.result()
    for name in vars(one):
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4, err_msg=name)


# -- switches --------------------------------------------------------------------------------------------------------
def test_heads_are_of_width_64_unless_given(small_space):
    from czsl.clip.compat import import_open_clip

    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 7}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    clip = Clip(import_open_clip().CLIP(embed_dim=512, vision_cfg=vision, text_cfg=text), "wide")
    method = build("msci", small_space, clip, {})
    assert method.stage_heads.tolist() == [8, 8]  # twelve do not divide 512
    assert (list(method.taps["low"]), list(method.taps["high"])) == ([0], [6])  # a sixth of the tower
    with pytest.raises(UsageError, match="12 heads do not divide the joint width 512"):
        build("msci", small_space, clip, {"stage2_heads": 12})


def test_weights_of_another_number_of_heads_are_refused(make):
    state = make().state_dict()
    assert state["stage_heads"].tolist() == [4, 2]
    with pytest.raises(UsageError, match=r"\[4, 2\]; here: \[4, 4\](.|\n)*stage1_heads and stage2_heads"):
        make(stage2_heads=4).load_state_dict(state)
    make().load_state_dict(state)


@torch.no_grad()
def test_stages_may_start_as_the_identity(small_space, deep_clip, images):
    torch.manual_seed(0)
    method = build("msci", small_space, deep_clip, {**PLAIN, "zero_init": True}).eval()
    pairs = torch.from_numpy(small_space.closed_pairs)
    text = method.encode_compositions(pairs)
    plain = method.clip.logit_scale * method.encode_images({"images": images}).pair @ text.pair.T
    torch.testing.assert_close(method.branch_logits(images, pairs)[0], plain, rtol=1e-4, atol=1e-4)


def modes(method):
    return {m.training for m in method.modules() if m is not method}


def test_the_public_loop_loses_training_mode_behind_the_first_epoch(make):
    for setting, later in (("correct", {True}), ("reference", {False})):
        method = make(train_mode=setting)
        method.begin_epoch(0)
        assert method.training and modes(method) == {True}
        method.eval()  # a validation
        method.train()
        method.begin_epoch(1)
        assert method.training  # workers still share their work
        assert modes(method) == later


def test_running_statistics_rest_in_the_public_loop(make, images):
    method = make(train_mode="reference")
    pairs = torch.from_numpy(method.space.train_pairs[[0, 4, 9, 13]].copy())
    batch = {"images": images, "attr": pairs[:, 0], "obj": pairs[:, 1], "pair": torch.tensor([0, 4, 9, 13])}
    counts = []
    for epoch in (0, 1):
        method.begin_epoch(epoch)
        method.training_step(batch)
        counts.append(int(method.disentanglers["object"].bn1_fc.num_batches_tracked))
    assert counts == [1, 1]
    one, other = (sum(method.training_step(batch).values()) for _ in range(2))
    assert torch.equal(one, other)  # no dropout


@torch.no_grad()
def test_primitives_are_repeated_for_the_public_test_program_alone(make, images):
    method = make(pair_inference_weight=0.1)
    pairs = torch.from_numpy(method.space.open_pairs).repeat(80, 1)  # 2,400 pairs: three chunks
    correct, logit = method.score_images(images, pairs), 0.1 * method.branch_logits(images, pairs)[0]
    method.config.primitive_repeat = "reference"
    torch.testing.assert_close(method.score_images(images, pairs), logit + (correct - logit) / 9, rtol=1e-4, atol=1e-4)


def test_losses_are_weighted_cross_entropies(make, images):
    method = make(attr_loss_weight=0.1, obj_loss_weight=0.2)
    pairs, place = torch.from_numpy(method.space.train_pairs.copy()), torch.tensor([0, 3, 5, 13])
    encoded, text = method.encode_images({"images": images}), method.encode_compositions(pairs)
    terms = method.losses(encoded, text, Targets(pairs[place, 0], pairs[place, 1], place))
    labels = {"pair": (1.0, place), "attr": (0.1, pairs[place, 0]), "obj": (0.2, pairs[place, 1])}
    for (name, (weight, label)), logits in zip(labels.items(), method.logits(encoded, text), strict=True):
        torch.testing.assert_close(terms[name], weight * F.cross_entropy(logits, label))


@pytest.mark.parametrize(
    "wrong",
    [
        {"low_blocks": 6},
        {"high_blocks": -1},
        {"stage1_heads": 5},
        {"stage2_layers": 0},
        {"stage1_dropout": 1.5},
        {"aggregator": "gated"},
        {"train_mode": "once"},
        {"residual_terms": "q2", "stage_order": "low"},
        {"residual_terms": "q1", "stage_order": "high"},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(make, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        make(**wrong)


def test_it_has_no_index_and_keeps_no_features(make):
    method = make(adapter_dim=0)
    assert not method.indexable  # a text depends on the image
    assert not method.frozen_images


def test_recipes_are_the_public_table():
    recipes = load_presets("msci")["recipes"]
    public = ("mit-states", "mit-states-ow", "ut-zappos", "ut-zappos-ow", "cgqa", "cgqa-ow")

    def row(key, default=None):
        return [recipes[name].get(key, default) for name in public]

    assert row("optimizer") == ["adam"] * 2 + ["adamw"] * 2 + ["adam"] * 2
    assert row("lr") == [1e-4] * 2 + [2.5e-4] * 2 + [1.25e-5] * 2
    assert row("epochs") == [20, 20, 15, 15, 15, 15]
    assert row("batch") == [64, 64, 48, 48, 48, 48]
    assert row("attr_dropout") == [0.3] * 4 + [0.0] * 2
    assert row("low_blocks") == row("high_blocks") == [4, 4, 3, 3, 4, 4]
    assert row("stage1_heads", 0) == row("stage2_heads", 0) == [0, 16, 0, 0, 0, 0]  # 0: 12 at width 768
    assert row("attr_loss_weight", 1.0) == row("obj_loss_weight", 1.0) == [1.0, 1.0, 1.0, 1.0, 0.1, 1.0]
    weights = [[x.get(f"{b}_inference_weight", 1.0) for b in ("pair", "attr", "obj")] for x in recipes.values()]
    table = dict(zip(recipes, weights, strict=True))
    assert [table[n] for n in public] == [[1.0] * 3, [0.3, 0.7, 0.7], [1.0] * 3, [1.0] * 3, [1.0] * 3, [0.3, 0.7, 0.7]]
    assert table["mit-states-test"] == table["cgqa-test"] == [0.1, 0.9, 0.9]
    assert row("eval_batch") == [32, 48, 64, 32, 32, 6]
