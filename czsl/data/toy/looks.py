"""The attributes of the toy data: what each does to a drawn object.

A look changes a :class:`Figure` in place. Where it acts, along which lines and from which side is defined by the object
(`toy_shapes.Shape`); so one attribute has as many faces as there are objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from czsl.data.toy.shapes import Shape


@dataclass
class Figure:
    """An object rasterised into its bounding box, not yet on a background.

    Attributes
    ----------
    rgb : float32 [h, w, 3]
        Colours in [0, 1].
    alpha : float32 [h, w]
        Opacity.
    skin, paint : bool [h, w]
        Where textures and where colours go.
    u, v : float32 [h, w]
        The object's own coordinates of each pixel.
    unit : float
        Pixels a unit of the object's coordinates.
    to_pixels : callable
        Points [n, 2] of the object's frame in pixels of this box.
    """

    shape: Shape
    rgb: np.ndarray
    alpha: np.ndarray
    skin: np.ndarray
    paint: np.ndarray
    u: np.ndarray
    v: np.ndarray
    unit: float
    to_pixels: Callable[[np.ndarray], np.ndarray]

    def depth(self, radius: float) -> np.ndarray:
        """Depth of a pixel inside the outline: about 0.5 on it, 1 from `radius` units inwards. [h, w]."""
        blurred = as_image(self.alpha).filter(ImageFilter.BoxBlur(max(1.0, radius * self.unit)))
        return np.asarray(blurred, dtype=np.float32) / 255

    def towards(self, side: tuple[float, float], noise: np.ndarray) -> np.ndarray:
        """A field that grows towards one side of the object ((0, 0): towards the rim), roughened by noise. [h, w]."""
        rough = 1.1 * (noise - 0.5)
        if side == (0, 0):
            return 3.2 * (1 - self.depth(0.3)) - 0.75 + rough
        return (self.u * side[0] + self.v * side[1]) / float(np.hypot(*side)) + rough

    def mix(self, colour, weight: np.ndarray) -> None:
        """Blend a colour in (a triple or [h, w, 3]) with a weight [h, w] in [0, 1]."""
        self.rgb += (np.asarray(colour, dtype=np.float32) - self.rgb) * weight.astype(np.float32)[..., None]

    def grey(self) -> np.ndarray:
        """Brightness, the mean of the three channels, [h, w]."""
        return (self.rgb[..., 0] + self.rgb[..., 1] + self.rgb[..., 2]) / 3

    def points(self, rng: np.random.Generator, number: int, where: np.ndarray | None = None) -> np.ndarray:
        """Random pixels (x, y) of the skin, or of a mask, [number, 2]; none if the mask is empty."""
        rows, columns = np.nonzero(self.skin if where is None else where)
        if not len(rows):
            return np.zeros((0, 2))
        chosen = rng.integers(len(rows), size=number)
        return np.stack([columns[chosen], rows[chosen]], axis=1).astype(float)


def as_image(plane: np.ndarray) -> Image.Image:
    """A plane in [0, 1] as an 8-bit image."""
    return Image.fromarray((plane * 255).astype(np.uint8))


def value_noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise in about [0, 1], `cells` bumps across, float32 [h, w]."""
    grid = Image.fromarray(rng.random((cells + 1, cells + 1), dtype=np.float32))
    return np.asarray(grid.resize((size[1], size[0]), Image.Resampling.BICUBIC), dtype=np.float32)


def pen(figure: Figure) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty plane of the figure's size to draw on."""
    plane = Image.new("L", (figure.alpha.shape[1], figure.alpha.shape[0]))
    return plane, ImageDraw.Draw(plane)


def ramp(field: np.ndarray, start: float, width: float = 0.15) -> np.ndarray:
    """0 below start, 1 above start + width, linear between."""
    return np.clip((field - start) / width, 0, 1)


def _colour(base: tuple[float, float, float]) -> Callable:
    def look(figure: Figure, rng: np.random.Generator) -> None:
        hue = np.clip(np.array(base) + rng.normal(0, 0.05, 3), 0, 1) * figure.shape.tint
        shade = figure.grey()[..., None] * 0.5 + 0.62
        figure.mix(np.clip(hue * shade, 0, 1), figure.paint * np.float32(rng.uniform(0.8, 0.98)))

    return look


def _striped(figure: Figure, rng: np.random.Generator) -> None:
    phase = figure.shape.field(figure.u, figure.v) * figure.shape.stripes * rng.uniform(0.85, 1.2) + rng.random()
    share = rng.uniform(-0.2, 0.2)
    dark = rng.random() < 0.6
    colour = rng.uniform(0.05, 0.35, 3) if dark else rng.uniform(0.88, 1.0, 3)
    figure.mix(colour, figure.skin * ramp(np.sin(2 * np.pi * phase), share, 0.4) * np.float32(0.92))


def _dotted(figure: Figure, rng: np.random.Generator) -> None:
    step = figure.shape.dots * rng.uniform(0.9, 1.15)
    u, v = figure.u / step + rng.random(), figure.v / step + rng.random()
    u = u + 0.5 * (np.floor(v) % 2)  # every second row is shifted
    distance = np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5)
    colour = rng.uniform(0.05, 0.35, 3) if rng.random() < 0.5 else rng.uniform(0.88, 1.0, 3)
    figure.mix(colour, figure.skin * ramp(-distance, -rng.uniform(0.26, 0.34), 0.1))


def _cracked(figure: Figure, rng: np.random.Generator) -> None:
    plane, line = pen(figure)
    (x, y), heading = figure.shape.crack
    width = max(1, round(0.035 * figure.unit))
    for _ in range(rng.integers(3, 6)):
        angle = np.radians(heading + rng.normal(0, 38))
        path = [(x + rng.normal(0, 0.06), y + rng.normal(0, 0.06))]
        for _ in range(rng.integers(6, 10)):
            turn = angle + rng.normal(0, 0.75)
            path.append((path[-1][0] + 0.2 * np.cos(turn), path[-1][1] + 0.2 * np.sin(turn)))
            if rng.random() < 0.3:
                side = turn + rng.choice((-1.1, 1.1))
                twig = [path[-1], (path[-1][0] + 0.26 * np.cos(side), path[-1][1] + 0.26 * np.sin(side))]
                line.line([tuple(p) for p in figure.to_pixels(np.array(twig))], fill=255, width=width)
        line.line([tuple(p) for p in figure.to_pixels(np.array(path))], fill=255, width=width + 1)
    crack = np.asarray(plane, dtype=np.float32) / 255
    light = np.roll(crack, (width + 1, width + 1), (0, 1))
    figure.mix((1, 1, 1), light * figure.skin * np.float32(0.4))
    figure.mix((0.06, 0.05, 0.05), crack * figure.alpha)


def _burnt(figure: Figure, rng: np.random.Generator) -> None:
    noise = value_noise(rng, figure.alpha.shape, 7)
    field = figure.towards(figure.shape.burn, noise)
    start = rng.uniform(-0.35, 0.1)
    ember = ramp(field, start - 0.22, 0.2) * (1 - ramp(field, start, 0.1))
    figure.mix((0.75, 0.32, 0.06), ember * figure.alpha * np.float32(0.8))
    figure.mix(np.stack([0.05 + 0.16 * noise] * 3, axis=2), ramp(field, start) * figure.alpha * np.float32(0.95))
    figure.alpha[field > start + rng.uniform(1.0, 1.3)] = 0


def _wet(figure: Figure, rng: np.random.Generator) -> None:
    grey = figure.grey()[..., None]
    figure.rgb[:] = np.clip((grey + 1.5 * (figure.rgb - grey)) * float(rng.uniform(0.62, 0.75)), 0, 1)
    plane, drop = pen(figure)
    shine, gleam = pen(figure)
    size = figure.unit * 0.06
    low = figure.alpha * (figure.v > 0.2) > 0
    for x, y in figure.points(rng, 26, figure.alpha > 0):
        r = size * rng.uniform(0.5, 1.3)
        drop.ellipse((x - r, y - r, x + r, y + 1.4 * r), fill=255)
        gleam.ellipse((x - 0.6 * r, y - 0.6 * r, x + 0.2 * r, y + 0.2 * r), fill=255)
    figure.mix((0.72, 0.85, 0.95), np.asarray(plane, dtype=np.float32) / 255 * figure.alpha * np.float32(0.6))
    falling, drip = pen(figure)
    for x, y in figure.points(rng, 7, low):
        r = size * rng.uniform(0.35, 0.7)
        drip.line((x, y, x, y + 6 * size), fill=200, width=max(1, round(r)))
        drip.ellipse((x - r, y + 6 * size - r, x + r, y + 6 * size + 1.6 * r), fill=230)
    water = np.asarray(falling, dtype=np.float32) / 255
    figure.mix((0.62, 0.80, 0.95), water)
    figure.alpha[:] = np.maximum(figure.alpha, water)
    figure.mix((1, 1, 1), np.asarray(shine, dtype=np.float32) / 255 * figure.alpha)


def _mossy(figure: Figure, rng: np.random.Generator) -> None:
    noise, grain = value_noise(rng, figure.alpha.shape, 9), rng.random(figure.alpha.shape, dtype=np.float32)
    cover = ramp(figure.towards(figure.shape.damp, noise) + 0.35 * grain, rng.uniform(-0.1, 0.25), 0.1)
    green = np.array((0.30, 0.42, 0.14)) + rng.normal(0, 0.03, 3)
    figure.mix(green * (0.55 + 0.85 * grain[..., None]), cover * figure.alpha * np.float32(0.95))


def _frozen(figure: Figure, rng: np.random.Generator) -> None:
    figure.mix((0.72, 0.87, 0.98), figure.alpha * np.float32(rng.uniform(0.42, 0.6)))
    rime = figure.towards(figure.shape.cold, value_noise(rng, figure.alpha.shape, 8))
    figure.mix((0.97, 0.99, 1.0), ramp(rime, rng.uniform(0.2, 0.45), 0.2) * figure.alpha)
    plane, icicle = pen(figure)
    for x, y in figure.points(rng, 9, (figure.alpha > 0) & (figure.depth(0.12) < 0.75)):
        r, length = 0.05 * figure.unit, figure.unit * rng.uniform(0.12, 0.32)
        icicle.polygon([(x - r, y), (x + r, y), (x, y + length)], fill=235)
    ice = np.asarray(plane, dtype=np.float32) / 255
    figure.mix((0.86, 0.95, 1.0), ice)
    figure.alpha[:] = np.maximum(figure.alpha, ice)


def _wooden(figure: Figure, rng: np.random.Generator) -> None:
    bend = value_noise(rng, figure.alpha.shape, 4)
    rings = figure.shape.field(figure.u, figure.v) * figure.shape.stripes * 1.5 + 1.5 * bend + rng.random()
    grain = 0.5 + 0.5 * np.sin(2 * np.pi * rings) + 0.35 * np.sin(2 * np.pi * 2.7 * rings)
    light, dark = np.array((0.80, 0.58, 0.34)), np.array((0.50, 0.30, 0.14))
    tone = light + (dark - light) * np.clip(grain, 0, 1)[..., None] + rng.normal(0, 0.04, 3)
    weight = np.where(figure.skin, 0.95, 0.55).astype(np.float32) * figure.alpha
    figure.mix(tone * (0.75 + 0.35 * figure.grey()[..., None]), weight)


def _metallic(figure: Figure, rng: np.random.Generator) -> None:
    field = figure.shape.field(figure.v, figure.u)  # reflections run across the grain
    sheen = 0.5 + 0.5 * np.sin(3.6 * field * rng.uniform(0.85, 1.15) + rng.uniform(0, 6.3))
    sheen = sheen**2 * 0.75 + 0.18 + 0.1 * figure.grey()
    metal = np.array(((0.92, 0.95, 1.0), (1.0, 0.88, 0.62), (1.0, 0.78, 0.66))[rng.choice(3, p=(0.6, 0.25, 0.15))])
    weight = np.where(figure.skin, 0.95, 0.6).astype(np.float32) * figure.alpha
    figure.mix(sheen[..., None] * metal, weight)
    figure.mix((1, 1, 1), ramp(sheen, 0.84, 0.06) * weight)


def _furry(figure: Figure, rng: np.random.Generator) -> None:
    coat = np.array(((0.62, 0.45, 0.28), (0.85, 0.78, 0.66), (0.42, 0.38, 0.36))[rng.integers(3)])
    figure.mix(coat, figure.skin * np.float32(rng.uniform(0.45, 0.75)))
    picture = Image.fromarray((np.clip(figure.rgb, 0, 1) * 255).astype(np.uint8))
    plane = as_image(figure.alpha)
    hair, outline = ImageDraw.Draw(picture), ImageDraw.Draw(plane)
    centre = figure.to_pixels(np.zeros((1, 2)))[0]
    starts = figure.points(rng, 230)
    out = starts - centre
    out = out / (np.hypot(*out.T)[:, None] + 1) + (0, 0.45) + rng.normal(0, 0.3, starts.shape)
    ends = starts + out * figure.unit * rng.uniform(0.1, 0.24, (len(starts), 1))
    tones = (np.clip(coat * rng.uniform(0.45, 1.3, (len(starts), 1)), 0, 1) * 255).astype(int)
    for start, end, tone in zip(starts.tolist(), ends.tolist(), tones.tolist(), strict=True):
        hair.line((*start, *end), fill=tuple(tone), width=1)
        outline.line((*start, *end), fill=255, width=1)
    figure.rgb[:] = np.asarray(picture, dtype=np.float32) / 255
    figure.alpha[:] = np.asarray(plane, dtype=np.float32) / 255


def _hollow(figure: Figure, rng: np.random.Generator) -> None:
    wall = rng.uniform(0.12, 0.2)
    inside = ramp(figure.depth(wall), 0.86, 0.08) * figure.skin
    if figure.shape.through:
        figure.alpha *= 1 - inside
        return
    deep = np.clip(0.5 + 0.4 * (figure.u + figure.v), 0, 1)[..., None]
    figure.mix(np.array((0.05, 0.04, 0.05)) + deep * (0.3, 0.26, 0.22), inside)
    lip = ramp(figure.depth(wall), 0.78, 0.05) * (1 - inside) * figure.skin
    figure.mix((1, 0.97, 0.9), lip * np.float32(0.5))


LOOKS: dict[str, Callable[[Figure, np.random.Generator], None]] = {
    "red": _colour((0.90, 0.10, 0.10)),
    "green": _colour((0.12, 0.72, 0.18)),
    "blue": _colour((0.12, 0.28, 0.92)),
    "striped": _striped,
    "dotted": _dotted,
    "cracked": _cracked,
    "burnt": _burnt,
    "wet": _wet,
    "mossy": _mossy,
    "frozen": _frozen,
    "wooden": _wooden,
    "metallic": _metallic,
    "furry": _furry,
    "hollow": _hollow,
}
