"""Sentences and images: each word's sub-image, all at once against a loop, and what falls back to plain CLIP."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity, normalize

from czsl.data.files.regions import ImageRegions, Region, RegionTable
from czsl.data.images import BadImage
from czsl.data.pixels import clip_pixels
from methods.comclip.algebra import Rule
from methods.comclip.fills import sub_image
from methods.comclip.matching import Matcher
from methods.comclip.model import word_features
from methods.comclip.parse import Composition, Entity, from_triplet, parse
from methods.comclip.providers import BACKGROUND, PROVIDERS, View, largest_pieces, patch_masks
from methods.comclip.windows import box_mask

SIZE = (90, 70)
TEXTS = ["a dog chases a cat", "a red apple", "a man in a hat holds a dog", "!!!"]
TABLE = RegionTable({
    "0": ImageRegions((Region("dog", (0, 0, 40, 40)), Region("dog", (50, 0, 60, 10)), Region("a cat", (30, 30, 90, 70)))),
    "1": ImageRegions((Region("dog", (200, 0, 240, 40)), Region("an animal", (5, 5, 50, 50))), {"cat": ("an animal",)}),
})  # fmt: skip


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(1, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def load(name):
    if name == "bad":
        raise BadImage("damaged image", "cut off")
    return picture(int(name))


def sentences():
    return [parse(text) for text in TEXTS]


def run(clip, names=("0", "1", "2"), **settings):
    matcher = Matcher(clip, table=TABLE, **settings)
    features, errors = matcher.whole(names, load)
    found = matcher.matches({name: sentences() for name in features}, features, load, masks=True)
    return matcher, features, errors, found


@torch.inference_mode()
def one_by_one(clip, image, match, sentence, mode):
    """The score of a match from its masks, with a pass of the tower for each word."""

    def encode(picture):
        return clip.visual(clip.normalise(torch.from_numpy(clip_pixels(picture, clip.image_size))[None]))[0].double()

    g, t = encode(image), word_features(clip, [sentence.sentence], True)[0].double()
    if not match.words:
        return float(cosine_similarity(g, t, dim=0))
    views = [encode(image if w.mask is None else sub_image(image, w.mask)) for w in match.words]
    words = [word_features(clip, [w.text], True)[0].double() for w in match.words]
    if mode == "unit":
        g, views, words = normalize(g, dim=0), [normalize(v, dim=0) for v in views], [normalize(w, dim=0) for w in words]
    cosines = [float(cosine_similarity(w, v, dim=0)) for w, v in zip(words, views, strict=True)]
    fit = [max(float(w @ v), 0) for w, v in zip(words, views, strict=True)] if mode == "raw" else [max(c, 0) for c in cosines]
    z = g
    if max(cosines) > 1e-4:
        for f, v in zip(fit, views, strict=True):
            z = z + (f if mode == "gclip" else f / sum(fit)) * v
    return float(cosine_similarity(z, t, dim=0))


@pytest.mark.parametrize("mode", ["unit", "raw", "gclip"])
@pytest.mark.parametrize("regions", PROVIDERS)
def test_all_at_once_equals_a_loop_over_pairs(small_clip, regions, mode):
    """Captions have 0 to 5 words."""
    matcher, _, _, found = run(small_clip, regions=regions, rule=Rule(mode))
    own = [m.score for name in found for m in found[name]]
    loop = [one_by_one(small_clip, load(n), m, s, mode) for n in found for m, s in zip(found[n], sentences(), strict=True)]
    assert own == pytest.approx(loop, abs=1e-5)
    assert np.argsort(own).tolist() == np.argsort(loop).tolist()
    assert {len(m.words) for m in found["0"]} == {0, 1, 3, 5}
    assert matcher.counts["sentences without a word"] == 1
    assert all(m.score == pytest.approx(m.clip, abs=1e-6) for m in (found[n][3] for n in found))


def test_without_regions_a_score_is_clips(small_clip):
    _, features, _, found = run(small_clip, regions="whole")
    for name in found:
        for match, sentence in zip(found[name], sentences(), strict=True):
            t = word_features(small_clip, [sentence.sentence], True)[0]
            assert match.score == pytest.approx(float(cosine_similarity(features[name], t, dim=0)), abs=1e-6)
            assert match.clip == pytest.approx(match.score, abs=1e-6)


@pytest.mark.parametrize("relation", ["union", "whole", "off"])
@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_relation_has_both_where_both_are_found_else_the_whole_image(small_clip, relation, first, second):
    boxes = {"dog": (0, 0, 40, 40), "cat": (30, 30, 90, 70)}
    found = [name for name, there in zip(boxes, (first, second), strict=True) if there]
    table = RegionTable({"0": ImageRegions(tuple(Region(name, boxes[name]) for name in found))})
    matcher = Matcher(small_clip, "file", relation=relation, table=table)
    sentence = Composition("a dog chases a cat", (Entity("dog", "dog"), Entity("cat", "cat")), ((0, "chase", 1),), "given")
    features, _ = matcher.whole(["0"], load)
    words = matcher.matches({"0": [sentence]}, features, load, masks=True)["0"][0].words
    masks = {w.text: w.mask for w in words}
    assert ("chase" in masks) == (relation != "off")
    for name, there in (("dog", first), ("cat", second)):
        assert (masks[name] is not None) == there
    if relation == "union" and first and second:
        assert np.array_equal(masks["chase"], box_mask(boxes["dog"], SIZE) | box_mask(boxes["cat"], SIZE))
    else:
        assert masks.get("chase") is None


def test_regions_of_a_file_follow_matches_then_words_then_likeness(small_clip):
    matcher, _, _, found = run(small_clip, regions="file")
    dog, cat, _ = found["0"][0].words
    assert np.array_equal(dog.mask, box_mask((0, 0, 40, 40), SIZE) | box_mask((50, 0, 60, 10), SIZE))  # both dogs
    assert np.array_equal(cat.mask, box_mask((30, 30, 90, 70), SIZE))  # "a cat" is about a cat
    dog, cat, chase = found["1"][0].words
    assert dog.mask is None  # its region lies outside of the image
    assert np.array_equal(cat.mask, box_mask((5, 5, 50, 50), SIZE))  # the file says which
    assert chase.mask is None
    assert all(w.mask is None for m in found["2"] for w in m.words)
    assert matcher.counts["regions outside of their image"] == 1
    assert matcher.counts["images without regions in the file"] == 1


def test_everything_is_encoded_once(small_clip):
    matcher, features, _, found = run(small_clip, regions="grid")
    assert matcher.passes["images"] == 3
    assert matcher.passes["windows"] == 3 * 34
    texts = {t for s in sentences() for t in (s.sentence, *s.words)}
    assert matcher.passes["texts"] == len(texts)
    unions = {
        (name, w.mask.tobytes())
        for name in found
        for m in found[name]
        for w in m.words
        if w.kind == "relation" and w.mask is not None
    }
    assert 0 < matcher.passes["sub-images"] <= len(unions)  # what an entity sees is a window already
    before = dict(matcher.passes)
    again = matcher.matches({"0": sentences()}, features, load)
    assert matcher.passes["texts"] == before["texts"]
    assert [m.score for m in again["0"]] == pytest.approx([m.score for m in found["0"]], abs=1e-6)


@pytest.mark.parametrize("regions", ["patch", "grid", "superpixel"])
def test_an_answer_does_not_depend_on_the_company(small_clip, regions):
    _, _, _, together = run(small_clip, regions=regions)
    _, _, _, alone = run(small_clip, ("1",), regions=regions, batch=1)
    assert [m.score for m in alone["1"]] == pytest.approx([m.score for m in together["1"]], abs=1e-5)


def test_bad_images_and_masks_that_do_not_fit_are_named(small_clip):
    matcher, features, errors, found = run(small_clip, ("0", "bad"))
    assert list(features) == list(found) == ["0"]
    assert "damaged image" in errors["bad"]
    wrong = RegionTable({"0": ImageRegions((Region("dog", (0, 0, 1, 1), mask={"size": [3, 3], "counts": [9]}),))})
    matcher = Matcher(small_clip, "file", table=wrong)
    features, _ = matcher.whole(["0", "1"], load)
    found = matcher.matches({"0": sentences(), "1": sentences()}, features, load)
    assert list(found) == ["1"]
    assert "does not fit its image" in matcher.failed["0"]


def test_a_guarded_pair_is_clips_and_counted(small_clip):
    matcher, _, _, found = run(small_clip, rule=Rule(min_score=0.9999))
    guarded = [m for name in found for m in found[name] if m.words]
    assert all(m.guarded and m.score == pytest.approx(m.clip, abs=1e-6) for m in guarded)
    assert matcher.counts["pairs left to plain CLIP by the guard"] == len(guarded)


def test_a_repeated_word_keeps_its_own_place(small_clip):
    """A verb that equals an object neither replaces it nor is lost."""
    matcher = Matcher(small_clip, "grid")
    features, _ = matcher.whole(["0"], load)
    words = matcher.matches({"0": [from_triplet("x", ("dog", "dog", "dog"))]}, features, load)["0"][0].words
    assert [(w.text, w.kind) for w in words] == [("dog", "entity"), ("dog", "entity"), ("dog", "relation")]


# -- maps of patches -----------------------------------------------------------------------------------------------
def test_a_phrase_is_found_where_its_patches_are():
    """8 x 8 patches: a square of one direction, the rest background."""
    dog, cat, ground, other = torch.eye(4)
    patches = ground.repeat(64, 1).view(8, 8, 4)
    patches[1:4, 2:6] = normalize(dog + 0.3 * ground, dim=0)
    masks = patch_masks(patches.view(64, 4), torch.stack([dog, cat]), torch.stack([ground, other]), 64)
    assert masks[1] is None
    inside = np.zeros((64, 64), bool)
    inside[8:32, 16:48] = True
    assert (masks[0] & inside).sum() / (masks[0] | inside).sum() > 0.8
    even = patch_masks(ground.repeat(64, 1), torch.stack([dog, cat]), torch.stack([ground, other]), 64)
    assert even == [None, None]
    assert BACKGROUND == ("background", "other")


def test_the_largest_pieces_hold_most_of_the_weight():
    mask, weight = np.zeros((20, 20), bool), np.ones((20, 20))
    mask[:10, :10] = mask[12:16, 12:16] = mask[18, 1] = True
    kept = largest_pieces(mask, weight)
    assert kept[:10, :10].all()
    assert kept.sum() == 100  # of 117: 85 %
    weight[12:16, 12:16] = 20
    kept = largest_pieces(mask, weight)
    assert kept[12:16, 12:16].all()
    assert not kept[18, 1]
    assert kept.sum() == 116  # 320 of 421 are 76 %, so the second piece comes too


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (64, 64)])
@pytest.mark.parametrize("regions", ["patch", "grid", "superpixel"])
@pytest.mark.parametrize("fill", ["black", "crop", "blur"])
def test_pictures_of_any_shape_go_through(small_clip, regions, fill, size):
    matcher = Matcher(small_clip, regions, fill=fill)
    image = picture(0).resize(size)
    features, _ = matcher.whole(["x"], lambda name: image)
    for match in matcher.matches({"x": sentences()}, features, lambda name: image, masks=True)["x"]:
        assert np.isfinite(match.score)
        assert all(w.mask is None or (w.mask.shape == size[::-1] and w.mask.any()) for w in match.words)


def test_a_mask_of_which_no_pixel_is_left_is_none(small_clip):
    view = View("x", picture(0).resize((1, 1)), np.zeros((3, 64, 64), np.uint8))
    corner = np.zeros((64, 64), bool)
    corner[0, 0] = True
    assert view.to_image(corner) is None
    assert view.to_image(~corner).tolist() == [[True]]
