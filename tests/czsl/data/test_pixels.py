"""CLIP's resize and centre crop against torchvision's, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from czsl.clip.compat import import_open_clip
from czsl.data.pixels import MAX_ASPECT_RATIO, clip_pixels


def noise(width, height):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "size", [(64, 64), (65, 64), (64, 65), (100, 37), (37, 101), (63, 200), (3, 5), (500, 333), (32 * 7, 7), (127, 65)]
)
@pytest.mark.parametrize("side", [64, 33])
def test_pixels_are_those_of_torchvision(size, side):
    import_open_clip()  # torchvision beside a CPU build of torch needs its operators declared
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    oracle = Compose([Resize(side, InterpolationMode.BICUBIC), CenterCrop(side)])
    image = noise(*size)
    pixels = clip_pixels(image, side)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(oracle(image)).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_other_modes_become_rgb_first(mode):
    image = noise(40, 30).convert(mode)
    np.testing.assert_array_equal(clip_pixels(image, 16), clip_pixels(image.convert("RGB"), 16))


@pytest.mark.parametrize("turned", [False, True])
def test_a_line_of_a_million_pixels_needs_no_gigabytes(turned, monkeypatch):
    resize, areas = Image.Image.resize, []

    def watched(self, size, *args, **kwargs):
        areas.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    line = np.zeros((1, 1_000_000, 3), np.uint8)
    line[:, 500_000:] = 255
    image = Image.fromarray(line.transpose(1, 0, 2) if turned else line)
    pixels = clip_pixels(image, 64)
    if turned:
        pixels = pixels.transpose(0, 2, 1)
    assert max(areas) <= 64 * 64 * MAX_ASPECT_RATIO
    pixels = pixels.astype(int)
    assert (pixels[:, :, 0] < 32).all()
    assert abs(pixels + pixels[:, :, ::-1] - 255).max() <= 1  # the edge is still in the middle
