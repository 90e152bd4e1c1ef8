"""Settings of the weights of sub-images; :mod:`methods.comclip.algebra` applies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from czsl.errors import UsageError

Mode = Literal["unit", "raw", "gclip"]
Weight = Literal["ratio", "softmax", "uniform"]


@dataclass(frozen=True)
class Rule:
    """Rule for the weights of sub-images.

    mode : ``unit`` (all vectors of length 1, the fit is a cosine), ``raw`` (vectors as the towers give them, the fit is their inner
        product; what the paper's program does on ComVG and SVO-Probes) or ``gclip`` (raw vectors weighted by cosines that are not
        divided by their sum)
    weight : ``ratio`` (fits divided by their sum), ``softmax`` (of cosines at ``tau``) or ``uniform``
    beta : sum of the weights; 1 in the paper
    min_score : if no word's cosine exceeds it, the image stays as it is
    guard : whether that holds; also, negative fits become 0. Off: the paper's program
    """

    mode: Mode = "unit"
    weight: Weight = "ratio"
    tau: float = 0.01
    beta: float = 1.0
    min_score: float = 1e-4
    guard: bool = True

    def __post_init__(self):
        if self.mode == "gclip" and self.weight != "ratio":
            raise UsageError(f"weight={self.weight} with mode=gclip", "gclip weights by cosines", "drop one of the two")
        for name in ("tau", "beta", "min_score"):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (name == "tau" and value == 0):
                raise UsageError(
                    f"{name} is {value}", "it must be finite and not negative (tau: positive)", f"set another {name}"
                )
