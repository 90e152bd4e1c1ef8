"""LaZSL on images: regions, selection, prompts, descriptors of pairs and classes, and the two ways of use."""

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch
from PIL import Image

from czsl.classes import ClassSpace
from czsl.compositions import CompositionSpace
from czsl.data.files.regions import checked_boxes
from czsl.data.pixels import Pixels, clip_pixels
from czsl.errors import DataError, UsageError
from methods.building import build
from methods.lazsl.config import LaZSLConfig
from methods.lazsl.phrases import clause, make_bank, prompts_of
from methods.lazsl.regions import prepare_views, region_features, regions_key, sample_boxes

FEW = LaZSLConfig(num_regions=6)
DESCRIBED = {
    "attributes": {"wet": ["water drops", "a shiny surface"], "faux leather": ["has stitches"], "old": [], "worn out": ["holes"]},
    "objects": {"dog": ["four legs", "may wear a collar", "used to guard"], "coffee_table": ["a flat top"]},
    "classes": {"dog": ["four legs", "a tail"], "cat": ["whiskers"]},
}


def picture(size=(90, 70), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


# -- regions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(640, 480), (31, 400), (1, 1), (2, 9)])
@pytest.mark.parametrize("kind", ["random", "grid"])
def test_boxes_are_squares_inside_the_image_with_sides_as_asked(size, kind):
    config = LaZSLConfig(regions=kind)
    boxes = sample_boxes(size, "a.jpg", config)
    assert boxes.shape == (90, 4)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= size).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides[:, 0] == sides[:, 1]).all()
    assert sides.min() >= max(1, int(0.6 * min(size)))
    assert sides.max() <= max(1, int(0.9 * min(size)))


def test_sides_and_places_are_uniform():
    config = LaZSLConfig(num_regions=10_000)
    boxes = sample_boxes((1000, 1000), "x", config)
    side = boxes[:, 2] - boxes[:, 0]
    assert np.quantile(side, [0.0, 0.25, 0.5, 0.75, 1.0]) == pytest.approx([600, 675, 750, 825, 900], abs=5)
    for edge in boxes[:, 0], boxes[:, 1]:
        assert np.quantile(edge / (1000 - side), [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.02)
    assert abs(np.corrcoef(boxes[:, 0] / (1000 - side), boxes[:, 1] / (1000 - side))[0, 1]) < 0.03


def test_boxes_are_a_function_of_seed_and_name():
    base = sample_boxes((100, 80), "a.jpg", FEW)
    assert np.array_equal(base, sample_boxes((100, 80), "a.jpg", FEW))
    assert not np.array_equal(base, sample_boxes((100, 80), "b.jpg", FEW))
    assert not np.array_equal(base, sample_boxes((100, 80), "a.jpg", replace(FEW, region_seed=2)))
    longer = sample_boxes((100, 80), "a.jpg", replace(FEW, num_regions=9))
    assert np.array_equal(base, longer[:6])  # a draw belongs to its region, not to how many there are
    grid = replace(FEW, regions="grid")
    assert np.array_equal(sample_boxes((100, 80), "a", grid), sample_boxes((100, 80), "b", grid))


def test_the_key_of_kept_features_names_what_regions_depend_on():
    same = {regions_key(FEW), regions_key(replace(FEW, theta=0.5, solver="uniform", descriptors=DESCRIBED))}
    assert len(same) == 1
    changes = [{"num_regions": 7}, {"region_min": 0.5}, {"region_max": 0.8}, {"region_seed": 3}, {"regions": "grid"}]
    assert len({regions_key(replace(FEW, **change)) for change in changes} | same) == 6
    assert regions_key(LaZSLConfig(num_regions=0)) == ""  # CLIP's own features, which other methods keep as well


def test_views_are_crops_of_the_original(small_clip):
    image, size = picture((200, 90)), small_clip.image_size
    views = prepare_views(image, "a", FEW, Pixels(size))
    assert np.array_equal(views["images"].numpy(), clip_pixels(image, size))
    for box, view in zip(sample_boxes(image.size, "a", FEW), views["regions"], strict=True):
        assert np.array_equal(view.numpy(), clip_pixels(image.crop(tuple(box)), size))


def test_boxes_of_the_user_are_cut_to_the_image_and_counted():
    boxes, outside = checked_boxes([[-5, 3.4, 20.2, 300], [200, 0, 300, 10], [10, 10, 11, 11]], (100, 80))
    assert boxes.tolist() == [[0, 3, 21, 80], [10, 10, 11, 11]]
    assert outside == 1
    assert checked_boxes([], (100, 80))[0].shape == (0, 4)
    for wrong in ([[0, 0, 1]], [[0, 0, np.nan, 1]], [[0, 0, np.inf, 1]], [[5, 5, 5, 9]], [[5, 5, 2, 9]]):
        with pytest.raises(DataError):
            checked_boxes(wrong, (100, 80))


# -- selection -----------------------------------------------------------------------------------------------------
def features_with(likeness, config=FEW):
    """One image whose regions have these cosines to the whole."""
    rows = [[1.0, 0.0]] + [[c, (1 - c * c) ** 0.5] for c in likeness]
    return region_features(torch.tensor(rows, dtype=torch.float64).reshape(1, -1), 2, config)


@pytest.mark.parametrize(
    ("likeness", "kept"),
    [
        ([0.2, 0.4, 0.6, 0.8], [False, False, True, True]),
        ([0.5, 0.5, 0.5], [True, True, True]),
        ([0.3, 0.5, 0.7], [False, True, True]),  # on the mean: kept
        ([0.9], [True]),
    ],
)
def test_regions_not_below_the_mean_are_kept(likeness, kept):
    encoded = features_with(likeness)
    assert encoded.kept[0].tolist() == kept
    assert encoded.mass[0].tolist() == [1 / sum(kept)] * sum(kept)
    assert encoded.regions[0, :, 0].tolist() == pytest.approx([c for c, k in zip(likeness, kept, strict=True) if k])
    assert not encoded.none_kept.any()


def test_equal_regions_are_all_kept_in_float32():
    for seed in range(50):
        row = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        assert region_features(row.repeat(1, 8), 16, FEW).kept.all()


def test_where_nothing_would_be_kept_all_is_and_it_is_counted():
    encoded = features_with([0.2, 0.6], replace(FEW, select_shift=1.5))
    assert encoded.kept.all()
    assert encoded.none_kept.tolist() == [True]
    off = features_with([0.2, 0.6], replace(FEW, select=False))
    assert off.kept.all()
    assert not off.none_kept.any()


def test_unequal_numbers_of_kept_regions_are_padded():
    views = torch.randn(5, 7 * 16, generator=torch.Generator().manual_seed(0))
    encoded = region_features(views, 16, FEW)
    assert len(set(encoded.kept.sum(1).tolist())) > 1
    for b in range(5):
        alone = region_features(views[b : b + 1], 16, FEW)
        n = alone.mass.shape[1]
        torch.testing.assert_close(encoded.regions[b, :n], alone.regions[0])
        torch.testing.assert_close(encoded.mass[b, :n], alone.mass[0])
        assert (encoded.mass[b, n:] == 0).all()


# -- prompts -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("phrase", "prompt"),
    [
        ("a long tail", "lemur, which is a long tail"),
        ("antennae", "lemur, which is antennae"),
        ("has a long tail", "lemur, which has a long tail"),
        ("often in trees", "lemur, which often in trees"),
        ("typically small", "lemur, which typically small"),
        ("may climb", "lemur, which may climb"),
        ("can climb", "lemur, which can climb"),
        ("used to trees", "lemur, which is used to trees"),
        ("four limbs", "lemur, which has four limbs"),
    ],
)
def test_prompts_follow_the_rules_of_the_released_program(phrase, prompt):
    assert clause("lemur", phrase) == prompt
    assert prompts_of("classes", "lemur", [phrase], "sentence") == [prompt + "."]
    assert prompts_of("classes", "lemur", [phrase], "plain") == [phrase]
    assert clause("ring-tailed_lemur", "eyes") == "ring-tailed lemur, which has eyes"


def test_labels_without_phrases_get_plain_sentences(small_clip, small_space):
    config = LaZSLConfig(descriptors=DESCRIBED)
    names = ["wet", "dry", "faux leather", "old", "sliced", "hair calf"]
    bank = make_bank(small_clip, "attributes", small_space.attributes, names, config)
    assert bank.count.tolist() == [2, 3, 1, 3, 3, 3]
    assert bank.texts[:2] == ["wet, which has water drops", "wet, which is a shiny surface"]
    assert bank.texts[2:5] == ["dry", "a photo of something dry", "something that looks dry"]
    assert bank.texts[5] == "faux leather, which has stitches"  # "Faux.Leather" in the data
    assert bank.plain == 4
    torch.testing.assert_close(bank.features.norm(dim=1), torch.ones(15))
    torch.testing.assert_close(bank.mean[0], bank.features[:2].mean(0))
    notes = config.notes(small_space)
    assert notes[0].startswith("4 of 6 attributes have no phrases")
    assert notes[1].startswith("1 described attributes left out")
    assert "worn out" in notes[1]
    assert len(notes) == 3
    assert len(LaZSLConfig().notes(small_space)) == 1
    with pytest.raises(DataError, match="none of the labels"):
        LaZSLConfig(descriptors={"objects": {"doog": ["legs"]}}).notes(small_space)


# -- methods -------------------------------------------------------------------------------------------------------
def test_scores_of_pairs_come_from_their_own_phrases(small_clip, small_space):
    """The whole way from an image to a score, written out for one pair."""
    method = build("lazsl", small_space, small_clip, {"descriptors": DESCRIBED, "num_regions": 6, "eps": 0.05})
    image = picture()
    prepared = method.prepare(image, "a.jpg")
    batch = {key: value[None] for key, value in prepared.items()}
    with torch.no_grad():
        got = method.scores(method.encode_images(batch), method.encode_compositions(torch.tensor([[0, 0]])))[0, 0]
        normal = torch.nn.functional.normalize
        views = torch.stack([batch["images"][0], *batch["regions"][0]])
        whole, *regions = normal(small_clip.visual(small_clip.normalise(views)), dim=1).double()
        texts = ["wet, which has water drops", "wet, which is a shiny surface", "dog, which has four legs"]
        texts += ["dog, which may wear a collar", "dog, which is used to guard"]
        phrases = small_clip.text.encode(texts).double()
    rho = [float(r @ whole) for r in regions]
    kept = torch.stack([r for r, x in zip(regions, rho, strict=True) if x >= mean(rho) - 1e-6])
    weight = torch.tensor([1 / 4] * 2 + [1 / 6] * 3, dtype=torch.float64)
    h = 0.8 * kept @ phrases.T + 0.2 * phrases @ whole
    kernel, v = ((h - 1) / 0.05).exp(), torch.ones(5, dtype=torch.float64)
    for _ in range(500):
        u = 1 / len(kept) / (kernel @ v)
        v = weight / (kernel.T @ u)
    expected = float(small_clip.logit_scale * (u[:, None] * kernel * v * h).sum())
    assert float(got) == pytest.approx(expected, abs=1e-4)  # logits; 1e-6 in cosines


def test_the_prompt_can_stand_in_for_the_phrases_of_the_whole_image(small_clip, small_space):
    pairs = torch.tensor([[0, 0], [1, 2]])
    prompt = build("lazsl", small_space, small_clip, {"global_term": "prompt", "theta": 0.0, "num_regions": 0})
    zero_shot = build("zero-shot", small_space, small_clip, {})
    images = torch.from_numpy(clip_pixels(picture(), small_clip.image_size))[None]
    with torch.no_grad():
        torch.testing.assert_close(prompt.score_images(images, pairs), zero_shot.score_images(images, pairs))


def test_kept_features_give_the_scores_of_the_pixels(small_clip, small_space):
    method = build("lazsl", small_space, small_clip, {"num_regions": 6})
    prepared = [method.prepare(picture(seed=i), str(i)) for i in (0, 1, 1)]
    batch = {key: torch.stack([p[key] for p in prepared]) for key in prepared[0]}
    with torch.no_grad():
        features = method.image_features(batch)
        assert features.shape == (3, 7 * small_clip.dim)
        alone = [method.image_features({k: v[b : b + 1] for k, v in batch.items()}) for b in range(3)]
        assert torch.equal(torch.cat(alone), features)  # to the last bit: an image's views are a pass of their own
        text = method.encode_compositions(torch.from_numpy(small_space.closed_pairs))
        here = method.scores(method.encode_images(batch), text)
        assert torch.equal(method.scores(method.encode_images({"features": features}), text), here)


@torch.no_grad()
def test_classes_are_recognised_by_their_own_phrases_alone(small_clip):
    names = ("dog", "Cat", "coffee_table")
    fields = {"descriptors": DESCRIBED, "num_regions": 6}

    def build_for(classes, **changes):
        return build("lazsl", ClassSpace.of(classes), small_clip, {**fields, **changes}).eval()

    def scores_of(method, features):
        text = method.encode_compositions(torch.from_numpy(method.space.closed_pairs.copy()))
        return method.scores(method.encode_images({"features": features}), text), text

    method = build_for(names)
    images = [picture(seed=i) for i in range(3)]
    prepared = [method.prepare(image, str(i)) for i, image in enumerate(images)]
    features = method.image_features({key: torch.stack([p[key] for p in prepared]) for key in prepared[0]})
    scores, text = scores_of(method, features)
    assert [bank.names for bank in text.banks] == [["dog", "cat", "coffee table"]]
    assert text.banks[0].count.tolist() == [2, 1, 3]
    for c, name in enumerate(names):  # a class's score does not depend on the other candidates
        alone = build_for([name], **({"descriptors": {}} if c == 2 else {}))
        torch.testing.assert_close(scores_of(alone, features)[0][:, 0], scores[:, c], rtol=0, atol=1e-4)
    # A pair of which the attribute weighs nothing is the class whose phrases its object has.
    objects = {"descriptors": {"objects": DESCRIBED["classes"]}, "num_regions": 6, "attribute_share": 0.0}
    pairs = build("lazsl", CompositionSpace(("wet",), names, *([np.array([[0, 0], [0, 1], [0, 2]])] * 3)), small_clip, objects)
    torch.testing.assert_close(scores_of(pairs.eval(), features)[0], scores, rtol=0, atol=1e-4)
    baseline, _ = scores_of(build_for(names, theta=0.0), features)
    whole = torch.nn.functional.normalize(features[:, : small_clip.dim], dim=1)
    torch.testing.assert_close(baseline, small_clip.logit_scale * whole @ text.banks[0].mean.T)
    records = method.predict(images, k=2)
    assert [r["predictions"][0]["class"] for r in records] == [names[i] for i in scores.argmax(1).tolist()]
    assert len(LaZSLConfig().notes(method.space)) == 1
    assert "classes have no phrases" in LaZSLConfig(descriptors=DESCRIBED).notes(method.space)[0]


def test_settings_out_of_range_are_refused():
    wrong = ({"theta": 1.2}, {"attribute_share": -0.1}, {"region_min": 0.95}, {"region_max": 1.5}, {"num_regions": -1})
    for settings in (*wrong, {"eps": 0.0}, {"eps": 0.001}, {"region_seed": -1}):
        with pytest.raises(UsageError):
            LaZSLConfig(**settings)
    LaZSLConfig(eps=0.001, solver="log")
    with pytest.raises(DataError):
        LaZSLConfig(descriptors={"attributes": {"wet": "drops"}})


@torch.no_grad()
def test_phrases_follow_their_names_into_another_label_space(small_clip, small_space):
    method = build("lazsl", small_space, small_clip, {"descriptors": DESCRIBED, "num_regions": 0})
    other = method.for_space(CompositionSpace(("shiny", "wet"), ("Coffee Table", "dog"), *([np.zeros((0, 2))] * 3)))
    images = torch.from_numpy(clip_pixels(picture(), small_clip.image_size))[None]
    here = method.score_images(images, torch.tensor([[0, 0], [0, 2]]))
    there = other.score_images(images, torch.tensor([[1, 1], [1, 0]]))
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)
