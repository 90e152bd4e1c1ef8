"""ComCLIP's algebra against the formulas written out, its regions and sub-images against Pillow, and its scores of pairs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import cosine_similarity, normalize

from czsl.data.pixels import clip_pixels
from czsl.errors import UsageError
from methods.building import build
from methods.comclip.algebra import Rule, blip2_score, compose, fits, gram_scores, weigh
from methods.comclip.config import ComCLIPConfig
from methods.comclip.fills import MEAN_COLOUR, sub_image
from methods.comclip.pairs import pair_parts
from methods.comclip.windows import box_mask, grid_boxes, patch_shares, slic_segments

D = 16


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def picture(size=(90, 70), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(1, 256, (size[1], size[0], 3), dtype=np.uint8))


def similar(K, seed=0):
    """g [D], v [K, D], e [K, D], t [D] of which all inner products are positive."""
    return tuple(numbers(*shape, seed=seed + i).abs() for i, shape in enumerate([(D,), (K, D), (K, D), (D,)]))


# -- algebra -------------------------------------------------------------------------------------------------------
def written_out(g, v, e, t, mode):
    """Section 3 of the specification, one word after the other."""
    if mode == "unit":
        g, v, e = g / g.norm(), [x / x.norm() for x in v], [x / x.norm() for x in e]
    dots = [sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True)) for x, y in zip(e, v, strict=True)]
    if mode == "gclip":
        weights = [d / float(x.norm() * y.norm()) for d, x, y in zip(dots, e, v, strict=True)]
    else:
        weights = [d / sum(dots) for d in dots]
    z = g.clone()
    for w, x in zip(weights, v, strict=True):
        z = z + w * x
    return weights, z, float(z @ t) / float(z.norm() * t.norm())


@pytest.mark.parametrize("mode", ["unit", "raw", "gclip"])
@pytest.mark.parametrize("K", [1, 3, 5])
def test_a_composition_is_the_formula_written_out(mode, K):
    g, v, e, t = similar(K)
    weights, z, score = written_out(g, v, e, t, mode)
    rule = Rule(mode, guard=False)
    if mode == "unit":
        g, v, e = (normalize(x, dim=-1) for x in (g, v, e))
    w, guarded = weigh(*fits(e, v, rule), torch.ones(K, dtype=torch.bool), rule)
    assert not guarded
    assert w.tolist() == pytest.approx(weights, abs=1e-6)
    torch.testing.assert_close(compose(g, v, w), z, rtol=1e-6, atol=1e-6)
    assert float(gram_scores(t[None], g, v, w[None])[0]) == pytest.approx(score, abs=1e-6)
    # CLIP's scale cancels in the weights, and with positive fits the guard changes nothing.
    if mode != "gclip":
        fit, cosine = fits(e, v, rule)
        torch.testing.assert_close(weigh(100 * fit, cosine, torch.ones(K, dtype=torch.bool), rule)[0], w)
    torch.testing.assert_close(weigh(*fits(e, v, rule), torch.ones(K, dtype=torch.bool), replace(rule, guard=True))[0], w)


def test_blip2_is_the_formula_written_out():
    Q, W, K = 4, 6, 3
    whole, views, projection, bias = numbers(Q, W), numbers(K, Q, W, seed=1), numbers(D, W, seed=2), numbers(D, seed=3)
    words, text = normalize(numbers(K, D, seed=4), dim=-1), normalize(numbers(D, seed=5), dim=-1)

    def project(token):
        out = projection @ token + bias
        return out / out.norm()

    fit = [max(float(project(views[k, q]) @ words[k]) for q in range(Q)) for k in range(K)]
    z = [whole[q] + sum(fit[k] / sum(fit) * views[k, q] for k in range(K)) for q in range(Q)]
    score = max(float(project(x / x.norm()) @ text) for x in z)
    assert float(blip2_score(whole, views, words, text, projection, bias)) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("mode", ["unit", "raw", "gclip"])
def test_captions_of_any_number_of_words_at_once_equal_a_loop_over_them(mode):
    """The bank of an image's sub-images is shared; a caption weighs 0 to 5 of them."""
    rule, rng = Rule(mode), np.random.default_rng(0)
    g, bank, texts = numbers(D), numbers(9, D, seed=1), numbers(500, D, seed=2)
    if mode == "unit":
        g, bank = normalize(g, dim=-1), normalize(bank, dim=-1)
    chosen = [rng.choice(9, size=rng.integers(0, 6), replace=False) for _ in range(500)]
    words = [numbers(len(own), D, seed=10 + c) for c, own in enumerate(chosen)]
    table, loop = torch.zeros(500, 9, dtype=torch.float64), []
    for c, own in enumerate(chosen):
        w, _ = weigh(*fits(words[c], bank[own], rule), torch.ones(len(own), dtype=torch.bool), rule)
        table[c, own] = w
        loop.append(cosine_similarity(compose(g, bank[own], w), texts[c], dim=0))
    fast, slow = gram_scores(texts, g, bank, table), torch.stack(loop)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    single = gram_scores(texts.float(), g.float(), bank.float(), table.float())
    torch.testing.assert_close(single.double(), slow, rtol=0, atol=1e-5)
    assert torch.equal(single.argsort(stable=True)[:50], slow.argsort(stable=True)[:50])


@pytest.mark.parametrize("mode", ["unit", "raw"])
def test_where_nothing_is_matched_the_score_is_clips(mode):
    g, _, e, t = similar(3)
    if mode == "unit":
        g, e = normalize(g, dim=-1), normalize(e, dim=-1)
    views = g.expand(3, -1)
    w, _ = weigh(*fits(e, views, Rule(mode)), torch.ones(3, dtype=torch.bool), Rule(mode))
    torch.testing.assert_close(compose(g, views, w), 2 * g)
    assert float(gram_scores(t[None], g, views, w[None])[0]) == pytest.approx(float(cosine_similarity(g, t, dim=0)), abs=1e-12)


PRESENT = torch.tensor([[True, True], [True, True], [True, True], [False, False], [True, False]])
COSINES = torch.tensor([[-0.2, -0.1], [0.2, -0.2], [1e-5, -1e-5], [0.3, 0.3], [0.2, 0.9]])


@pytest.mark.parametrize("weight", ["ratio", "softmax", "uniform"])
def test_the_guard_keeps_the_image_where_no_word_fits(weight):
    w, guarded = weigh(COSINES, COSINES, PRESENT, Rule(weight=weight))
    assert guarded.tolist() == [True, False, True, False, False]  # no words is not the guard's case
    assert torch.isfinite(w).all()
    assert (w[[0, 2, 3]] == 0).all()
    torch.testing.assert_close(w[[1, 4]].sum(1), torch.ones(2))
    if weight == "ratio":
        assert w[1].tolist() == [1, 0]  # a negative fit weighs nothing
    assert w[4].tolist() == [1, 0]


def test_without_the_guard_weights_are_the_papers_even_where_they_blow_up():
    w, guarded = weigh(COSINES, COSINES, PRESENT, Rule(guard=False))
    assert not guarded.any()
    assert w[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert not torch.isfinite(w[1]).any()  # 0.2 - 0.2
    assert w[3].tolist() == [0, 0]


def test_beta_is_the_sum_of_weights_and_uniform_is_even():
    for beta in (0.0, 0.5, 2.0):
        w, _ = weigh(COSINES[1:2].abs(), COSINES[1:2].abs(), PRESENT[1:2], Rule(beta=beta, weight="uniform"))
        assert w[0].tolist() == pytest.approx([beta / 2] * 2)
    g, v, e, t = similar(2)
    w, _ = weigh(*fits(e, v, Rule(beta=0.0)), torch.ones(2, dtype=torch.bool), Rule(beta=0.0))
    assert float(gram_scores(t[None], g, v, w[None])[0]) == pytest.approx(float(cosine_similarity(g, t, dim=0)))


@pytest.mark.parametrize(
    "wrong",
    [{"beta": -1.0}, {"tau": 0.0}, {"min_score": math.inf}, {"mode": "gclip", "weight": "uniform"}, {"mode": "other"}, {"fill": "red"},
     {"regions": "file"}, {"regions": "grid", "regions_file": [{"image": "a", "regions": []}]}, {"phrase": "word"}, {"max_regions": 0},
     {"choice_tau": 0.0}, {"relation": "whole"}],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError):
        ComCLIPConfig(**wrong)


# -- sub-images ----------------------------------------------------------------------------------------------------
def papers_sub_image(image, boxes):
    """The paper's pipeline: a rectangle of Pillow (its ends included) for each box, overlaid by luminance on black."""
    out = Image.new("RGB", image.size)
    for box in boxes:
        mask = Image.new("L", image.size, 0)
        ImageDraw.Draw(mask).rectangle(box, fill=255)
        one = Image.composite(image, Image.new("RGB", image.size), mask)
        out.paste(one, mask=one.convert("L").point(lambda x: 255 if x > 0 else 0))
    return out


@pytest.mark.parametrize(
    "boxes", [[(10, 5, 40, 30)], [(0, 0, 89, 69)], [(10, 5, 40, 30), (30, 20, 70, 60)], [(3, 3, 3, 3)], [(80, 60, 200, 200)]]
)
def test_black_sub_images_are_the_papers(boxes):
    pixels = np.array(picture())
    pixels[10:20, 20:35] = 0  # true black inside a box: it is outside of the paper's overlay, and as black
    image = Image.fromarray(pixels)
    masks = [box_mask((l, t, r + 1, b + 1), image.size) for l, t, r, b in boxes]
    own = sub_image(image, np.any(masks, axis=0))
    assert np.array_equal(np.asarray(own), np.asarray(papers_sub_image(image, boxes)))
    assert np.array_equal(clip_pixels(own, 64), clip_pixels(papers_sub_image(image, boxes), 64))


def test_other_fills_leave_the_inside_and_change_the_outside():
    image, mask = picture(), box_mask((20, 10, 50, 40), (90, 70))
    for fill in ("mean", "blur"):
        out = np.asarray(sub_image(image, mask, fill))
        assert np.array_equal(out[mask], np.asarray(image)[mask])
        assert (out[~mask] != np.asarray(image)[~mask]).any(-1).mean() > 0.9
    assert (np.asarray(sub_image(image, mask, "mean"))[~mask] == MEAN_COLOUR).all()
    assert np.array_equal(np.asarray(sub_image(image, mask, "crop")), np.asarray(image)[10:40, 20:50])


@pytest.mark.parametrize("square", [(0, 0, 64), (10.5, 0, 69), (0, 0, 1), (3, 0, 2)])
def test_windows_are_nine_halves_and_twentyfive_thirds_inside_the_square(square):
    left, top, side = square
    boxes = grid_boxes(left, top, side)
    assert boxes.shape == (34, 4)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes[:, 0].min() >= math.floor(left)
    assert (boxes[:, 2:].max(0) <= np.ceil([left + side, top + side])).all()
    if side == 64:
        sides = boxes[:, 2] - boxes[:, 0]
        assert set(sides[:9]) == {32}
        assert set(sides[9:]) <= {21, 22}
        covered = np.any([box_mask(box, (64, 64)) for box in boxes.tolist()], axis=0)
        assert covered.all()


def test_shares_of_patches_are_counts_of_pixels():
    segments = np.zeros((32, 32), int)
    segments[:, 8:] = 1
    shares = patch_shares(segments, 2)
    assert shares.tolist() == [[0.5, 0, 0.5, 0], pytest.approx([1 / 6, 1 / 3, 1 / 6, 1 / 3])]


def test_segments_follow_edges():
    pixels = np.zeros((3, 64, 64), np.uint8)
    pixels[:, :, 32:] = 255
    segments = slic_segments(pixels)
    assert set(np.unique(segments)) == set(range(segments.max() + 1))
    assert not set(segments[:, :31].reshape(-1)) & set(segments[:, 33:].reshape(-1))


# -- attributes and objects ----------------------------------------------------------------------------------------
SETTINGS = [
    {"regions": "grid"}, {"regions": "grid", "mode": "raw", "relation": "union", "beta": 0.7}, {"regions": "patch", "mode": "gclip"},
    {"regions": "patch", "relation": "union"}, {"regions": "superpixel", "choice": "top", "include_whole": False},
    {"regions": "grid", "fill": "crop", "weight": "softmax", "tau": 0.05}, {"regions": "grid", "weight": "uniform", "mode": "raw"},
]  # fmt: skip


def prepared(method, count=3):
    rows = [method.prepare(picture(seed=i), f"{i}.png") for i in range(count)]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def pair_by_pair(method, images, text):
    """Scores, each from its own composed image."""
    config, out = method.config, []
    for b in range(len(images.whole)):
        for p, (a, o) in enumerate(text.pairs.tolist()):
            words, views = [text.attribute[a], text.object[o]], []
            here = images.present[b]
            for word in words:
                cosine = cosine_similarity(images.regions[b, here], word[None], dim=-1)
                pick = (cosine / config.choice_tau).softmax(0) if config.choice == "soft" else (cosine == cosine.max()).to(cosine)
                view = pick @ images.regions[b, here]
                views.append(normalize(view, dim=0) if config.mode == "unit" else view)
            if config.relation == "union":
                both = views[0] + views[1]
                words, views = [*words, text.both[p]], [*views, normalize(both, dim=0) if config.mode == "unit" else both / 2]
            words, views = torch.stack(words), torch.stack(views)
            w, _ = weigh(*fits(words, views, config.rule), torch.ones(len(words), dtype=torch.bool), config.rule)
            out.append(cosine_similarity(compose(images.whole[b], views, w), text.pair[p], dim=0))
    return torch.stack(out).view(len(images.whole), -1)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@torch.no_grad()
def test_scores_of_pairs_equal_images_composed_one_by_one(small_clip, small_space, settings):
    method = build("comclip", small_space, small_clip, settings)
    pairs = torch.from_numpy(small_space.open_pairs)
    images, text = method.encode_images(prepared(method)), method.encode_compositions(pairs)
    scale = small_clip.logit_scale
    torch.testing.assert_close(method.scores(images, text), scale * pair_by_pair(method, images, text), rtol=1e-5, atol=1e-5)
    for width in (16, 19):
        tiles = [method.scores(images, text.tile(s, s + width)) for s in range(0, len(pairs), width)]
        torch.testing.assert_close(torch.cat(tiles, 1), method.scores(images, text), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_regions_scores_are_clips(small_clip, small_space):
    pairs = torch.from_numpy(small_space.open_pairs)
    plain = build("zero-shot", small_space, small_clip, {})
    batch = {"images": prepared(plain)["images"]}
    expected = plain.scores(plain.encode_images(batch), plain.encode_compositions(pairs))
    empty = [{"image": "other.png", "regions": []}]
    outside = [{"image": f"{i}.png", "regions": [{"phrase": "x", "box": [500, 500, 600, 600]}]} for i in range(3)]
    for settings in (
        {"regions": "whole"}, {"regions": "whole", "mode": "raw"}, {"regions": "file", "regions_file": empty},
        {"regions": "file", "regions_file": outside}, {"regions": "grid", "beta": 0.0}, {"regions": "grid", "min_score": 1.0},
    ):  # fmt: skip
        method = build("comclip", small_space, small_clip, settings)
        own = method.scores(method.encode_images(prepared(method)), method.encode_compositions(pairs))
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def region(box, score=None):
    return {"phrase": "x", "box": box} | ({} if score is None else {"score": score})


@torch.no_grad()
def test_an_images_regions_come_from_the_file_and_others_do_not_matter(small_clip, small_space):
    records = [
        {"image": "0.png", "regions": [region([0, 0, 45, 70], 0.2), region([45, 0, 90, 70], 0.9)]},
        {"image": "1.png", "regions": [region([10, 10, 50, 50])]},
    ]
    method = build("comclip", small_space, small_clip, {"regions": "file", "regions_file": records, "max_regions": 4})
    batch = prepared(method)
    assert batch["present"].tolist() == [[True, True, False, False], [True, False, False, False], [False] * 4]
    best = sub_image(picture(seed=0), box_mask((45, 0, 90, 70), (90, 70)))
    assert np.array_equal(batch["regions"][0, 0].numpy(), clip_pixels(best, small_clip.image_size))
    encoded = method.encode_images(batch)
    assert encoded.present.tolist() == [[True, True, False, False, True], [True, False, False, False, True], [False] * 4 + [True]]
    alone = method.encode_images({key: value[1:2] for key, value in batch.items()})
    pairs = method.encode_compositions(torch.from_numpy(small_space.closed_pairs))
    torch.testing.assert_close(method.scores(alone, pairs), method.scores(encoded, pairs)[1:2], rtol=1e-5, atol=1e-5)
    other = build("comclip", small_space, small_clip, {"regions": "file", "regions_file": records[:1], "max_regions": 4})
    assert len({method.cache_key, other.cache_key, build("comclip", small_space, small_clip, {}).cache_key}) == 3


@torch.no_grad()
def test_the_guard_is_counted_a_pair(small_clip, small_space):
    method = build("comclip", small_space, small_clip, {"min_score": 0.999})
    encoded = method.encode_images(prepared(method))
    parts = pair_parts(encoded, method.encode_compositions(torch.from_numpy(small_space.closed_pairs)), method.config)
    assert parts.guarded.all()
    assert (parts.weight == 0).all()


@pytest.mark.parametrize("regions", ["grid", "patch", "superpixel", "whole", "file"])
def test_an_explanation_shows_weights_and_where_the_words_look(small_clip, small_space, regions):
    settings = {"regions": regions}
    if regions == "file":
        settings["regions_file"] = [{"image": "x.png", "regions": [{"phrase": "x", "box": [5, 5, 60, 50]}]}]
    method = build("comclip", small_space, small_clip, settings).eval()
    found = method.explain(picture((120, 70)), ("wet", "dog"), "x.png")
    kinds = [type(part).__name__ for part in found.parts]
    assert kinds == ["Figures"] * 3 + ([] if regions == "whole" else ["HeatMap", "HeatMap", "Boxes"])
    words = found.parts[1]
    assert [row[:2] for row in words.rows] == [["attribute", "wet"], ["object", "dog"]]
    with torch.inference_mode():
        batch = {k: v[None] for k, v in method.prepare(picture((120, 70)), "x.png").items()}
        pair = method.encode_compositions(torch.tensor([[0, 0]]))
        expected = float(method.scores(method.encode_images(batch), pair)[0, 0])
    assert found.parts[2].rows[1][2] == pytest.approx(expected, abs=1e-3)
    for part in found.parts[3:5]:
        assert part.values.sum() + part.elsewhere == pytest.approx(1, abs=1e-5)
        assert part.values.min() >= 0


def test_an_image_without_regions_says_so(small_clip, small_space):
    records = [{"image": "other.png", "regions": [{"phrase": "x", "box": [0, 0, 5, 5]}]}]
    method = build("comclip", small_space, small_clip, {"regions": "file", "regions_file": records, "min_score": 0.99}).eval()
    notes = method.explain(picture(), ("wet", "dog"), "x.png").notes
    assert any("no regions" in note for note in notes)
    assert any("no word" in note for note in notes)
