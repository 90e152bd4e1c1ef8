"""Decoding: every pixel format becomes RGB, nothing hostile is decoded, nothing leaks out of Pillow."""

import contextlib
import io
import os
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from czsl.data.images import MAX_PIXELS, BadImage, decode, image_size, list_images, read_image_file, thumbnail
from czsl.errors import DataError

from .conftest import encode, png_header


def saved(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def test_rgb_pixels_are_exact():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode(saved(Image.fromarray(pixels)))), pixels)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    grey = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    if mode == "I;16":
        image, kind = Image.fromarray(grey.astype(np.uint16) * 257), "PNG"
    else:
        image, kind = Image.fromarray(grey).convert("RGB").convert(mode), "TIFF" if mode == "CMYK" else "PNG"
    result = np.asarray(decode(saved(image, kind)))
    assert result.shape == (8, 8, 3)
    assert result.dtype == np.uint8
    worst = {"1": 255, "P": 51}.get(mode, 1)  # black or white; a palette of 6 levels a channel, dithered
    assert np.abs(result[..., 0].astype(int) - grey).max() <= worst
    assert np.corrcoef(result[..., 0].ravel(), grey.ravel())[0, 1] > 0.6


def test_sixteen_bit_keeps_its_upper_byte():
    levels = np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype=np.uint16)
    assert np.asarray(decode(saved(Image.fromarray(levels))))[0, :, 0].tolist() == [0, 0, 1, 0x12, 255]


def test_alpha_is_dropped_not_blended():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert decode(saved(image)).getpixel((0, 0)) == (10, 20, 30)


def test_palette_with_transparency_prints_no_warning():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    data = saved(image, transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data).getpixel((0, 0)) == (200, 100, 50)


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(saved(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (20, 10)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty file"),
        (b"once upon a time", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (png_header(30_000, 30_000), "too many pixels"),
        (encode(0)[:300], "damaged image"),
        (encode(0, kind="PNG")[:300], "damaged image"),
    ],
)
def test_bad_images_are_refused(data, kind):
    with pytest.raises(BadImage) as error:
        decode(data)
    assert error.value.kind == kind
    assert error.value.exit_code == 3


def test_pixel_limit_is_read_from_the_header_and_nothing_leaks():
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage, match=r"30000 x 30000 = 900 megapixels, limit 100"):
            decode(png_header(30_000, 30_000))
        assert image_size(png_header(30_000, 30_000), max_pixels=10**9) == (30_000, 30_000)  # beyond Pillow's own limit
    assert before == Image.MAX_IMAGE_PIXELS
    assert MAX_PIXELS < 900_000_000


def test_max_pixels_is_inclusive():
    data = encode(0, size=(24, 18))
    assert decode(data, max_pixels=24 * 18).size == (24, 18)
    with pytest.raises(BadImage):
        decode(data, max_pixels=24 * 18 - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_cut_file_is_an_image_or_bad_never_another_error(kind):
    data = encode(3, size=(16, 16), kind=kind)
    bad = 0
    for end in range(0, len(data), 7):
        try:
            assert decode(data[:end]).size == (16, 16)
        except BadImage:
            bad += 1
    assert bad > len(data) // 7 * 0.9  # all but the last bytes matter


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]), st.data())
def test_altered_bytes_are_an_image_or_bad(noise, kind, data):
    content = bytearray(encode(5, size=(8, 8), kind=kind))
    place = data.draw(st.integers(0, len(content)))
    content[place : place + len(noise)] = noise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(BadImage):
            assert decode(bytes(content), max_pixels=10**6).mode == "RGB"


def test_special_and_large_files_are_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadImage, match="not a regular file"):
        read_image_file(tmp_path / "pipe.jpg")
    monkeypatch.setattr("czsl.data.images.MAX_FILE_BYTES", 10)
    (tmp_path / "large.jpg").write_bytes(encode(0))
    with pytest.raises(BadImage, match="limit 10"):
        read_image_file(tmp_path / "large.jpg")


def test_list_images_is_sorted_and_stays_inside(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "b" / "2.PNG", root / "a.jpeg", root / "b" / "1.jpg", root / "notes.txt", outside / "secret.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (root / "out.jpg").symlink_to(outside / "secret.jpg")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "inside.jpg").symlink_to(root / "a.jpeg")
    (root / "broken.jpg").symlink_to(root / "nothing.jpg")
    assert [p.relative_to(root).as_posix() for p in list_images(root)] == ["a.jpeg", "b/1.jpg", "b/2.PNG", "inside.jpg"]
    with pytest.raises(DataError, match="no folder"):
        list_images(root / "none")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_thumbnail_is_the_decoded_image_made_small(kind):
    x, y = np.meshgrid(np.linspace(0, 255, 1600), np.linspace(0, 255, 1200))
    content = io.BytesIO()
    Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8)).save(content, kind)
    data = content.getvalue()
    small, whole = thumbnail(data, 160), decode(data)
    whole.thumbnail((160, 160))
    assert small.size == whole.size == (160, 120)
    assert np.abs(np.asarray(small, dtype=int) - np.asarray(whole, dtype=int)).max() < 12


def test_thumbnails_obey_the_limits_of_decoding():
    big = encode(0, (100, 101))
    with pytest.raises(BadImage, match="too many pixels"):
        thumbnail(big, 10, max_pixels=10_099)
    assert thumbnail(big, 200, max_pixels=10_100).size == (100, 101)  # never enlarged
    for damaged in (b"", b"no image", big[: len(big) // 2]):
        with pytest.raises(BadImage):
            thumbnail(damaged, 10)


def test_a_large_jpeg_can_be_decoded_at_a_fraction_of_its_size():
    def content(size, form="JPEG"):
        file = io.BytesIO()
        Image.new("RGB", size, "red").save(file, form)
        return file.getvalue()

    assert decode(content((2000, 1500)), reduced_for=224).size == (1000, 750)
    assert decode(content((4000, 3000)), reduced_for=224).size == (1000, 750)
    assert decode(content((4000, 3000))).size == (4000, 3000)
    assert decode(content((896, 2000)), reduced_for=224).size == (896, 2000)  # not more than four times
    assert decode(content((2000, 1500), "PNG"), reduced_for=224).size == (2000, 1500)
