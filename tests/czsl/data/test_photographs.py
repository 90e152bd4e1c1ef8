"""Orientation and transparency: applied as a viewer does, ignored as the field does, remembered by dataset and run."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from czsl.data import images
from czsl.data.batches import PixelCache, prepared_batch, split_key
from czsl.data.images import BadImage, decode, image_format, image_size, is_image_file
from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.data.photographs import AS_SHOWN, AS_STORED, DecodeOptions
from czsl.data.pixels import clip_pixels
from czsl.data.stats import stats
from czsl.data.subset import Subset
from czsl.data.table import Dataset, open_data
from czsl.errors import DataError, UsageError
from czsl.runs.config import RunConfig

WHITE, HIDDEN = (255, 255, 255), (10, 20, 30)


def saved(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def scene():
    """Four different corners, so that every turn shows."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :12], pixels[:8, 12:], pixels[8:, :12] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return Image.fromarray(pixels)


# -- orientation ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_the_orientation_turns_as_pillow_turns(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind != "PNG" else {}
    data = saved(scene(), kind, exif=exif(orientation), **options)
    stored = decode(data)
    assert stored.size == (24, 16)
    shown = decode(data, options=AS_SHOWN)
    stored.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(stored)  # the oracle
    assert np.array_equal(np.asarray(shown), np.asarray(expected))
    assert image_size(data, options=AS_SHOWN) == shown.size
    assert image_size(data) == stored.size


def test_tiff_is_turned_once():
    data = saved(scene(), "TIFF", exif=exif(6))
    for options in (AS_SHOWN, AS_STORED):
        assert decode(data, options=options).size == image_size(data, options=options) == (16, 24)


@pytest.mark.parametrize("value", [0, 9, 60_000])
def test_an_orientation_that_is_none_turns_nothing(value):
    assert decode(saved(scene(), "JPEG", exif=exif(value)), options=AS_SHOWN).size == (24, 16)


def test_a_broken_tag_costs_no_image(recwarn):
    data = bytearray(saved(scene(), "JPEG", exif=exif(6)))
    place = data.index(b"Exif\0\0")
    data[place + 6 : place + 20] = b"\xff" * 14
    assert decode(bytes(data), options=AS_SHOWN).size == (24, 16)
    assert not recwarn.list


def test_the_case_that_was_reported(shared):
    folder = shared / "cases" / "photographs"
    upright, turned = (np.asarray(decode((folder / name).read_bytes(), options=AS_SHOWN)).astype(int)
                       for name in ("upright.jpg", "turned-by-exif.jpg"))  # fmt: skip
    assert upright.shape == turned.shape
    assert np.abs(upright - turned).mean() < 2


# -- transparency --------------------------------------------------------------------------------------------------
def transparent(mode):
    """Left half transparent over a hidden colour, right half opaque."""
    image = Image.new("RGBA", (4, 2), (*HIDDEN, 0))
    image.paste((200, 100, 50, 255), (2, 0, 4, 2))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_transparent_pixels_show_the_background(kind):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
    data = saved(transparent("RGBA"), kind, **options)
    shown = decode(data, options=AS_SHOWN)
    assert shown.getpixel((0, 0)) == WHITE
    assert np.abs(np.subtract(shown.getpixel((3, 1)), (200, 100, 50))).max() <= 6
    if kind != "AVIF":  # its encoder may drop hidden colours
        assert decode(data).getpixel((0, 0)) == HIDDEN
    assert decode(data, options=DecodeOptions("ignore", "#0a0B0c")).getpixel((0, 0)) == (10, 11, 12)


def test_half_transparent_pixels_are_mixed():
    data = saved(Image.new("RGBA", (2, 2), (0, 0, 0, 51)))
    assert decode(data, options=AS_SHOWN).getpixel((0, 0)) == (204, 204, 204)
    assert decode(data, options=AS_SHOWN.changed(background="black")).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB", "I;16", "1", "PA"])
def test_every_form_of_transparency(mode):
    options = {}
    if mode == "LA":
        image = Image.new("LA", (2, 2), (0, 0))
    elif mode == "I;16":
        image, options = Image.fromarray(np.full((2, 2), 777, np.uint16)), {"transparency": 777}
    elif mode == "P":
        image = Image.new("P", (2, 2), 1)
        image.putpalette([0, 0, 0, 200, 100, 50])
        options = {"transparency": bytes([255, 0])}
    elif mode == "PA":
        image, mode = transparent("RGBA").quantize(), "P"
    elif mode == "RGB":
        image, options = Image.new("RGB", (2, 2), HIDDEN), {"transparency": HIDDEN}
    else:
        image, options = Image.new(mode, (2, 2), 0), {"transparency": 0}
    assert decode(saved(image, **options), options=AS_SHOWN).getpixel((0, 0)) == WHITE


def test_what_is_opaque_is_the_same_in_all_ways():
    for image, kind in ((scene(), "PNG"), (scene().convert("L"), "JPEG"), (scene().convert("CMYK"), "TIFF")):
        data = saved(image, kind)
        assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(data, options=AS_SHOWN)))


@pytest.mark.parametrize("value", ["pink", "#12345", "#gggggg", "", "exif", 3])
def test_unknown_values_are_refused(value):
    with pytest.raises(UsageError, match="unknown"):
        DecodeOptions("exif", value)
    with pytest.raises(UsageError, match="unknown"):
        DecodeOptions(f"{value}?", "white")


# -- formats -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP"])
def test_the_content_shows_the_format(kind, tmp_path):
    data = saved(scene(), kind)
    assert image_format(data[:64]) == kind
    for name in ("no-suffix", "wrong.txt"):
        (tmp_path / name).write_bytes(data)
        assert is_image_file(tmp_path / name)
    (tmp_path / "wrong.png").write_bytes(data)
    assert decode((tmp_path / "wrong.png").read_bytes()).size == (24, 16)
    for raw in ("a.nef", "a.DNG"):
        (tmp_path / raw).write_bytes(data)
        assert not is_image_file(tmp_path / raw)


@pytest.mark.parametrize(
    "head", [b"", b"BM is a text", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", b"RIFF1234AVI ", b"\xff\xd8", b"ftyp"]
)
def test_what_is_no_image_is_none(head):
    assert image_format(head) is None


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf\0\0\x01\xbe"


def test_heic_without_its_reader_names_the_package(monkeypatch):
    monkeypatch.setattr(images, "_heic_opener", lambda: False)
    with pytest.raises(BadImage, match=r"czsl\[heic\]") as error:
        decode(HEIC)
    assert error.value.kind == "HEIC image"


def test_heic_with_its_reader():
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif (the extra czsl[heic]) is not installed")
    heif.register_heif_opener()
    data = saved(transparent("RGBA").resize((64, 64)), "HEIF", quality=90)
    assert image_format(data[:64]) == "HEIF"
    assert np.abs(np.subtract(decode(data, options=AS_SHOWN).getpixel((2, 2)), WHITE)).max() < 8
    with pytest.raises(BadImage):
        decode(data[: len(data) // 2])
    with pytest.raises(BadImage, match="too many pixels"):
        decode(data, max_pixels=64 * 64 - 1)


def test_a_pointer_of_git_lfs_is_named():
    with pytest.raises(BadImage, match="Git LFS"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")


# -- remembered ----------------------------------------------------------------------------------------------------
@pytest.fixture
def tree(tmp_path):
    """Turned photographs and cut-outs of two pairs, in splits."""
    for split in ("train", "val", "test"):
        for pair in ("wet dog", "dry cat"):
            folder = tmp_path / "tree" / split / pair
            folder.mkdir(parents=True)
            (folder / f"{split}.jpg").write_bytes(saved(scene(), "JPEG", exif=exif(6)))
            (folder / "cut-out").write_bytes(saved(transparent("RGBA").resize((9, 9), Image.Resampling.NEAREST)))
    return tmp_path / "tree"


def test_own_data_is_shown_upright_and_remembers_it(tree, tmp_path):
    report = import_dataset(tree, tmp_path / "own", ImportOptions(max_bad=1))
    assert report.decode == {"orientation": "exif", "background": "white"}
    assert report.images == {"train": 4, "val": 4, "test": 4}  # files without a suffix are read
    data = open_data(tmp_path / "own")
    assert data.decode == AS_SHOWN
    assert stats(data)["image"]["width"]["max"] == 16  # turned
    assert open_data(tmp_path / "own", AS_STORED).split("val").decode == AS_STORED
    assert Subset(data, 1, 0).split("val").decode == AS_SHOWN
    stored = import_dataset(tree, tmp_path / "stored", ImportOptions(max_bad=1, orientation="ignore", background="ignore"))
    assert Dataset.open(tmp_path / "stored").decode == AS_STORED
    assert stored.sha256 == report.sha256  # the bytes and labels are the same


def test_published_benchmarks_are_read_as_the_field_does(published, tmp_path):
    for split in ("train", "val", "test"):
        published.add("wet_dog/a.jpg".replace("a", split), "wet dog", split)
    import_dataset(published.root, tmp_path / "as-is", ImportOptions(max_bad=1))
    assert Dataset.open(tmp_path / "as-is").decode == AS_STORED
    import_dataset(published.root, tmp_path / "turned", ImportOptions(max_bad=1, orientation="exif"))
    assert Dataset.open(tmp_path / "turned").decode == DecodeOptions("exif", "ignore")


def test_a_dataset_of_before_is_read_as_before(tree, tmp_path):
    import_dataset(tree, tmp_path / "own", ImportOptions(max_bad=1))
    file = tmp_path / "own" / "dataset.json"
    content = json.loads(file.read_text())
    del content["decode"]
    file.write_text(json.dumps(content))
    assert Dataset.open(tmp_path / "own").decode == AS_STORED
    for broken in ([1], {"orientation": "x"}, {"turn": "exif"}, "white", None, {"orientation": ["exif"]}):
        file.write_text(json.dumps({**content, "decode": broken}))
        with pytest.raises(DataError, match="damaged"):
            Dataset.open(tmp_path / "own")


def test_caches_of_both_ways_do_not_meet(tree, tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("CZSL_CACHE", str(tmp_path / "cache"))
    import_dataset(tree, tmp_path / "own", ImportOptions(max_bad=1))

    def prepare(image, name):
        return {"images": torch.from_numpy(clip_pixels(image, 8))}

    found = {}
    for options in (AS_SHOWN, AS_STORED):
        split = open_data(tmp_path / "own", options).split("val")
        rows = np.arange(len(split))
        cached = PixelCache(split, 8, prepare).batch(rows)
        direct = prepared_batch(split, rows, prepare)["images"]
        expected = [prepare(decode(split.image_bytes(r), options=options), "")["images"] for r in rows]
        assert torch.equal(cached, direct)
        assert torch.equal(cached, torch.stack(expected))
        found[split_key(split)] = cached
    assert len(found) == 2
    assert not torch.equal(*found.values())


def test_a_run_remembers_what_its_data_says():
    config = RunConfig(orientation="ignore")
    assert RunConfig().decode == AS_STORED  # runs of before there was a choice
    config.remember(AS_SHOWN)
    assert config.decode == DecodeOptions("ignore", "white")
    with pytest.raises(UsageError, match="unknown background"):
        RunConfig(background="pink")
