"""Pixels that are streamed: the batches of kept pixels, byte for byte, and nothing of a split in memory."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from czsl.compositions import CompositionSpace
from czsl.data import streaming
from czsl.data.batches import FeatureParts, FeatureWriter, PixelCache, load_features
from czsl.data.importing import writer
from czsl.data.importing.writer import Record, write_dataset
from czsl.data.pixels import clip_pixels
from czsl.data.streaming import ImageReader, StreamedPixels, find_places, is_streamed, pixels_of, places_file
from czsl.data.table import Dataset, Split

SIZE, IMAGES = 8, 23


def content(seed: int) -> bytes:
    out = io.BytesIO()
    kind = ("PNG", "JPEG", "WEBP")[seed % 3]
    Image.fromarray(np.random.default_rng(seed // 2).integers(0, 256, (11, 9 + seed, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def prepare(image, image_id):
    return {"images": torch.from_numpy(clip_pixels(image, SIZE))}


def never(row):
    pytest.fail(f"row {row} was read through its row group")


@pytest.fixture
def split(tmp_path, monkeypatch):
    """Several shards of several row groups; some images are equal."""
    monkeypatch.setenv("CZSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(writer, "GROUP_BYTES", 2000)
    monkeypatch.setattr(writer, "SHARD_BYTES", 5000)
    space = CompositionSpace(("wet", "dry"), ("dog",), np.array([[0, 0], [1, 0]]), np.zeros((0, 2)), np.zeros((0, 2)))
    records = [Record(f"{i}.png", content(i % 20), ("wet", "dry")[i % 2], "dog", "train") for i in range(IMAGES)]
    write_dataset(tmp_path / "set", space, records, "set")
    split = Dataset.open(tmp_path / "set").split("train")
    assert len(split.paths) > 1
    assert len(split.groups) > len(split.paths)
    return split


def again(split: Split) -> Split:
    """The same split, opened now."""
    return Dataset.open(split.paths[0].parent).split("train")


def test_single_images_are_read_without_their_row_group(split, monkeypatch):
    expected = [image for _, image in split.iter_images()]
    read = ImageReader(split)
    monkeypatch.setattr(split, "image_bytes", never)
    for row in np.random.default_rng(0).permutation(IMAGES).tolist():
        assert read(row) == expected[row]


def test_places_are_found_once(split, monkeypatch):
    done: list[int] = []
    first = ImageReader(split, done.append)
    assert done[-1] == IMAGES
    assert done == sorted(done)
    monkeypatch.setattr(streaming, "find_places", lambda *_: pytest.fail("searched again"))
    np.testing.assert_array_equal(ImageReader(again(split)).places_N3, first.places_N3)


def test_streamed_batches_are_those_of_kept_pixels(split):
    kept, streamed = PixelCache(split, SIZE, prepare), StreamedPixels(split, SIZE, prepare)
    assert len(streamed) == len(kept) == IMAGES
    for rows in ([5], [22, 0, 7, 3], [4, 4, 1, 4], list(range(IMAGES)), []):
        for augmentation in (None, (3, 0), (3, 1)):
            expected = kept.batch(np.array(rows, dtype=np.int64), augmentation)
            found = streamed.batch(np.array(rows, dtype=np.int64), augmentation)
            assert found.dtype == torch.uint8
            assert torch.equal(found, expected)


@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_shards_that_others_compressed_are_read_through_parquet(split, compression):
    expected = [image for _, image in split.iter_images()]
    for path in split.paths:
        table = pq.read_table(path)
        pq.write_table(table, path, compression=compression, row_group_size=3)
    other = again(split)
    assert (find_places(other)[:, 1] < 0).any()
    read = ImageReader(other)
    assert [read(row) for row in range(IMAGES)] == expected


def test_a_dictionary_of_images_is_read_as_well(split):
    expected = [image for _, image in split.iter_images()]
    for path in split.paths:
        pq.write_table(pq.read_table(path), path, compression="none", use_dictionary=True)
    read = ImageReader(again(split))
    assert [read(row) for row in range(IMAGES)] == expected


def test_wrong_places_never_lead_to_other_images(split):
    expected = [image for _, image in split.iter_images()]
    path = places_file(split)
    ImageReader(split)
    places = np.load(path)
    places[:, 1] += 7
    places[3] = (0, 10**12, 50)  # beyond the end of the file
    np.save(path, places)
    read = ImageReader(split)
    assert [read(row) for row in range(IMAGES)] == expected


def test_places_of_changed_shards_are_found_again(split):
    before = places_file(split)
    table = pq.read_table(split.paths[0])
    pq.write_table(table, split.paths[0], compression="none", row_group_size=1)
    assert places_file(again(split)) != before


@pytest.mark.parametrize("free", [10**15, 10**3])
def test_auto_goes_by_the_limit_and_the_free_disk(split, monkeypatch, free):
    needed = IMAGES * 3 * SIZE * SIZE
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert is_streamed(split, SIZE) == (free < needed)
    monkeypatch.setattr(streaming, "KEPT_BYTES", needed - 1)
    assert is_streamed(split, SIZE)
    assert not is_streamed(split, SIZE, setting="kept")
    assert isinstance(pixels_of(split, SIZE, prepare), StreamedPixels)
    assert isinstance(pixels_of(split, SIZE, prepare, setting="kept"), PixelCache)
    assert not is_streamed(split, SIZE)  # they are there now
    assert is_streamed(split, SIZE, setting="streamed")


# -- features ------------------------------------------------------------------------------------------------------
def test_features_are_written_in_any_order_and_appear_when_they_are_whole(tmp_path):
    path, features = tmp_path / "some" / "f.npy", np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    parts = FeatureParts(path)
    for place in range(FeatureParts.every):
        parts.add(place, features[:4])
    with FeatureWriter(path, 10) as out:
        for first in (4, 8, 0):
            out.write(first, features[first : first + 4])
            assert not path.exists()
    kept = load_features(path, 10)
    assert kept is not None
    np.testing.assert_array_equal(kept.numpy(), features)
    assert [p.name for p in path.parent.iterdir()] == ["f.npy"]  # the parts are gone
    kept[0] = 7  # stays in this process
    np.testing.assert_array_equal(np.load(path), features)


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no"), FeatureWriter(tmp_path / "f.npy", 4) as out:
        out.write(0, np.zeros((2, 3), np.float32))
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


def test_kept_features_are_mapped(tmp_path):
    path = tmp_path / "f.npy"
    np.save(path, np.zeros((50_000, 256), np.float32))  # 51 MB

    def anonymous() -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

    try:
        before = anonymous()
    except (OSError, StopIteration):
        pytest.skip("this system does not tell anonymous memory")
    features = load_features(path, 50_000)
    assert features is not None
    assert float(features.sum()) == 0
    assert anonymous() - before < 20 * 2**20
