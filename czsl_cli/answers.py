"""Facts of one prediction record that the page, the sorted folders and the review file share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from czsl.compositions import label_words


def confidence(record: Mapping[str, Any]) -> float:
    """Return the probability of the best candidate among all candidates, in [0, 1]."""
    return float(record["predictions"][0]["prob"])


def doubt(record: Mapping[str, Any]) -> str:
    """Return ``"none of these"`` if the record was rejected, ``"not sure"`` if it is below a threshold, else ``""``."""
    if record.get("rejected"):
        return "none of these"
    return "" if record.get("sure", True) else "not sure"


def candidate_words(candidate: Mapping[str, Any]) -> str:
    """Return a candidate with its probability: ``"wet dog 41 %"``."""
    return f"{label_words(candidate)} {percentage(candidate['prob'])}"


def percentage(probability: float) -> str:
    """Return a probability as whole percent; ``"<1 %"`` and ``">99 %"`` near the ends, so that 0 and 100 stay exact."""
    if 0 < probability < 0.01:
        return "<1 %"
    if 0.99 < probability < 1:
        return ">99 %"
    return f"{100 * probability:.0f} %"
