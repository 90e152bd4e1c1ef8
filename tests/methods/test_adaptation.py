"""Adaptation of a stream of features: against the public program's numbers, and against plain forms with autograd."""

import json
import math

import numpy as np
import pytest
import torch
from adaptation_plain import plain_tda, plain_tomcat

import methods
from czsl.errors import DataError, UsageError
from czsl.runs.search import parse_space
from methods.adaptation.cache import ClassCache
from methods.adaptation.config import TdaConfig, TomcatConfig
from methods.adaptation.registry import (
    ADAPTATIONS,
    adaptation_class,
    adaptation_config,
    adaptation_recipes,
    adaptation_search,
    adaptation_settings,
)
from methods.adaptation.stream import start
from methods.adaptation.tomcat import ROWS

LIVELY = {"shots": 2, "alpha": 1.5, "beta": 4.0, "theta": 1.5, "text_lr": 2e-3, "image_lr": 1e-3, "weight_decay": 1e-2}
LIVELY |= {"align_weight": 1.5}


def stream(images=60, candidates=12, width=16, seed=0, spread=0.6):
    """Image features near the texts of their candidates, float64; none of unit length."""
    draw = torch.Generator().manual_seed(seed)
    text = torch.randn(candidates, width, generator=draw, dtype=torch.float64)
    labels = torch.randint(candidates, (images,), generator=draw)
    noise = torch.randn(images, width, generator=draw, dtype=torch.float64)
    return (text[labels] + spread * math.sqrt(width) / 4 * noise) * 3, text


def oracle_settings(config, scale):
    """Settings as the plain form takes them: alphas as they enter the formula."""
    plain = {k: v for k, v in vars(config).items() if k != "released"}
    return {k: config.weight(v, scale) if k.endswith("alpha") else v for k, v in plain.items()}


@pytest.mark.parametrize("variant", ["mit", "zappos", "no_align", "text_only"])
@pytest.mark.parametrize("block", [1, 150])
def test_public_program(shared, variant, block):
    arrays = np.load(shared / "fixtures/tomcat_reference.npz", allow_pickle=False)
    about = json.loads((shared / "fixtures/tomcat_reference.json").read_text(encoding="utf-8"))
    v = about["variants"][variant]
    settings = {
        "shots": v["shot_capacity"], "alpha": v["alpha"], "beta": v["beta"], "theta": v["theta"], "text_lr": v["text_lr"],
        "image_lr": v["image_lr"], "weight_decay": v["wd"], "align_weight": v["align_loss_weight"], "cache": v["use_img_cache"],
        "released": True,
    }  # fmt: skip
    images = torch.from_numpy(arrays["images"][arrays["order"]])
    tiles = methods.adapt_tiles("tomcat", images.split(block), arrays["text"], about["logit_scale"], settings)
    scores = torch.cat(list(tiles))
    torch.testing.assert_close(scores, torch.from_numpy(arrays[f"logits/{variant}"]), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {}, {"align_weight": 0.0}, {"cache": False}, {"image_lr": 0.0}, {"text_lr": 0.0}, {"alpha": 0.0}, {"shots": 1},
        {"text_lr": 0.0, "image_lr": 0.0}, {"weight_decay": 0.0, "theta": -1.0},
    ],
    ids=str,
)  # fmt: skip
def test_closed_form_equals_autograd(change):
    images, text = stream()
    config = TomcatConfig.of({**LIVELY, **change})
    scores = methods.adapt_stream("tomcat", images, text, 20.0, {**LIVELY, **change})
    plain = plain_tomcat(images, text, 20.0, **oracle_settings(config, 20.0))
    own = 20.0 * torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(text).T
    assert float((plain - own).abs().max()) > 0.01  # the state moves the scores here
    torch.testing.assert_close(scores, plain, atol=1e-9, rtol=0)


def test_more_candidates_than_a_block():
    images, text = stream(images=40, candidates=ROWS + 30, width=8)
    scores = methods.adapt_stream("tomcat", images, text, 20.0, LIVELY)
    plain = plain_tomcat(images, text, 20.0, **oracle_settings(TomcatConfig.of(LIVELY), 20.0))
    torch.testing.assert_close(scores, plain, atol=1e-9, rtol=0)


@pytest.mark.parametrize("change", [{}, {"negative": False}, {"shots": 1, "negative_shots": 1}, {"mask_high": 0.5}], ids=str)
def test_tda_equals_its_plain_form(change):
    images, text = stream(spread=1.5)
    settings = {"entropy_low": 0.1, "entropy_high": 0.6, "negative_alpha": 1.0, **change}
    scores = methods.adapt_stream("tda", images, text, 15.0, settings)
    plain = plain_tda(images, text, 15.0, **oracle_settings(TdaConfig.of(settings), 15.0))
    torch.testing.assert_close(scores, plain, atol=1e-9, rtol=0)
    without = plain_tda(images, text, 15.0, **{**oracle_settings(TdaConfig.of(settings), 15.0), "negative": False})
    assert ("negative" in change) == bool(torch.equal(without, plain))  # the negative cache counts where there is one


def test_golden_numbers():
    """Three images of two candidates, from the plain form."""
    images = torch.tensor([[1.0, 0.2], [0.3, 1.0], [0.8, 0.7]], dtype=torch.float64)
    text = torch.eye(2, dtype=torch.float64)
    settings = {"alpha": 10.0, "beta": 2.0, "theta": 1.0, "text_lr": 0.1, "image_lr": 0.1, "align_weight": 1.0}
    scores = methods.adapt_stream("tomcat", images, text, 10.0, settings)
    plain = plain_tomcat(images, text, 10.0, **oracle_settings(TomcatConfig.of(settings), 10.0))
    torch.testing.assert_close(scores, plain, atol=1e-12, rtol=0)
    torch.testing.assert_close(scores, torch.tensor(GOLDEN, dtype=torch.float64), atol=1e-6, rtol=0)


GOLDEN = [[10.8058067569, 1.9611613514], [3.3856631336, 10.5079439728], [8.3936929917, 7.0850196172]]


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_alpha_is_relative_to_the_logit_scale(name):
    """The cache moves a cosine by the same amount at any scale; `released` takes alpha as it stands."""
    images, text = stream(images=5)
    still = {"text_lr": 0.0, "image_lr": 0.0} if name == "tomcat" else {"negative": False}

    def moved(scale, **more):
        unit = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(text).T
        return methods.adapt_stream(name, images, text, scale, {"alpha": 1.0, **still, **more}) - scale * unit

    torch.testing.assert_close(moved(100.0), moved(100.0, released=True))
    torch.testing.assert_close(moved(25.0), moved(100.0) / 4)
    torch.testing.assert_close(moved(25.0, released=True), moved(100.0))


def test_settings_that_change_nothing_leave_the_scores_to_the_bit():
    images, text = (x.float() for x in stream())
    unit = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(text).T
    still = {"alpha": 0.0, "text_lr": 0.0, "image_lr": 0.0}
    state = start("tomcat", text, 30.0, still)
    assert not state.shifts(torch.nn.functional.normalize(images)).any()
    torch.testing.assert_close(methods.adapt_stream("tomcat", images, text, 30.0, still), 30 * unit, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_one_image_and_one_candidate(name):
    images, text = stream(images=1)
    assert methods.adapt_stream(name, images, text, 30.0).shape == (1, 12)
    assert bool(methods.adapt_stream(name, images, text[:1], 30.0).isfinite().all())


def test_the_first_image_has_entered_the_cache():
    images, text = stream(images=1)
    unit = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(text).T
    scores = methods.adapt_stream("tomcat", images, text, 100.0, {"alpha": 2.0})
    gained = torch.zeros(12, dtype=torch.float64)
    gained[unit.argmax()] = 2.0  # its affinity to itself is 1
    torch.testing.assert_close(scores[0], 100 * unit[0] + gained)


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_order_counts_and_repeats(name):
    images, text = stream()
    settings = LIVELY if name == "tomcat" else {}
    scores = methods.adapt_stream(name, images, text, 20.0, settings)
    back = methods.adapt_stream(name, images.flip(0), text, 20.0, settings).flip(0)
    assert torch.equal(scores, methods.adapt_stream(name, images, text, 20.0, settings))
    assert float((scores - back).abs().max()) > 0.01


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_a_kept_state_continues_the_stream(name):
    images, text = (x.float() for x in stream(spread=1.5))
    settings = LIVELY if name == "tomcat" else {"entropy_low": 0.1, "entropy_high": 0.6}
    unit = torch.nn.functional.normalize(images)
    whole, first, second = (start(name, text, 20.0, settings) for _ in range(3))
    expected = [whole.shifts(part) for part in unit.split(25)]
    assert torch.equal(first.shifts(unit[:25]), expected[0])
    second.restore({key: value.clone() for key, value in first.state().items()})
    assert second.images == 25
    for part, shifts in zip(unit.split(25)[1:], expected[1:], strict=True):
        assert torch.equal(second.shifts(part), shifts)


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_a_state_of_other_candidates_is_refused(name):
    images, text = (x.float() for x in stream())
    state = start(name, text, 20.0)
    state.shifts(torch.nn.functional.normalize(images))
    with pytest.raises((ValueError, KeyError)):
        start(name, text[:5], 20.0).restore(state.state())
    with pytest.raises((ValueError, KeyError)):
        start(name, text, 20.0, {"shots": 5}).restore(state.state())
    with pytest.raises((ValueError, KeyError)):
        start(name, text, 20.0).restore({"images": torch.tensor(1)})


def test_memory_follows_the_candidates_not_the_images():
    images, text = (x.float() for x in stream(images=200))
    state = start("tomcat", text, 20.0, LIVELY)
    sizes = []
    for part in torch.nn.functional.normalize(images).split(100):
        state.shifts(part)
        sizes.append(sum(x.numel() for x in state.state().values()))
    assert sizes[0] == sizes[1] <= 3 * (12 * 16) * 2 + 12 * (2 * 16 + 2 * 2 + 1) + 3


# -- the cache -----------------------------------------------------------------------------------------------------
def test_cache_appends_replaces_and_keeps():
    cache = ClassCache(2, torch.zeros(5, 3))
    a, b, c, d, e = torch.eye(5)[:, :3] + 1
    assert cache.add(4, a, 0.5) == (0, 0)
    assert cache.add(1, b, 0.1) == (1, 0)
    assert cache.add(4, c, 0.9) == (0, 1)
    assert cache.add(4, d, 0.9) is None  # an equal entropy does not replace
    assert cache.add(4, e, 0.7) == (0, 1)
    assert [value for value, _ in cache.ranked[0]] == [0.5, 0.7]
    assert cache.classes.tolist() == [4, 1]
    torch.testing.assert_close(cache.keys, torch.stack([(a + e) / 2, b]))


def test_cache_finds_room():
    cache = ClassCache(1, torch.zeros(100, 2))
    for label in range(40):
        cache.add(label, torch.full((2,), float(label)), 1.0)
    assert len(cache) == 40
    assert cache.keys[:, 0].tolist() == list(range(40))


# -- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("tomcut", {}, "did you mean 'tomcat'"), ("tomcat", {"alhpa": 1}, "did you mean 'alpha'"),
        ("tomcat", {"recipe": "mit-state"}, "did you mean 'mit-states'"), ("tomcat", {"shots": 0}, "between 1 and"),
        ("tomcat", {"shots": 2.5}, "wrong type"), ("tomcat", {"text_lr": -1e-6}, "0 or more"),
        ("tomcat", {"alpha": math.inf}, "finite"), ("tomcat", {"theta": math.nan}, "finite"), ("tda", {"theta": 1.0}, "unknown"),
        ("tda", {"entropy_high": 1.5}, "between 0 and 1"), ("tda", {"mask_low": 0.0}, "at least 0.001"),
        ("tda", {"negative_shots": 0}, "between 1 and"), ("tomcat", {"cache": 1}, "wrong type"),
    ],
)  # fmt: skip
def test_bad_settings(name, settings, words):
    images, text = stream()
    with pytest.raises(UsageError) as error:
        methods.adapt_stream(name, images, text, 30.0, settings)
    assert words in f"{error.value.what} {error.value.why}"
    assert error.value.fix


def test_bad_features():
    images, text = stream()
    broken = images.clone()
    broken[7, 3] = math.nan
    for given, words in (((broken, text), "row 7"), ((images, text / 0), "text features"), ((images[:0], text), "empty")):
        with pytest.raises(DataError, match=words):
            methods.adapt_stream("tomcat", *given, 30.0)
    with pytest.raises(DataError, match="15 numbers"):
        methods.adapt_stream("tomcat", images[:, :15], text, 30.0)
    with pytest.raises(DataError, match=r"shape \[16\]"):
        methods.adapt_stream("tomcat", images[0], text, 30.0)
    with pytest.raises(DataError, match="no text"):
        methods.adapt_stream("tomcat", images, text[:0], 30.0)
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="logit scale"):
            methods.adapt_stream("tomcat", images, text, scale)


def test_registry_and_recipes():
    for name in ADAPTATIONS:
        assert adaptation_settings(name).name == name
        assert adaptation_settings(name).about
        assert adaptation_class(name).__name__.lower() == name
        assert parse_space(adaptation_search(name), name, adaptation_config(name))  # what a search draws from is valid
        for recipe in adaptation_recipes(name):
            assert adaptation_settings(name, {"recipe": recipe, "shots": 7}).shots == 7
    assert adaptation_settings("tomcat", {"recipe": "mit-states"}).alpha == 1.25
    assert adaptation_settings("tomcat") == adaptation_settings("tomcat", {"recipe": "ut-zappos"})
