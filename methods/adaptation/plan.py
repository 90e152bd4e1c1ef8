"""An adaptation with its settings and the order of its stream: what a report, a file and a comparison name. It imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from methods.adaptation.config import AdaptationConfig
from methods.adaptation.registry import adaptation_settings, canonical_adaptation


@dataclass(frozen=True)
class Plan:
    """An adaptation of a stream of images.

    name : registered name
    settings : complete settings
    seed : of the order of the stream; None is the order in which the images are given
    """

    name: str
    settings: AdaptationConfig
    seed: int | None = 0

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any] | None = None, seed: int | None = 0) -> Plan:
        """Build a plan from names and values; UsageError as :func:`methods.adaptation.registry.adaptation_settings`."""
        return cls(canonical_adaptation(name), adaptation_settings(name, given), seed)

    @property
    def layer(self) -> str:
        """Name of adaptation and settings without the order, e.g. ``tomcat-1f0c9a3e``."""
        text = json.dumps(asdict(self.settings), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def key(self) -> str:
        """Name of the plan in file names, e.g. ``tomcat-1f0c9a3e-seed0``."""
        return f"{self.layer}-{'given' if self.seed is None else f'seed{self.seed}'}"

    def order(self, count: int) -> np.ndarray:
        """Return the indices of ``count`` images in the order of the stream, int64."""
        return np.arange(count) if self.seed is None else np.random.default_rng(self.seed).permutation(count)

    @property
    def changed(self) -> dict[str, Any]:
        """Settings that differ from the defaults."""
        return {f.name: value for f in fields(self.settings) if (value := getattr(self.settings, f.name)) != f.default}

    def to_json(self) -> dict[str, Any]:
        """Return the facts about the adaptation for a report."""
        return {"name": self.name, "transductive": True, "stream_seed": self.seed, "settings": asdict(self.settings)}
