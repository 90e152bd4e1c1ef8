"""Scenes of the toy data: cluttered backgrounds and objects in a pose, drawn twice as large as asked and averaged down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from czsl.data.toy.looks import LOOKS, Figure, value_noise
from czsl.data.toy.shapes import Shape

OVERSAMPLING = 2


@dataclass(frozen=True)
class Pose:
    """Pose of an object: centre and half extent as fractions of the picture, the rest about its own axes.

    ``angle`` is in degrees, ``flip`` mirrors left and right, ``aspect`` stretches (1 is as drawn), ``shear`` slants.
    """

    x: float
    y: float
    extent: float
    angle: float = 0.0
    flip: bool = False
    aspect: float = 1.0
    shear: float = 0.0

    @classmethod
    def random(cls, rng: np.random.Generator, shape: Shape, extent: tuple[float, float] = (0.27, 0.43)) -> Pose:
        """A pose that keeps most of the object in the picture."""
        size = rng.uniform(*extent)
        room = max(0.04, 0.5 - size)
        x, y = 0.5 + rng.uniform(-room, room, 2)
        angle, shear = rng.uniform(-shape.turn, shape.turn), rng.uniform(-0.15, 0.15)
        return cls(x, y, size, angle, bool(rng.random() < 0.5), rng.uniform(0.85, 1.15), shear)

    def matrix(self, canvas: int) -> np.ndarray:
        """From the object's frame to pixels, [2, 2] (without the translation)."""
        turn = np.radians(self.angle)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        stretch = np.array([[self.aspect * (-1 if self.flip else 1), self.shear], [0, 1 / self.aspect]])
        return self.extent * canvas * rotation @ stretch


def rasterise(shape: Shape, pose: Pose, size: int, rng: np.random.Generator) -> tuple[Figure, tuple[int, int]]:
    """Draw an object in its usual colours, `OVERSAMPLING` times too large.

    Returns the figure in its box and the place (x, y) of the box's top left corner in a picture of `size` pixels.
    """
    canvas = size * OVERSAMPLING
    matrix, centre = pose.matrix(canvas), np.array([pose.x, pose.y]) * canvas
    outlines = [part.outline @ matrix.T + centre for part in shape.parts]
    every = np.concatenate(outlines)
    margin = 0.32 * pose.extent * canvas  # hair, drops and icicles hang over the outline
    corner = np.clip((every.min(0) - margin) // OVERSAMPLING, 0, size - 4).astype(int)
    far = np.clip(-(-(every.max(0) + margin) // OVERSAMPLING), corner + 4, size).astype(int)
    low, high = corner * OVERSAMPLING, far * OVERSAMPLING
    labels = Image.new("L", tuple(high - low))
    pencil = ImageDraw.Draw(labels)
    palette = np.zeros((len(shape.parts) + 1, 3), dtype=np.float32)
    chosen: dict[str, np.ndarray] = {}  # parts of one name have one colour
    for number, (part, outline) in enumerate(zip(shape.parts, outlines, strict=True), start=1):
        pencil.polygon((outline - low).ravel().tolist(), fill=number)
        if part.name not in chosen:
            chosen[part.name] = np.array(part.colours[rng.integers(len(part.colours))]) + rng.normal(0, 0.05, 3)
        palette[number] = np.clip(chosen[part.name], 0, 1)
    label = np.asarray(labels)
    inverse = np.linalg.inv(matrix).astype(np.float32)
    x = np.arange(low[0], high[0], dtype=np.float32)[None, :] - np.float32(centre[0])
    y = np.arange(low[1], high[1], dtype=np.float32)[:, None] - np.float32(centre[1])
    of = lambda names: np.array([False] + [p.name in names for p in shape.parts])[label]  # noqa: E731
    figure = Figure(
        shape=shape,
        rgb=palette[label],
        alpha=(label > 0).astype(np.float32),
        skin=of(shape.skin),
        paint=of(shape.paint),
        u=inverse[0, 0] * x + inverse[0, 1] * y,
        v=inverse[1, 0] * x + inverse[1, 1] * y,
        unit=pose.extent * canvas,
        to_pixels=lambda points: points @ matrix.T + centre - low,
    )
    return figure, (int(corner[0]), int(corner[1]))


def shrink(plane: np.ndarray) -> np.ndarray:
    """Average over squares of `OVERSAMPLING` pixels, [h, w, ...] (by sums of slices: much faster than a reshape and a mean)."""
    rows = np.add.reduce([plane[k::OVERSAMPLING] for k in range(OVERSAMPLING)])
    return np.add.reduce([rows[:, k::OVERSAMPLING] for k in range(OVERSAMPLING)]) / OVERSAMPLING**2


def place(picture: np.ndarray, shape: Shape, attribute: str | None, pose: Pose, rng: np.random.Generator) -> None:
    """Draw an object with an attribute (None: none) onto a picture [S, S, 3] in [0, 1], in place."""
    figure, (x, y) = rasterise(shape, pose, len(picture), rng)
    if attribute is not None:
        LOOKS[attribute](figure, rng)
    light, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.22)
    shade = 1 + float(strength * np.cos(light)) * figure.u + float(strength * np.sin(light)) * figure.v
    rim = 0.55 + 0.45 * np.clip(2.4 * figure.depth(0.05) - 1.2, 0, 1)  # a dark outline
    figure.rgb *= (shade * rim)[..., None]
    np.clip(figure.rgb, 0, 1, out=figure.rgb)
    figure.rgb *= figure.alpha[..., None]
    cover = shrink(figure.alpha)
    under = picture[y : y + cover.shape[0], x : x + cover.shape[1]]
    under *= 1 - cover[..., None]
    under += shrink(figure.rgb)


def background(rng: np.random.Generator, size: int, shapes: tuple[int, int] = (4, 10)) -> np.ndarray:
    """A cluttered background: a gradient, clouds of colour, and shapes that mean nothing. float32 [S, S, 3]."""
    corners = Image.fromarray(rng.integers(50, 215, (2, 2, 3), dtype=np.uint8))
    canvas = size * OVERSAMPLING
    ground = corners.resize((canvas, canvas), Image.Resampling.BILINEAR)
    pencil = ImageDraw.Draw(ground)
    for _ in range(rng.integers(*shapes)):
        colour = tuple(rng.integers(20, 240, 3).tolist())
        x, y = rng.uniform(0, canvas, 2)
        w, h = rng.uniform(0.03, 0.26, 2) * canvas
        kind = rng.integers(4)
        if kind == 0:
            pencil.ellipse((x - w, y - h, x + w, y + h), fill=colour)
        elif kind == 1:
            pencil.rectangle((x - w, y - h, x + w, y + h), fill=colour)
        elif kind == 2:
            pencil.line((x, y, *rng.uniform(0, canvas, 2)), fill=colour, width=int(1 + 0.2 * w))
        else:
            pencil.polygon([tuple(p) for p in np.array([x, y]) + rng.normal(0, 0.14 * canvas, (3, 2))], fill=colour)
    rgb = np.asarray(ground.reduce(OVERSAMPLING), dtype=np.float32) / 255
    cloud = value_noise(rng, (size, size), int(rng.integers(3, 12)))
    return np.clip(rgb + ((cloud - 0.5) * np.float32(rng.uniform(0.1, 0.5)))[..., None], 0, 1)


def finish(picture: np.ndarray, rng: np.random.Generator, noise: float = 0.03) -> Image.Image:
    """Add the grain of a camera and round to 8 bits."""
    grain = np.float32(noise) * rng.standard_normal(picture.shape, dtype=np.float32)
    return Image.fromarray((np.clip(picture + grain, 0, 1) * 255 + 0.5).astype(np.uint8))
