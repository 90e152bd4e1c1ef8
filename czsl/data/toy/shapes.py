"""Objects of the toy data: outlines in their own coordinates, and how attributes show on them.

Coordinates: x to the right, y down, about [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """A polygon of an object and the colours that it may have when no attribute changes them."""

    name: str
    outline: np.ndarray
    colours: tuple[Colour, ...]


@dataclass(frozen=True)
class Shape:
    """An object: its parts from back to front, and how attributes show on it.

    Parameters
    ----------
    parts : tuple of Part
        Drawn in this order.
    paint, skin : tuple of str
        Names of the parts that take a colour, and of those that take a texture.
    tint : Colour
        What the object does to any colour put on it (multiplied, component by component).
    field : callable (u, v) -> phase
        Stripes and wood grain follow the level lines of this function of the object's coordinates.
    stripes, dots : float
        Stripes a unit of the field; spacing of the dots in units.
    turn : float
        Largest rotation in degrees.
    burn, damp, cold : (float, float)
        Direction, in the object's frame, from which fire, moss and frost come; (0, 0) is from the rim.
    crack : ((x, y), angle in degrees)
        Where cracks start and which way they run.
    through : bool
        Whether one sees through the object when it is hollow (a dark cavity otherwise).
    """

    parts: tuple[Part, ...]
    paint: tuple[str, ...]
    skin: tuple[str, ...]
    tint: Colour
    field: Callable[[np.ndarray, np.ndarray], np.ndarray]
    stripes: float
    dots: float
    turn: float
    burn: tuple[float, float]
    damp: tuple[float, float]
    cold: tuple[float, float]
    crack: tuple[tuple[float, float], float]
    through: bool


def oval(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> np.ndarray:
    """An ellipse, or the arc of one between two angles in degrees, as points [n, 2]."""
    angle = np.radians(np.linspace(start, stop, 28))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """A rectangle as points [4, 2]."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def corners(*points: tuple[float, float]) -> np.ndarray:
    """A polygon as points [n, 2]."""
    return np.array(points, dtype=float)


def smooth(*points: tuple[float, float], steps: int = 4) -> np.ndarray:
    """A closed Catmull-Rom curve through the points, [steps * n, 2]."""
    p = np.array(points, dtype=float)
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (q[:, None] for q in (before, p, after, beyond))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return curve.reshape(-1, 2)


def stroke(points: Sequence[tuple[float, float]], width: float) -> np.ndarray:
    """A band of a given width along an open line, as a polygon."""
    p = np.array(points, dtype=float)
    along = np.gradient(p, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    return np.concatenate([p + normal * width / 2, (p - normal * width / 2)[::-1]])
