"""Explanations of LaZSL: shares add up to the score, boxes and phrases are those that were scored, fallbacks are said."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from czsl.classes import ClassSpace
from czsl.errors import CzslError
from methods.building import build
from methods.lazsl.regions import sample_boxes

DESCRIBED = {
    "attributes": {"wet": ["water drops", "a shiny surface"]},
    "objects": {"dog": ["four legs", "a tail"]},
    "classes": {"dog": ["four legs", "a tail", "fur"], "cat": ["whiskers"]},
}


@pytest.fixture(scope="module")
def image():
    smooth = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize((140, 100), Image.Resampling.BICUBIC)


def score_of(method, image, pair, image_id="0"):
    batch = {key: value[None] for key, value in method.prepare(image, image_id).items()}
    with torch.no_grad():
        place = torch.tensor([[method.space.attributes.index(pair[0]), method.space.objects.index(pair[1])]])
        return float(method.scores(method.encode_images(batch), method.encode_compositions(place)))


@pytest.mark.parametrize("solver", ["sinkhorn", "log", "second_order", "uniform"])
@pytest.mark.parametrize("global_term", ["phrases", "prompt"])
@pytest.mark.parametrize("theta", [0.8, 0.0, 1.0])
def test_shares_add_up_to_the_score(small_clip, small_space, image, solver, global_term, theta):
    settings = {"solver": solver, "global_term": global_term, "theta": theta, "num_regions": 8, "descriptors": DESCRIBED}
    method = build("lazsl", small_space, small_clip, settings)
    for pair in (("wet", "dog"), ("Faux.Leather", "coffee_table")):
        found = method.explain(image, pair, "some/name.jpg")
        score = score_of(method, image, pair, "some/name.jpg") / found.logit_scale
        assert found.score == pytest.approx(score, abs=1e-6)
        assert found.local.sum() + found.whole.sum() == pytest.approx(score, abs=1e-6)
        assert found.by_phrase.sum() == pytest.approx(score, abs=1e-6)
        assert found.by_region.sum() + found.whole.sum() == pytest.approx(score, abs=1e-6)
        assert (
            len(found.phrases)
            == len(found.plan)
            == len(found.whole)
            == (6 if pair[0] != "wet" else 4) + (global_term == "prompt")
        )
        weights = np.array([p.weight for p in found.phrases])
        assert found.plan.sum(1) == pytest.approx(weights, abs=1e-12)
        assert found.plan.sum(0) == pytest.approx(1 / len(found.boxes), abs=1e-6)
        if theta:
            np.testing.assert_allclose(found.local, theta * found.plan * found.similarity, atol=1e-15)


def test_boxes_are_the_kept_ones_and_phrases_carry_their_label(small_clip, small_space, image):
    method = build("lazsl", small_space, small_clip, {"num_regions": 8, "descriptors": DESCRIBED})
    found = method.explain(image, ("wet", "dog"), "x")
    sampled = sample_boxes(image.size, "x", method.config)
    batch = {key: value[None] for key, value in method.prepare(image, "x").items()}
    with torch.no_grad():
        kept = method.encode_images(batch).kept[0].numpy()
    assert 0 < kept.sum() < 8
    assert np.array_equal(found.boxes, sampled[kept])
    assert [p.label for p in found.phrases] == ["wet", "wet", "dog", "dog"]
    assert found.phrases[0].text == "wet, which has water drops"
    assert found.notes == ()
    assert found.best_region.tolist() == found.local.argmax(1).tolist()
    product = np.outer([p.weight for p in found.phrases], np.full(len(found.boxes), 1 / len(found.boxes)))
    np.testing.assert_allclose(found.plan, product * (1 + found.lift), atol=1e-15)
    assert np.abs(found.lift).max() > 1e-4


def test_regions_of_the_user(small_clip, small_space, image):
    method = build("lazsl", small_space, small_clip, {"num_regions": 8, "select": False})
    found = method.explain(image, ("wet", "dog"), boxes=[[0, 0, 50, 50], [40, 30, 300, 90], [500, 500, 600, 600]])
    assert found.boxes.tolist() == [[0, 0, 50, 50], [40, 30, 140, 90]]
    assert found.notes == ("1 regions lie outside the image and were dropped",)
    none = method.explain(image, ("wet", "dog"), boxes=[])
    assert none.boxes.tolist() == [[0, 0, 140, 100]]
    assert "no regions" in none.notes[0]
    baseline = build("lazsl", small_space, small_clip, {"theta": 0.0}).explain(image, ("wet", "dog"))
    assert none.score == pytest.approx(none.baseline, abs=1e-6)
    assert none.score == pytest.approx(baseline.score, abs=1e-6)
    with pytest.raises(CzslError):
        method.explain(image, ("wet", "dog"), boxes=[[0, 0, 5]])
    with pytest.raises(CzslError):
        method.explain(image, ("wet", "giraffe"))


def test_a_selection_that_keeps_nothing_is_said(small_clip, small_space, image):
    method = build("lazsl", small_space, small_clip, {"num_regions": 4, "select_shift": 3.0})
    found = method.explain(image, ("wet", "dog"))
    assert len(found.boxes) == 4
    assert found.notes == ("the selection kept no region, so all of them were kept",)


def test_classes_are_explained_too(small_clip, image):
    space = ClassSpace.of(("cat", "dog", "horse"))
    method = build("lazsl", space, small_clip, {"descriptors": DESCRIBED, "num_regions": 8}).eval()
    for name in space.classes:
        found = method.explain(image, ("", name), "x")
        assert found.candidate == (name,)
        assert {p.label for p in found.phrases} == {name}
        score = score_of(method, image, ("", name), "x") / found.logit_scale
        assert found.local.sum() + found.whole.sum() == pytest.approx(score, abs=1e-6)


def test_the_heat_map_is_the_mean_share_of_the_regions_over_a_pixel(small_clip, small_space, image):
    method = build("lazsl", small_space, small_clip, {"num_regions": 12})
    found = method.explain(image, ("wet", "dog"))
    plain, cover = np.zeros((100, 140)), np.zeros((100, 140))
    for (left, top, right, bottom), share in zip(found.boxes, found.by_region, strict=True):
        plain[top:bottom, left:right] += share
        cover[top:bottom, left:right] += 1
    np.testing.assert_allclose(found.heat_map(), np.where(cover > 0, plain / np.maximum(cover, 1), 0), atol=1e-12)
    small = found.heat_map(found.lift[0], max_side=70)
    assert small.shape == (50, 70)
    assert np.isfinite(small).all()


def test_an_explanation_is_plain_data(small_clip, small_space, image):
    found = build("lazsl", small_space, small_clip, {"num_regions": 4}).explain(image, ("wet", "dog"), "x")
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["candidate"] == ["wet", "dog"]
    assert sum(map(sum, read["local"])) + sum(read["whole"]) == pytest.approx(read["score"], abs=1e-9)
    assert read["settings"]["image_size"] == [140, 100]
    assert len(read["boxes"]) == len(read["by_region"])
