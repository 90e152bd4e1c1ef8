"""`methods.contract`, checked for every registered method, and on plain classes for those that take them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from czsl.classes import ClassSpace
from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from methods.building import build
from methods.registry import METHODS, method_class

BATCH = 6


CASES = [(name, False) for name in sorted(METHODS)] + [(name, True) for name in sorted(METHODS) if method_class(name).classes]


@pytest.fixture
def class_space():
    """Twenty-four classes, fourteen of them seen."""
    names = ["dog", "coffee_table", "Boots.Mid-Calf", *(f"kind {i}" for i in range(21))]
    return ClassSpace.of(names, names[:14], names[:18], names[:14] + names[18:])


@pytest.fixture(params=CASES, ids=[name + (" on classes" if classes else "") for name, classes in CASES])
def method(request, small_clip, small_space, class_space):
    torch.manual_seed(0)
    name, classes = request.param
    return build(name, class_space if classes else small_space, small_clip, {}).eval()


@pytest.fixture
def images(small_clip):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (BATCH, 3, small_clip.image_size, small_clip.image_size), generator=generator, dtype=torch.uint8)


def training_batch(method, images) -> dict:
    pairs = method.space.train_pairs[np.arange(BATCH) % len(method.space.train_pairs)]
    place = method.space.locate(pairs, method.space.train_pairs)
    labels = {"attr": pairs[:, 0], "obj": pairs[:, 1], "pair": place}
    batch = {"images": images, **{k: torch.from_numpy(v.copy()) for k, v in labels.items()}}
    if method.frozen_images:
        with torch.no_grad():
            batch["features"] = method.image_features({"images": batch.pop("images")})
    return batch


def test_prepare_gives_the_bytes_of_the_clip_pipeline(method):
    prepared = method.prepare(Image.new("RGB", (90, 70), (255, 0, 0)), "some/image.jpg")
    assert prepared["images"].shape == (3, method.clip.image_size, method.clip.image_size)
    assert prepared["images"].dtype == torch.uint8


@torch.no_grad()
def test_any_tile_of_pairs_gives_the_scores_of_the_whole(method, images):
    pairs = torch.from_numpy(method.space.open_pairs)
    sides = method.encode_images({"images": images}), method.encode_compositions(pairs)
    whole = method.scores(*sides)
    assert whole.shape == (BATCH, len(pairs))
    assert torch.isfinite(whole).all()
    for width in (16, 21):
        tiles = [method.scores(sides[0], sides[1].tile(s, s + width)) for s in range(0, len(pairs) - len(pairs) % width, width)]
        torch.testing.assert_close(torch.cat(tiles, dim=1), whole[:, : width * len(tiles)], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_question_to_an_index_is_the_score(method, images):
    if not method.indexable:
        return
    pairs = torch.from_numpy(method.space.open_pairs)
    sides = method.encode_images({"images": images}), method.encode_compositions(pairs)
    primitives = method.encode_compositions(pairs[:0])  # an index holds the pairs, so nobody encodes them again
    asked = method.retrieval_query(sides[0], primitives, len(pairs))
    scores = asked.query @ sides[1].pair.T
    if asked.probability is not None:
        scores = asked.probability * scores.softmax(1)
    if asked.attribute is not None:
        assert asked.attribute.min() >= 0 and asked.object.min() >= 0
        join = torch.add if asked.combine == "sum" else torch.mul
        scores = scores + join(asked.attribute[:, pairs[:, 0]], asked.object[:, pairs[:, 1]])
    torch.testing.assert_close(scores, method.scores(*sides), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_scores_follow_from_the_composition_logits_that_an_adaptation_moves(method, images):
    assert type(method.config).adaptable == method.adaptable  # what commands read without building the method
    if not method.adaptable:
        return
    sides = method.encode_images({"images": images}), method.encode_compositions(torch.from_numpy(method.space.closed_pairs))
    logits = method.logits(*sides)[0]
    assert torch.equal(method.rescored(logits, *sides), method.scores(*sides))
    torch.testing.assert_close(logits, method.pair_scale * sides[0].pair @ sides[1].pair.T, rtol=1e-5, atol=1e-5)
    raised = logits.clone()
    raised[:, 0] += 1
    assert (method.rescored(raised, *sides)[:, 0] > method.scores(*sides)[:, 0]).all()


@torch.no_grad()
def test_probabilities_follow_the_scores_and_sum_to_one(method, images):
    scores = method.score_images(images, torch.from_numpy(method.space.closed_pairs))
    prob = method.probabilities(scores)
    assert prob.dtype == torch.float64
    torch.testing.assert_close(prob.sum(1), torch.ones(BATCH, dtype=torch.float64))
    assert (prob >= 0).all()
    assert torch.equal(prob.argsort(dim=1, stable=True), scores.double().argsort(dim=1, stable=True))


@torch.no_grad()
def test_an_image_is_scored_the_same_in_any_company(method, images):
    pairs = torch.from_numpy(method.space.closed_pairs)
    together = method.score_images(images, pairs)
    turned = method.score_images(images.flip(0), pairs).flip(0)
    torch.testing.assert_close(turned, together, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_branch_logits_have_the_shapes_of_the_branches(method, images):
    logits = method.branch_logits(images, torch.from_numpy(method.space.closed_pairs))
    widths = [len(method.space.closed_pairs), method.space.num_attributes, method.space.num_objects]
    assert [x.shape for x in logits] == [(BATCH, w) for w in widths[: len(logits)]]
    assert len(logits) in (1, 3)


def test_a_training_step_reaches_what_is_trained_and_nothing_else(method, images):
    if not (method.trains and method.steps):
        assert not list(method.parameters())
        return
    method.train()
    batch = training_batch(method, images)
    if method.needs_initialisation:
        with torch.no_grad():
            features = batch.get("features", method.image_features({"images": images}))
            method.initialise(features, batch["attr"], batch["obj"])
    terms = method.training_step(batch)
    loss = torch.stack(list(terms.values())).sum()
    assert torch.isfinite(loss)
    loss.backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached
    assert all(p.grad is None for p in method.clip.parameters())
    assert not any(p.requires_grad for p in method.clip.parameters())


def test_training_lowers_the_loss(method, images):
    if not (method.trains and method.steps):
        pytest.skip("takes no steps")
    method.train()
    batch = training_batch(method, images)
    if method.needs_initialisation:
        with torch.no_grad():
            method.initialise(batch.get("features", method.image_features({"images": images})), batch["attr"], batch["obj"])
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(25):
        method.comm.step_seed = step
        loss = torch.stack(list(method.training_step(batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@torch.no_grad()
def test_a_saved_state_holds_all_and_never_the_clip(method, images, small_clip):
    torch.manual_seed(5)
    for parameter in method.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))
    state = method.state_dict()
    clip_values = {v.data_ptr() for v in small_clip.state_dict().values()}
    assert not clip_values & {v.data_ptr() for v in state.values()}
    other = build(method.name, method.space, small_clip, {}).eval()
    other.load_state_dict(state)
    pairs = torch.from_numpy(method.space.closed_pairs)
    assert torch.equal(other.score_images(images, pairs), method.score_images(images, pairs))


@torch.no_grad()
def test_known_names_keep_their_scores_in_another_vocabulary(method, images):
    """Two attributes and two objects (or classes) of the space, in another order, beside a new word."""
    a, o = method.space.attributes, method.space.objects
    here, there, new = [[2, 1], [0, 0]], [[0, 0], [2, 1]], [[1, 0]]
    if isinstance(method.space, ClassSpace):
        other = method.for_space(ClassSpace.of([o[2], "shiny new", o[0]], []))
        here, there, new = [[0, 2], [0, 0]], [[0, 0], [0, 2]], [[0, 1]]
    else:
        other = method.for_space(CompositionSpace((a[2], "shiny new", a[0]), (o[1], o[0]), *([np.zeros((0, 2))] * 3)))
    before, after = (m.encode_compositions(torch.tensor(pairs)).pair for m, pairs in ((method, here), (other, there)))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(other.score_images(images, torch.tensor(new))).all()


def test_another_vocabulary_keeps_the_precision_and_leaves_the_towers(method, small_clip):
    """In float64 nothing is rounded on the way; matrices that a shared CLIP holds in bfloat16 stay so."""
    other_names = method.space.attributes, method.space.objects[::-1]
    pairs = method.space.train_pairs
    turned = np.stack([pairs[:, 0], method.space.num_objects - 1 - pairs[:, 1]], axis=1)
    if isinstance(method.space, ClassSpace):
        other = ClassSpace.of(list(other_names[1]), list(other_names[1]))
    else:
        other = CompositionSpace(*other_names, turned, turned[:2], turned[:2])
    own = build(method.name, method.space, copy.deepcopy(small_clip), {}).double()
    with torch.no_grad():
        for value in (x for x in own.state_dict().values() if x.is_floating_point()):
            value.add_(1e-12)
    back = own.for_space(other).for_space(method.space)
    for key, value in own.state_dict().items():
        assert back.state_dict()[key].dtype == value.dtype
        assert torch.equal(back.state_dict()[key], value), key
    held = copy.deepcopy(small_clip)
    held.compute_in("bfloat16")
    before = {name: x.dtype for name, x in held.state_dict().items()}
    build(method.name, method.space, held, {}).for_space(other)
    assert {name: x.dtype for name, x in held.state_dict().items()} == before
    assert torch.bfloat16 in before.values()


def test_predict_names_the_best_first(method, images):
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images[:2]]
    records = method.predict(pictures, k=3)
    assert len(records) == 2
    for record in records:
        scores = [p["score"] for p in record["predictions"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 3
        everything = method.predict(pictures[:1], k=1000)[0]
        for kind in method.space.vocabulary:
            assert sum(x["prob"] for x in everything[kind]) == pytest.approx(1, abs=1e-4)
        assert record.keys() == {"predictions", *method.space.vocabulary, "operating_point"}
    assert method.predict([]) == []


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_takes_plain_classes_or_refuses_them(name, small_clip, class_space):
    if method_class(name).classes:
        build(name, class_space, small_clip, {})
        return
    with pytest.raises(UsageError, match="needs attributes and objects") as error:
        build(name, class_space, small_clip, {})
    assert "zero-shot" in error.value.fix


def test_the_registry_and_the_class_agree():
    for name in METHODS:
        cls = method_class(name)
        assert cls.name == name
        assert cls.title
        assert cls.__doc__
