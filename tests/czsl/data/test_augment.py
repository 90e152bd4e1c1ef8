"""Augmentation: a function of (seed, epoch, id), and geometry that can be checked at corners."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from czsl.data import augment as module
from czsl.data.augment import DISTORTION, DRAWS, MAX_DEGREES, augment, id_keys, uniforms

KEYS = id_keys([f"train/image_{i}.jpg" for i in range(12)])


@pytest.fixture
def images():
    return torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def draw(flip=False, perspective=False, degrees=0.0, shifts=None):
    """The uniform numbers that make exactly this happen."""
    u = np.ones((1, DRAWS)) * 0.75
    u[:, 0], u[:, 1] = 0.25 if flip else 0.75, 0.25 if perspective else 0.75
    u[:, 2] = (degrees / MAX_DEGREES + 1) / 2
    if shifts is not None:
        u[0, 3:] = np.ravel(shifts)
    return u


@pytest.fixture
def force(monkeypatch):
    def force(**what):
        monkeypatch.setattr(module, "uniforms", lambda keys, seed, epoch: np.repeat(draw(**what), len(keys), axis=0))

    return force


def test_an_image_is_augmented_alike_in_any_batch(images):
    whole = augment(images, KEYS, seed=3, epoch=1)
    order = np.array([7, 2, 11, 0])
    assert torch.equal(augment(images[order], KEYS[order], 3, 1), whole[order])
    for i in range(12):
        assert torch.equal(augment(images[i : i + 1], KEYS[i : i + 1], 3, 1)[0], whole[i])


def test_the_next_epoch_and_another_seed_draw_anew(images):
    first = augment(images, KEYS, 3, 1)
    assert torch.equal(first, augment(images, KEYS, 3, 1))
    for other in (augment(images, KEYS, 3, 2), augment(images, KEYS, 4, 1), augment(images, KEYS[::-1].copy(), 3, 1)):
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_global_random_state_neither_matters_nor_moves(images):
    torch.manual_seed(0)
    first = augment(images, KEYS, 0, 0)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after
    assert torch.equal(augment(images, KEYS, 0, 0), first)


def test_where_nothing_applies_the_image_comes_back(images, force):
    force()
    assert torch.equal(augment(images, KEYS, 0, 0), images)


def test_a_flip_is_exactly_a_flip(images, force):
    force(flip=True)
    assert torch.equal(augment(images, KEYS, 0, 0), images.flip(-1))


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.booleans(), st.floats(-MAX_DEGREES, MAX_DEGREES))
def test_corners_come_to_lie_where_the_draw_says(shifts, flip, degrees):
    """Forward: flip, then corners move inwards by up to half a half side, then the rotation."""
    (backward,) = module._homographies(draw(flip, True, degrees, shifts))
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    for (x, y), (right, down) in zip(((-1, -1), (1, -1), (1, 1), (-1, 1)), np.reshape(shifts, (4, 2)), strict=True):
        moved = np.array([x - x * DISTORTION * right, y - y * DISTORTION * down])
        place = backward @ [*(rotation @ moved), 1]
        expected = [-x if flip else x, y]
        np.testing.assert_allclose(place[:2] / place[2], expected, atol=1e-9)


def test_what_lies_outside_is_black_and_the_centre_keeps_its_place(force):
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    force(perspective=True, shifts=[1.0] * 8)  # half the side: an inner square of 32
    (out,) = augment(white, KEYS[:1], 0, 0)
    assert (out[:, 17:47, 17:47] == 255).all()
    assert (out[:, :15] == 0).all()
    assert (out[:, :, 49:] == 0).all()


def test_a_positive_angle_turns_as_its_matrix_says(force):
    spot = torch.zeros(1, 3, 65, 65, dtype=torch.uint8)
    spot[:, :, 32, 60] = 255  # right of the centre, by 28 pixels
    force(degrees=MAX_DEGREES)
    (out,) = augment(spot, KEYS[:1], 0, 0)
    row, column = divmod(int(out[0].float().argmax()), 65)
    turn = np.deg2rad(MAX_DEGREES)
    assert abs(column - (32 + 28 * np.cos(turn))) <= 1
    assert abs(row - (32 - 28 * np.sin(turn))) <= 1


def test_draws_are_uniform_and_independent():
    u = uniforms(id_keys([str(i) for i in range(4000)]), seed=1, epoch=0)
    assert u.shape == (4000, DRAWS)
    assert u.min() >= 0
    assert u.max() < 1
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose(u.var(axis=0), 1 / 12, atol=0.005)
    between_draws = np.corrcoef(u.T) - np.eye(DRAWS)
    between_epochs = np.corrcoef(u[:, 0], uniforms(id_keys([str(i) for i in range(4000)]), 1, 1)[:, 0])[0, 1]
    assert abs(between_draws).max() < 0.08
    assert abs(between_epochs) < 0.08


def test_half_of_the_images_are_flipped_and_half_moved(images):
    u = uniforms(id_keys([str(i) for i in range(2000)]), seed=5, epoch=3)
    h = module._homographies(u)
    assert abs((np.linalg.det(h) < 0).mean() - 0.5) < 0.04  # a flip turns the orientation
    moved = (abs(h[:, 2, :2]) > 1e-9).any(axis=1)
    assert abs(moved.mean() - 0.5) < 0.04


def test_keys_depend_on_the_name_alone():
    assert id_keys(["a", "b"]).tolist() == [id_keys(["a"])[0], id_keys(["b"])[0]]
    assert len(set(id_keys([str(i) for i in range(1000)]))) == 1000
    assert id_keys([]).shape == (0,)


def test_an_empty_batch_is_handed_back(images):
    assert augment(images[:0], KEYS[:0], 0, 0).shape == (0, 3, 32, 32)
