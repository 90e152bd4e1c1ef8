"""Settings of GDE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from methods.config import MethodConfig


@dataclass
class GDEConfig(MethodConfig):
    """Fields of GDE. A field that is null is chosen by the AUC on the validation images.

    geometry: ``sphere`` (tangent space of the mean) or ``linear`` (differences of means).
    fit: ``ridge`` (least squares over pairs) or ``mean`` (the published form, which assumes that every attribute comes with every object).
    weights: of the images of a pair: ``clip`` (softmax of the cosine with the pair's prompt over the temperature) or ``uniform``.
    temperature: of these weights.
    ridge: weight of the squared length of directions in the fit, in pairs.
    text: share of the prompt's text feature in a composition's embedding, from 0 (images only) to 1 (plain CLIP).
    """

    label: ClassVar[str] = "GDE"
    about: ClassVar[str] = "Directions of attributes and objects from image features in closed form; takes new images in seconds."
    adaptable: ClassVar[bool] = True
    classes: ClassVar[bool] = True
    steps: ClassVar[bool] = False
    grows: ClassVar[bool] = True

    geometry: Literal["sphere", "linear"] = "sphere"
    fit: Literal["ridge", "mean"] = "ridge"
    weights: Literal["clip", "uniform"] = "clip"
    temperature: float | None = None
    ridge: float | None = None
    text: float | None = None

    @property
    def only_features(self) -> bool:
        """Everything follows from features of images and prompts."""
        return True

    @property
    def keeps_features(self) -> bool:
        """Image features never change."""
        return True

    def __post_init__(self):
        super().__post_init__()
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise self.refused("temperature", "it must be above 0; weights=uniform gives all images of a pair the same weight")
        if self.ridge is not None and not 0 <= self.ridge < math.inf:
            raise self.refused("ridge", "it must be 0 or more")
        if self.text is not None and not 0 <= self.text <= 1:
            raise self.refused("text", "it is a share between 0 and 1")
