"""Settings of zero-shot CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.config import MethodConfig


@dataclass
class ZeroShotConfig(MethodConfig):
    """Fields of zero-shot CLIP: those of every method."""

    label: ClassVar[str] = "zero-shot CLIP"
    about: ClassVar[str] = "CLIP as it is. Trains nothing."
    trains: ClassVar[bool] = False
    classes: ClassVar[bool] = True
    adaptable: ClassVar[bool] = True

    @property
    def only_features(self) -> bool:
        """Always."""
        return True
