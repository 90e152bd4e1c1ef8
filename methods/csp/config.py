"""Settings of CSP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.config import MethodConfig


@dataclass
class CSPConfig(MethodConfig):
    """Fields of CSP.

    attr_dropout: dropout on the table of learned words (0.3 on MIT-States, 0.2 on UT-Zappos).
    context: whether the three words before the attribute are learned too (the base model of TOMCAT).
    adapter_dim: bottleneck width of adapters in the image tower; 0 leaves the tower frozen (TOMCAT: 64).
    adapter_dropout: dropout inside the adapters.
    """

    about: ClassVar[str] = "Learned words for attributes and objects; both towers frozen unless there are adapters."
    adaptable: ClassVar[bool] = True

    attr_dropout: float = 0.3
    context: bool = False
    adapter_dim: int = 0
    adapter_dropout: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.adapter_dim < 0:
            raise self.refused("adapter_dim", "it must be 0 (no adapters) or more")

    @property
    def keeps_features(self) -> bool:
        """Nothing before the text is trained, unless there are adapters."""
        return not self.adapter_dim
