"""Settings of CoOp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.config import MethodConfig


@dataclass
class CoOpConfig(MethodConfig):
    """Fields of CoOp: those of every method."""

    about: ClassVar[str] = "Learned context words before fixed names; both towers frozen."
    adaptable: ClassVar[bool] = True

    @property
    def keeps_features(self) -> bool:
        """Nothing before the text is trained."""
        return True
