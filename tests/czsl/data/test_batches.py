"""Sample order, batches and caches: functions of the seed and the data, never of who asks when."""

import io
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from czsl.compositions import CompositionSpace
from czsl.data.batches import (
    PixelCache,
    epoch_batches,
    epoch_order,
    evaluation_batches,
    feature_file,
    load_features,
    prepared_batch,
    save_features,
    split_key,
    steps_per_epoch,
    stratified,
)
from czsl.data.images import decode
from czsl.data.importing.writer import Record, write_dataset
from czsl.data.photographs import AS_SHOWN, AS_STORED
from czsl.data.pixels import clip_pixels
from czsl.data.table import Dataset

SIZE, IMAGES = 8, 9


# -- order and batches ---------------------------------------------------------------------------------------------
@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 200))
def test_an_epochs_order_is_a_permutation_and_a_function_of_its_arguments(seed, epoch, count):
    order = epoch_order(seed, epoch, count)
    assert sorted(order.tolist()) == list(range(count))
    np.random.seed(epoch)  # noqa: NPY002 (global state must not matter)
    assert order.tolist() == epoch_order(seed, epoch, count).tolist()


def test_orders_of_other_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 60), st.integers(1, 12))
def test_batches_cover_an_epoch_once(seed, epoch, count, batch):
    parts = epoch_batches(seed, epoch, count, batch)
    assert np.concatenate([*parts, np.zeros(0, int)]).tolist() == epoch_order(seed, epoch, count).tolist()
    assert len(parts) == steps_per_epoch(count, batch)
    sizes = [len(p) for p in parts]
    assert all(size == batch for size in sizes[:-1])
    if batch > 1 and count > 1:  # batch statistics need two
        assert 2 <= sizes[-1] <= batch + 1


def test_a_last_batch_of_one_joins_the_one_before():
    assert [len(p) for p in epoch_batches(0, 0, 9, 4)] == [4, 5]
    assert [len(p) for p in epoch_batches(0, 0, 10, 4)] == [4, 4, 2]
    assert [len(p) for p in epoch_batches(0, 0, 1, 4)] == [1]
    assert [len(p) for p in epoch_batches(0, 0, 3, 1)] == [1, 1, 1]
    assert epoch_batches(0, 0, 0, 4) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=60), st.integers(0, 5), st.integers(0, 9))
def test_stratified_takes_so_many_of_each_pair(pairs, per_pair, seed):
    attr, obj = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    rows = stratified(attr, obj, per_pair, seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    expected = {pair: min(n, per_pair) if per_pair else n for pair, n in Counter(pairs).items()}
    assert Counter(pairs[r] for r in rows) == expected
    assert rows.tolist() == stratified(attr, obj, per_pair, seed).tolist()


def test_stratified_draws_anew_for_another_seed():
    none = np.zeros(100, dtype=np.int64)
    assert len({tuple(stratified(none, none, 5, seed)) for seed in range(5)}) == 5
    assert stratified(none, none, 5, 0).max() > 10  # not simply the first ones


@given(st.integers(0, 200), st.integers(1, 70))
def test_evaluation_batches_are_whole_or_a_multiple_of_16_and_in_order(count, size):
    parts = evaluation_batches(count, size)
    assert all(len(p) == size for p in parts[:-1])
    assert all(0 < len(p) <= size and (len(p) == size or len(p) % 16 == 0) for p in parts)
    rows = np.concatenate([*parts, np.zeros(0, int)])
    assert rows[:count].tolist() == list(range(count))
    assert (rows[count:] == count - 1).all()
    assert len(rows) - count < min(size, 16)


# -- pixels --------------------------------------------------------------------------------------------------------
def png(seed):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (11, 9 + seed, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    space = CompositionSpace(("wet", "dry"), ("dog",), np.array([[0, 0], [1, 0]]), np.zeros((0, 2)), np.zeros((0, 2)))
    records = [Record(f"{i}.png", png(i), ("wet", "dry")[i % 2], "dog", "train") for i in range(IMAGES)]
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, space, records, "set")
    return Dataset.open(folder).split("train")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CZSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pixels"


def prepare(image, image_id):
    return {"images": torch.from_numpy(clip_pixels(image, SIZE))}


def test_pixels_are_those_of_each_image(split, cache):
    done: list[int] = []
    pixels = PixelCache(split, SIZE, prepare, done.append)
    assert len(pixels) == IMAGES
    assert done[-1] == IMAGES
    for row, content in split.iter_images():
        np.testing.assert_array_equal(pixels.pixels[row], clip_pixels(decode(content), SIZE))
    rows = np.array([3, 0, 3])
    batch = pixels.batch(rows)
    assert batch.dtype == torch.uint8
    np.testing.assert_array_equal(batch.numpy(), pixels.pixels[rows])
    assert pixels.batch(rows[:0]).shape == (0, 3, SIZE, SIZE)


def test_pixels_are_built_once(split, cache):
    PixelCache(split, SIZE, prepare)
    again = PixelCache(split, SIZE, lambda image, name: pytest.fail("built again"))
    np.testing.assert_array_equal(again.pixels, PixelCache(split, SIZE, prepare).pixels)
    assert len(list(cache.iterdir())) == 1
    other_size = PixelCache(split, 2 * SIZE, lambda i, n: {"images": torch.from_numpy(clip_pixels(i, 2 * SIZE))})
    assert other_size.pixels.shape[-1] == 2 * SIZE


def test_augmented_batches_follow_the_id_not_the_place(split, cache):
    pixels = PixelCache(split, SIZE, prepare)
    together = pixels.batch(np.array([4, 7, 1]), augmentation=(3, 2))
    alone = pixels.batch(np.array([7]), augmentation=(3, 2))
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(alone, pixels.batch(np.array([7])))


def test_several_builders_at_once_make_one_file(split, cache):
    barrier, built, errors = threading.Barrier(4, timeout=60), [], []

    def first_waits(image, name):
        if name == split.ids[0]:
            barrier.wait()  # all four are in the middle of it
        return prepare(image, name)

    def build():
        try:
            built.append(PixelCache(split, SIZE, first_waits))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    expected = np.stack([clip_pixels(decode(content), SIZE) for _, content in split.iter_images()])
    for pixels in built:
        np.testing.assert_array_equal(pixels.pixels, expected)
    assert [p.suffix for p in cache.iterdir()] == [".npy"]


def test_a_failing_build_leaves_nothing(split, cache):
    def fail(image, name):
        if name == split.ids[5]:
            raise ValueError("no")
        return prepare(image, name)

    with pytest.raises(ValueError, match="no"):
        PixelCache(split, SIZE, fail)
    assert list(cache.iterdir()) == []
    assert len(PixelCache(split, SIZE, prepare)) == IMAGES  # and does not stand in the way


def test_an_empty_split_has_an_empty_cache(cache):
    class Empty(SimpleNamespace):
        def __len__(self):
            return 0

    empty: Any = Empty(name="val", ids=[], sha256=[], iter_images=lambda: iter(()), decode=AS_STORED)
    pixels = PixelCache(empty, SIZE, prepare)
    assert pixels.pixels.shape == (0, 3, SIZE, SIZE)


# -- keys and features ---------------------------------------------------------------------------------------------
def test_a_split_is_named_by_its_images_in_order():
    def key(ids, sha256, name="train", decode=AS_STORED):
        images: Any = SimpleNamespace(name=name, ids=ids, sha256=sha256, decode=decode)
        return split_key(images)

    base = key(["a", "b"], ["1", "2"])
    assert base == key(["a", "b"], ["1", "2"])
    others = [
        key(["b", "a"], ["2", "1"]),
        key(["a", "b"], ["1", "3"]),
        key(["a", "c"], ["1", "2"]),
        key(["a"], ["1"]),
        key(["a", "b"], ["1", "2"], "val"),
        key(["a", "b"], ["1", "2"], decode=AS_SHOWN),
        key(["a", "b"], ["1", "2"], decode=AS_SHOWN.changed(background="black")),
    ]
    assert len({base, *others}) == 8


def test_features_are_kept_for_their_split_and_backbone(split, cache):
    features = torch.randn(IMAGES, 4)
    path = feature_file(split, "a" * 64)
    assert load_features(path, IMAGES) is None
    save_features(path, features)
    torch.testing.assert_close(load_features(path, IMAGES), features, rtol=0, atol=0)
    assert load_features(path, IMAGES + 1) is None
    others = {feature_file(split, "b" * 64), feature_file(split, "a" * 64, cache_key="16 views")}
    others.add(feature_file(split, "a" * 64, cache_key="32 views"))
    others |= {feature_file(split, "a" * 64, how) for how in ("float32-cpu2", "bfloat16-cpu1", "float32-cuda")}
    assert len(others - {path}) == 6
    assert list(path.parent.iterdir()) == [path]


def test_what_a_method_prepares_itself_is_made_for_each_batch(split):
    asked = []

    def views(image, name):
        asked.append(name)
        return prepare(image, name) | {"size": torch.tensor(image.size)}

    rows = np.array([2, 0, 2, 2])
    batch = prepared_batch(split, rows, views)
    assert sorted(asked) == sorted({split.ids[0], split.ids[2]})
    for place, row in enumerate(rows):
        alone = views(decode(split.image_bytes(int(row))), split.ids[row])
        assert all(torch.equal(batch[key][place], alone[key]) for key in ("images", "size"))


@pytest.mark.parametrize("count", [1, 3, 7, 8, 9, 33, 40])
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_parts_hold_a_smaller_last_batch(tmp_path, monkeypatch, count, every):
    """Batches of 8 images as evaluation cuts them, in units of 2; whichever of them fill a part, the pass goes on from it."""
    from czsl.data import batches as module
    from czsl.data.batches import FeatureParts, evaluation_batches

    monkeypatch.setattr(FeatureParts, "every", every)
    monkeypatch.setattr(module, "STEP", 2)
    features = np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)
    cut = evaluation_batches(count, 8)
    parts = FeatureParts(tmp_path / "train.npy")
    for place, rows in enumerate(cut):
        parts.add(place, features[rows])
    found = FeatureParts(tmp_path / "train.npy").load(8)
    whole = len(cut) // every * every
    assert set(found) >= {place for place in range(whole) if len(cut[place - place % every]) == 8}
    for place, there in found.items():
        own = count - 8 * place
        assert np.array_equal(there[:own], features[8 * place : 8 * place + 8][:own])


def test_parts_of_an_interrupted_pass_are_found_again(tmp_path):
    from czsl.data.batches import FeatureParts, load_features, save_features

    path = tmp_path / "features" / "train.npy"
    features = np.random.default_rng(0).standard_normal((40, 4, 3)).astype(np.float32)  # 40 batches of 4 images
    first = FeatureParts(path)
    for place in range(0, 40, 2):  # as the first of two workers does; the last batches never reach the disk
        first.add(place, features[place])
    found = FeatureParts(path).load(4)
    assert list(found) == list(range(0, 2 * FeatureParts.every, 2))
    assert all(np.array_equal(found[p], features[p]) for p in found)
    assert FeatureParts(path).load(8) == {}  # cut in another way now
    next(first.folder.glob("*.npy")).write_bytes(b"half")
    assert FeatureParts(path).load(4) == {}
    save_features(path, torch.from_numpy(features.reshape(-1, 3)))
    assert not first.folder.exists()
    assert load_features(path, 160) is not None
