"""Settings of the adaptations. It imports no torch, so that a command refuses a bad setting at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from czsl.errors import UsageError
from czsl.runs.settings import typed

PUBLISHED_SCALE = 100.0  # CLIP's logit scale, to which published alphas belong
MAX_SHOTS = 1000


@dataclass(frozen=True)
class AdaptationConfig:
    """Base of the settings of an adaptation: finite numbers, each in its range."""

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    # Fields that may be negative; and those that are shares, from 0 to 1.
    signed: ClassVar[tuple[str, ...]] = ()
    shares: ClassVar[tuple[str, ...]] = ()

    released: bool = False

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool):
                continue
            if not math.isfinite(value):
                raise self.refused(field.name, "it must be a finite number")
            if field.name.endswith("shots"):
                if not 1 <= value <= MAX_SHOTS:
                    raise self.refused(field.name, f"it must lie between 1 and {MAX_SHOTS}")
            elif field.name in self.shares:
                if not 0 <= value <= 1:
                    raise self.refused(field.name, "it must lie between 0 and 1")
            elif value < 0 and field.name not in self.signed:
                raise self.refused(field.name, "it must be 0 or more")

    def refused(self, name: str, why: str) -> UsageError:
        """Return the error of a field whose value is not possible."""
        return UsageError(f"{self.name}: {name}={getattr(self, name)!r}", why, f"czsl methods {self.name} lists its settings")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Build the settings from names and values.

        Raises
        ------
        UsageError
            An unknown name (with the nearest one), a value of the wrong type or out of its range.
        """
        from czsl.runs.settings import check_known

        check_known(settings, [f.name for f in fields(cls)], cls.name)
        return cls(**typed(dict(settings), cls))

    def weight(self, alpha: float, scale: float) -> float:
        """Return the factor of a cache term at this logit scale: an ``alpha`` is stated as published, at a scale of 100."""
        return alpha if self.released else alpha * scale / PUBLISHED_SCALE


@dataclass(frozen=True)
class TomcatConfig(AdaptationConfig):
    """Settings of TOMCAT. Defaults are its values for UT-Zappos, which were the least harmful on photographs.

    shots: entries of the cache per composition.
    alpha: weight of the cache in the scores, stated at a logit scale of 100 (multiplied by scale / 100).
    beta: sharpness of the cache's affinity.
    theta: how fast a composition's freedom to move falls with its likeness to the image.
    text_lr: learning rate of the text residuals.
    image_lr: learning rate of the residuals of cached images.
    weight_decay: decoupled weight decay of both.
    align_weight: weight of the loss that aligns cached images with texts.
    cache: whether there is a cache; without it neither alpha nor the alignment counts.
    released: as the public code does: alpha is not scaled, and all pairs of the dataset compete while adapting.
    """

    name: ClassVar[str] = "tomcat"
    about: ClassVar[str] = (
        "Text and image residuals learned by entropy and alignment, and a cache of confident images (NeurIPS 2025)."
    )
    signed: ClassVar[tuple[str, ...]] = ("theta",)

    shots: int = 3
    alpha: float = 0.0
    beta: float = 7.5
    theta: float = 1.0
    text_lr: float = 5e-6
    image_lr: float = 5e-6
    weight_decay: float = 1e-3
    align_weight: float = 3.5
    cache: bool = True


@dataclass(frozen=True)
class TdaConfig(AdaptationConfig):
    """Settings of TDA. Defaults are the published ones for ImageNet.

    shots: entries of the positive cache per composition.
    alpha: weight of the positive cache, stated at a logit scale of 100 (multiplied by scale / 100).
    beta: sharpness of its affinity.
    negative: whether there is a negative cache, of uncertain images.
    negative_shots: entries of the negative cache per composition.
    negative_alpha: weight of the negative cache, stated like alpha.
    negative_beta: sharpness of its affinity.
    entropy_low: an image is uncertain if its entropy (nats) divided by log2 of the number of candidates lies above this ...
    entropy_high: ... and below this.
    mask_low: an uncertain image speaks against the candidates with a probability above this ...
    mask_high: ... and below this.
    released: as the public code does: alphas are not scaled, and all pairs of the dataset compete while adapting.
    """

    name: ClassVar[str] = "tda"
    about: ClassVar[str] = "Caches of confident and of uncertain images, without any gradient (CVPR 2024)."
    shares: ClassVar[tuple[str, ...]] = ("entropy_low", "entropy_high", "mask_low", "mask_high")

    shots: int = 3
    alpha: float = 2.0
    beta: float = 5.0
    negative: bool = True
    negative_shots: int = 2
    negative_alpha: float = 0.117
    negative_beta: float = 1.0
    entropy_low: float = 0.2
    entropy_high: float = 0.5
    mask_low: float = 0.03
    mask_high: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.mask_low < 0.001:
            raise self.refused("mask_low", "it must be at least 0.001: it bounds the memory of the negative cache")
