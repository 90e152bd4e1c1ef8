"""GDE: directions against the public code's numbers and plain arithmetic; the method's choices, updates, words and explanations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from czsl.classes import ClassSpace
from czsl.compositions import CompositionSpace
from czsl.errors import DataError, UsageError
from czsl.retrieval.index import CompositionIndex
from czsl.retrieval.topk import top_compositions
from methods.building import build
from methods.explanation import Examples, Neighbours, ScoredImage, Shares
from methods.gde import directions
from methods.gde.geometry import exp_map, log_map, pair_weights, solve, sphere_mean

N = 90


def units(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def images(small_space, small_clip, generator):
    """Features near to a common centre and their labels, several images for each training pair."""
    pairs = torch.from_numpy(small_space.train_pairs.copy())[torch.arange(N) % len(small_space.train_pairs)]
    base = units(generator, small_clip.dim) * 2
    own = torch.randn(11, small_clip.dim, generator=generator, dtype=torch.float64) / 6
    noise = torch.randn(N, small_clip.dim, generator=generator, dtype=torch.float64) / 12
    return (base + own[pairs[:, 0]] + own[6 + pairs[:, 1]] + noise).float(), pairs[:, 0], pairs[:, 1]


def fitted(space, clip, images, judge=None, **settings):
    method = build("gde", space, clip, settings).eval()
    method.judge = judge
    method.initialise(*images)
    method.judge = None
    return method


# -- geometry ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", ["uniform", "clip_T0.05", "clip_T0.2"])
@pytest.mark.parametrize(("geometry", "code"), [("sphere", "GDE"), ("linear", "LDE")])
def test_directions_are_those_of_the_public_code(reference, geometry, code, weights):
    known = reference("gde_reference")
    x, attr, obj = known["images"], known["attr"], known["obj"]
    text = known["text_all_pairs"][attr * 7 + obj]
    given = None if weights == "uniform" else ((x * text).sum(1) / float(weights[6:])).exp()
    found = directions(x, attr, obj, geometry=geometry, weights=given)
    for name, value in (("mean", found.mean), ("attr", found.attributes), ("obj", found.objects)):
        torch.testing.assert_close(value, known[f"{code}/{weights}/{name}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pairs(known["all_pairs"]), known[f"{code}/{weights}/pairs"], rtol=0, atol=1e-5)


def test_the_maps_of_the_sphere_undo_each_other(generator):
    at, points = units(generator, 12), units(generator, 40, 12)
    moves = log_map(at, points)
    torch.testing.assert_close(exp_map(at, moves), points)
    torch.testing.assert_close(moves @ at, torch.zeros(40, dtype=torch.float64))
    torch.testing.assert_close(moves.norm(dim=1), torch.acos(points @ at))
    assert torch.equal(log_map(at, at[None]), torch.zeros(1, 12, dtype=torch.float64))
    torch.testing.assert_close(exp_map(at, torch.zeros(1, 12, dtype=torch.float64))[0], at)


def test_the_mean_of_the_sphere_has_no_way_left_to_go(generator):
    points, weights = (
        normalize(units(generator, 30, 9) + 2 * units(generator, 9), dim=-1),
        torch.rand(30, generator=generator).double(),
    )
    mean = sphere_mean(points, weights)
    assert (weights @ log_map(mean, points) / weights.sum()).norm() < 1e-5


def test_weights_of_a_pair_sum_to_1_and_large_logits_do_not_overflow(generator):
    place = torch.tensor([0, 2, 2, 0, 2])
    logits = torch.tensor([1000.0, -3000.0, -3001.0, 999.0, -3000.0], dtype=torch.float64)
    weights, mass = pair_weights(logits, place, 4)
    torch.testing.assert_close(weights[[0, 3]].sum() + weights[[1, 2, 4]].sum(), torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(weights[0] / weights[3], torch.tensor(math.e, dtype=torch.float64))
    assert mass.isinf().tolist() == [False, True, False, True]


def test_the_order_of_images_means_nothing(images):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    one, other = directions(*images), directions(*(x[order] for x in images))
    torch.testing.assert_close(one.attributes, other.attributes, rtol=0, atol=1e-7)
    assert one.attributes.norm() > 0.1


def test_on_a_full_grid_least_squares_is_the_published_form(generator):
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(3))
    features = units(generator, 24, 16).float()
    means, ridge = (directions(features, *grid.repeat(2, 1).T, fit=fit) for fit in ("mean", "ridge"))
    torch.testing.assert_close(means.pairs(grid), ridge.pairs(grid), rtol=0, atol=1e-6)
    uneven = grid[[0, 1, 3, 5, 6, 7, 8, 10, 11, 0, 1, 3, 5, 6, 7, 8, 10, 11]]
    means, ridge = (directions(features[:18], *uneven.T, fit=fit) for fit in ("mean", "ridge"))
    assert (means.pairs(grid) - ridge.pairs(grid)).abs().max() > 0.01


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_the_ridge_fit_is_least_squares_of_the_stacked_system(generator, ridge):
    pairs = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 0], [2, 2]])
    means = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    design = np.zeros((5, 7))
    for row, (a, o) in enumerate(pairs.tolist()):
        design[row, a] = design[row, 4 + o] = 1  # attribute 3 has no pair
    stacked = np.concatenate([design, math.sqrt(ridge) * np.eye(7)]), np.concatenate([means.numpy(), np.zeros((7, 6))])
    wanted = np.linalg.lstsq(*stacked, rcond=None)[0]
    found = solve(means, pairs, 4, 3, "ridge", ridge)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-9)
    assert not found[3].any()


def test_directions_refuse_what_they_cannot_use(images):
    features, attr, obj = images
    for arguments, settings in (
        ((features[:0], attr[:0], obj[:0]), {}),
        ((features, attr[1:], obj), {}),
        ((features, attr, obj), {"geometry": "torus"}),
        ((features, attr, obj), {"weights": torch.full((N,), -1.0)}),
        ((features, attr, obj), {"weights": (obj > 0).float()}),
    ):
        with pytest.raises(ValueError):
            directions(*arguments, **settings)


# -- the method --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("geometry", ["sphere", "linear"])
def test_the_method_without_text_is_the_closed_form(small_space, small_clip, images, geometry):
    method = fitted(small_space, small_clip, images, geometry=geometry, fit="mean", weights="uniform", text=0.0)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(5))  # images show no other attribute
    closed = normalize(directions(*images, geometry=geometry).pairs(pairs), dim=-1)
    torch.testing.assert_close(method.encode_pairs(pairs), closed, rtol=0, atol=2e-6)
    text = torch.cat([normalize(small_clip.text.encode([method.pair_prompt(p) for p in pairs.tolist()]), dim=-1)])
    mixed = fitted(small_space, small_clip, images, geometry=geometry, fit="mean", weights="uniform", text=0.25)
    torch.testing.assert_close(mixed.encode_pairs(pairs), 0.25 * text + 0.75 * method.encode_pairs(pairs), rtol=0, atol=2e-6)


def test_what_the_settings_leave_open_is_chosen_by_the_judge(small_space, small_clip, images):
    asked = []

    def likes(share, ridge, temperature):
        def judge():
            asked.append(tuple(method.chosen.tolist()))
            t, r, s = asked[-1]
            return -abs(s - share) - abs(math.log(max(r, 1e-6) / ridge)) - (0 if t == pytest.approx(temperature) else 1)

        return judge

    method = build("gde", small_space, small_clip, {}).eval()
    method.judge = likes(0.35, 3.0, 0.05)
    method.initialise(*images)
    assert method.chosen.tolist() == pytest.approx([0.05, 3.0, 0.35])
    assert method.metrics() == {"text": 0.35, "ridge": 3.0, "temperature": 0.05}
    # What stands at the end is the fit with what was chosen, not what was tried last.
    again = fitted(small_space, small_clip, images, temperature=0.05, ridge=3.0, text=0.35)
    for key, value in again.state_dict().items():
        assert torch.equal(value, method.state_dict()[key]), key
    asked.clear()
    method = build("gde", small_space, small_clip, {"temperature": 0.1, "ridge": 1.0, "text": 0.5}).eval()
    method.judge = likes(0.35, 3.0, 0.05)
    method.initialise(*images)
    assert not asked
    assert method.chosen.tolist() == pytest.approx([0.1, 1.0, 0.5])


def test_a_higher_share_of_clip_weights_goes_to_images_that_fit_the_prompt(small_space, small_clip, images):
    method = fitted(small_space, small_clip, images, temperature=0.01, text=0.0)
    even = fitted(small_space, small_clip, images, weights="uniform", text=0.0)
    pairs = torch.from_numpy(small_space.train_pairs.copy())
    words = normalize(small_clip.text.encode([method.pair_prompt(p) for p in pairs.tolist()]), dim=-1)
    mean, uniform = (exp_map(m.mean, m.pair_means) for m in (method, even))
    assert ((mean * words).sum(1) > (uniform * words).sum(1)).all()


@pytest.mark.parametrize("geometry", ["sphere", "linear"])
@pytest.mark.parametrize("weights", ["uniform", "clip"])
def test_images_added_in_parts_are_images_added_at_once(small_space, small_clip, images, geometry, weights):
    """In the linear geometry also the same as one pass over all of them."""
    settings = {"geometry": geometry, "weights": weights, "temperature": 0.1, "ridge": 1.0, "text": 0.0}
    start = tuple(x[:40] for x in images)
    parts, once = (fitted(small_space, small_clip, start, **settings) for _ in range(2))
    for rows in (slice(40, 41), slice(41, 70), slice(70, N)):
        parts.add_images(*(x[rows] for x in images))
    once.add_images(*(x[40:] for x in images))
    pairs = torch.from_numpy(small_space.open_pairs)
    torch.testing.assert_close(parts.encode_pairs(pairs), once.encode_pairs(pairs), rtol=0, atol=1e-6)
    whole = fitted(small_space, small_clip, images, **settings)
    assert torch.equal(once.pair_images, whole.pair_images)
    before = fitted(small_space, small_clip, start, **settings).encode_pairs(pairs)
    # On the sphere the tangent space stays where it was: near to one pass over all, not the same.
    atol = 1e-5 if geometry == "linear" else 0.1 * float((before - whole.encode_pairs(pairs)).abs().max())
    torch.testing.assert_close(once.encode_pairs(pairs), whole.encode_pairs(pairs), rtol=0, atol=atol)


def test_new_words_and_pairs_get_directions_from_added_images(small_space, small_clip, images):
    method = fitted(small_space, small_clip, images, text=0.5)
    attributes = (*small_space.attributes, "frosted")
    train = np.concatenate([small_space.train_pairs, [[6, 0]]])
    grown = CompositionSpace(attributes, small_space.objects, train, small_space.val_pairs, small_space.test_pairs)
    other = method.for_space(grown)
    kept = torch.from_numpy(small_space.open_pairs)
    torch.testing.assert_close(other.encode_pairs(kept), method.encode_pairs(kept), rtol=0, atol=1e-6)
    assert not other.directions[6].any()
    assert "frosted" in other.notes()[0]
    other.add_images(images[0][:3], torch.full((3,), 6), torch.zeros(3, dtype=torch.int64))
    assert other.directions[6].norm() > 0.01
    assert int(other.pair_images[-1]) == 3
    assert "frosted" not in " ".join(other.notes())


def test_words_without_images_are_refused_where_nothing_would_tell_them_apart(small_space, small_clip, images):
    method = fitted(small_space, small_clip, images, text=0.0)
    other = CompositionSpace((*small_space.attributes, "frosted"), small_space.objects, *([np.zeros((0, 2))] * 3))
    with pytest.raises(UsageError, match="cannot name frosted") as error:
        method.for_space(other)
    assert "czsl add" in error.value.fix
    assert fitted(small_space, small_clip, images, text=0.5).for_space(other).space == other


def test_what_images_do_not_show_is_named_and_nothing_is_nan(small_space, small_clip, images):
    features, attr, obj = images
    some = attr != 0
    method = fitted(small_space, small_clip, (features[some], attr[some], obj[some]), text=0.0, fit="mean")
    assert not method.directions[0].any()
    assert "no training image and a zero direction: wet" in method.notes()[0]
    assert "text=0" in method.notes()[0]
    assert torch.isfinite(method.encode_pairs(torch.from_numpy(small_space.open_pairs))).all()
    # All images alike: every direction is zero.
    alike = fitted(small_space, small_clip, (features[:1].expand(N, -1), attr, obj), text=0.0)
    assert "is zero although they have images" in " ".join(alike.notes())
    assert torch.isfinite(alike.encode_pairs(torch.from_numpy(small_space.open_pairs))).all()
    single = fitted(small_space, small_clip, tuple(x[:14] for x in images), judge=lambda: 0.5)
    assert "single image" in " ".join(single.notes())
    assert math.isinf(single.temperature)
    with pytest.raises(DataError, match="no training images"):
        fitted(small_space, small_clip, tuple(x[:0] for x in images))


@pytest.mark.parametrize(
    "settings", [{"text": 1.5}, {"text": -0.1}, {"ridge": -1.0}, {"temperature": 0.0}, {"ridge": math.nan}, {"geometry": "torus"}]
)
def test_settings_that_cannot_be_are_refused(small_space, small_clip, settings):
    with pytest.raises(UsageError, match=r"GDE|not a choice"):
        build("gde", small_space, small_clip, settings)


@pytest.mark.parametrize("text", [0.0, 0.4])
def test_the_index_gives_the_exact_best_compositions(small_space, small_clip, images, text):
    method = fitted(small_space, small_clip, images, text=text)
    pairs = small_space.open_pairs
    encoded = method.embed_images(images[0][:7])
    index = CompositionIndex.build(method.encode_pairs(torch.from_numpy(pairs)).numpy(), pairs)
    query = method.retrieval_query(encoded, method.encode_compositions(torch.from_numpy(pairs[:0])), len(pairs))
    found = top_compositions(index, query.query.numpy(), k=5)
    scores = method.scores(encoded, method.encode_compositions(torch.from_numpy(pairs)))
    assert found.places.tolist() == scores.argsort(dim=1, descending=True, stable=True)[:, :5].tolist()
    np.testing.assert_allclose(found.scores, scores.sort(dim=1, descending=True)[0][:, :5].numpy(), rtol=1e-5)


@pytest.mark.parametrize("geometry", ["sphere", "linear"])
def test_an_explanation_adds_up_to_the_score_and_shows_images_along_the_directions(small_space, small_clip, images, geometry):
    method = fitted(small_space, small_clip, images, geometry=geometry, text=0.3)
    pairs = torch.from_numpy(small_space.closed_pairs)
    encoded, text = method.embed_images(images[0][:1]), method.encode_compositions(pairs)

    def examples(a, o):
        rows = ((images[1] == a) | (images[2] == o)).nonzero()[:, 0]
        return Examples(images[0][rows], images[1][rows].numpy(), images[2][rows].numpy())

    scored = ScoredImage(None, "0", encoded, text, method.logits(encoded, text), examples)
    explained = method.explain_candidate(scored, 3)
    shares = next(part for part in explained.parts if isinstance(part, Shares))
    assert shares.totals[0] == pytest.approx(float(method.scores(encoded, text)[0, 3]), rel=1e-5)
    assert shares.values.sum() == pytest.approx(shares.totals[0])
    attribute, obj = small_space.pair_names(pairs[3].tolist())
    assert [part for part in shares.parts if "direction" in part] == [f"the direction of {attribute}", f"the direction of {obj}"]
    galleries = [part for part in explained.parts if isinstance(part, Neighbours)]
    assert [g.title.split(" (")[0] for g in galleries] == [f"The direction of {attribute}", f"The direction of {obj}"]
    assert all(g.cosines == sorted(g.cosines, reverse=True) and len(g.places) == 6 for g in galleries)


def test_plain_classes_are_nearest_class_means_with_text_for_unseen_ones(small_clip, generator):
    names = ["dog", "cat", "cup", "tree", "apple"]
    space = ClassSpace.of(names, names[:4], names[:2] + names[4:], names)
    centres = units(generator, 4, small_clip.dim)
    features = (centres[torch.arange(40) % 4] + 0.05 * torch.randn(40, small_clip.dim, generator=generator)).float()
    images = features, torch.zeros(40, dtype=torch.int64), torch.arange(40) % 4
    method = fitted(space, small_clip, images, text=0.1, fit="mean")
    scores = method.scores(method.embed_images(features), method.encode_compositions(torch.from_numpy(space.closed_pairs)))
    assert (scores[:, :4].argmax(1) == images[2]).all()
    assert torch.isfinite(scores).all()
    assert "apple" in method.notes()[0]
