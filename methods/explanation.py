"""Explanation of one image and one composition, as plain data that a command can show for any method.

Letters: N images, D width, P candidates, A attributes, O objects; h, w cells of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

    from methods.features import ImageFeatures, TextFeatures

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the original image
DIGITS = 7  # of numbers in JSON: what float32 holds


@dataclass(frozen=True)
class HeatMap:
    """A value for each cell of a rectangle of the image.

    group : maps of a group are shown side by side
    values : float [h, w]
    extent : the rectangle
    note : what the numbers are, in a few words
    elsewhere : what belongs to no cell (attention to the class token); ``values.sum() + elsewhere`` is 1 for attention
    even : the neutral value to compare with: 1 / L for attention; None without one
    """

    group: str
    title: str
    values: np.ndarray
    extent: Box
    note: str = ""
    elsewhere: float | None = None
    even: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "kind": "heat map", "group": self.group, "title": self.title, "values": rounded(self.values),
            "extent": list(self.extent), "elsewhere": self.elsewhere, "even": self.even,
        }  # fmt: skip


@dataclass(frozen=True)
class Boxes:
    """Rectangles of the image, each with a caption."""

    title: str
    boxes: Sequence[Box]
    captions: Sequence[str]
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        boxes = [[float(x) for x in box] for box in self.boxes]
        return {"kind": "boxes", "title": self.title, "boxes": boxes, "captions": list(self.captions)}


@dataclass(frozen=True)
class Shares:
    """Parts [n, columns] of totals [columns]: each column of ``values`` adds up to its total."""

    title: str
    parts: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray
    totals: Sequence[float]
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "kind": "shares", "title": self.title, "parts": list(self.parts), "columns": list(self.columns),
            "values": rounded(self.values), "totals": [float(x) for x in self.totals],
        }  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """A table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int]]
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"kind": "table", "title": self.title, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}


@dataclass(frozen=True)
class Neighbours:
    """Training images: indices of the :class:`Examples` that were given, with their cosines."""

    title: str
    places: Sequence[int]
    cosines: Sequence[float]
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``places`` until the images' names are known."""
        return {"kind": "neighbours", "title": self.title, "places": list(self.places), "cosines": list(self.cosines)}


Part = HeatMap | Boxes | Shares | Figures | Neighbours


@dataclass(frozen=True)
class Explanation:
    """The parts in the order of display, and notes about them (``notes``)."""

    candidate: tuple[str, ...]
    parts: Sequence[Part]
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"candidate": list(self.candidate), "parts": [p.to_json() for p in self.parts], "notes": list(self.notes)}


class Explained(Protocol):
    """Interface of a method's explanation."""

    @property
    def parts(self) -> Sequence[Part]:
        """Parts to show, in order."""

    @property
    def notes(self) -> Sequence[str]:
        """Notes shown to the user."""

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain data."""


@dataclass(frozen=True)
class Examples:
    """Training images: ``features`` [N, D] as ``Method.image_features`` gives them, and their labels [N]."""

    features: Tensor
    attr: np.ndarray
    obj: np.ndarray


@dataclass(frozen=True)
class ScoredImage:
    """An image before the candidates, everything computed once for all of them.

    image : the original
    image_id : the name under which it was scored
    features : image features of this one image
    text : text features of P candidates
    logits : of ``Method.logits``: pair [1, P], attribute [1, A], object [1, O] if the method has branches
    examples : gives training images that show an attribute or an object (indices), or None if none are available
    """

    image: Image.Image
    image_id: str
    features: ImageFeatures
    text: TextFeatures
    logits: tuple[Tensor, Tensor | None, Tensor | None]
    examples: Callable[[int, int], Examples | None] = field(default=lambda _attribute, _object: None)


def branch_figures(scored: ScoredImage, index: int, names: tuple[str, str, str]) -> Figures:
    """Logit, probability and rank of a candidate (``names``: its own, its attribute's and its object's) in each branch there is."""
    attribute, obj = scored.text.pairs[index].tolist()
    rows: list[list[str | float | int]] = []
    for branch, name, logits, column in zip(
        ("composition" if names[1] else "class", "attribute", "object"),
        names,
        scored.logits,
        (index, attribute, obj),
        strict=True,
    ):
        if logits is None:
            continue
        row = logits[0].double()
        rank = 1 + int((row > row[column]).sum())
        prob = float(row.softmax(0)[column])
        rows.append([branch, name, round(float(row[column]), 4), round(prob, 6), rank, len(row)])
    text = "A probability is the softmax of a branch's scaled cosines over all of its labels."
    return Figures("What the branches say", ["branch", "label", "logit", "probability", "rank", "of"], rows, text)


def attention_map(group: str, title: str, weights_L: Tensor, size: tuple[int, int]) -> HeatMap:
    """Attention to an image's tokens, class token first, over the square of an image (width, height) that CLIP's pipeline cuts out."""
    weights = weights_L.double().cpu().numpy()
    side = round((len(weights) - 1) ** 0.5)
    return HeatMap(
        group, title, weights[1:].reshape(side, side), centre_square(size), "attention", float(weights[0]), 1 / len(weights)
    )


def centre_square(size: tuple[int, int]) -> Box:
    """Return the part of an image (width, height) that CLIP's resize and centre crop keep."""
    short = min(size)
    left, top = ((extent - short) / 2 for extent in size)
    return left, top, left + short, top + short


def rounded(values: np.ndarray) -> list[Any]:
    """Nested lists of the digits that mean something."""
    flat = [float(f"{x:.{DIGITS}g}") for x in np.asarray(values, dtype=float).reshape(-1)]
    return np.array(flat).reshape(np.shape(values)).tolist()
