"""Settings of CSP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.config import MethodConfig


@dataclass
class CSPConfig(MethodConfig):
    """Fields of CSP.

    attr_dropout: dropout on the table of learned words (0.3 on MIT-States, 0.2 on UT-Zappos).
    """

    about: ClassVar[str] = "Learned words for attributes and objects; both towers frozen."
    adaptable: ClassVar[bool] = True

    attr_dropout: float = 0.3

    @property
    def keeps_features(self) -> bool:
        """Nothing before the text is trained."""
        return True
