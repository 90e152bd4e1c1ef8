"""Settings of LaZSL; `README.md` gives their sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from czsl.compositions import CompositionSpace
from czsl.data.files.descriptors import check_descriptors, match_descriptors, read_descriptors
from czsl.errors import UsageError
from methods.parts.region_config import RegionFileConfig

# Below this, scaling in float32 runs into numbers that it cannot hold.
MIN_EPS = 0.01


@dataclass
class LaZSLConfig(RegionFileConfig):
    """Fields of LaZSL. Defaults are the released program's.

    descriptors: JSON file of phrases for attributes and objects (or classes), kept with the run; labels without phrases get a few
        plain sentences.
    prompt: how a phrase becomes a prompt: ``clause`` ("lemur, which has a long tail"), ``sentence`` (the same with a full stop, as
        the released program does for ImageNet) or ``plain`` (only the phrase).
    regions: ``random`` squares (paper), a fixed ``grid`` of squares of three sizes, or those of a ``file`` (``regions_file``).
    num_regions: R, number of regions per image, at most for a file (those with the best scores); 0 takes the whole image only.
    region_min: smallest side of a region, as a share of the image's shorter side.
    region_max: largest side.
    region_seed: of the random squares, drawn by (seed, image name).
    select: drop regions that are less like the whole image than the average region.
    select_shift: added to that average (gama).
    theta: share of the local score; the rest is the description baseline. 0: only that baseline.
    eps: entropy of the transport.
    solver: ``sinkhorn`` (exact), ``log`` (exact, float64, any eps), ``second_order`` (its expansion, all pairs by one matrix product)
        or ``uniform`` (no transport: plain average).
    attribute_share: of a pair's phrases, what those of the attribute weigh together (lambda); plain classes have none.
    global_term: the whole image is compared with the ``phrases`` of a pair or class, or with the ``prompt`` "a photo of wet dog".
    """

    about: ClassVar[str] = "Regions of an image matched with described labels by optimal transport. Trains nothing."
    trains: ClassVar[bool] = False
    classes: ClassVar[bool] = True
    reads: ClassVar[Mapping[str, Callable[[Path], Any]]] = {**RegionFileConfig.reads, "descriptors": read_descriptors}

    descriptors: dict[str, Any] = field(default_factory=dict)
    prompt: Literal["clause", "sentence", "plain"] = "clause"
    regions: Literal["random", "grid", "file"] = "random"
    num_regions: int = 90
    region_min: float = 0.6
    region_max: float = 0.9
    region_seed: int = 1
    select: bool = True
    select_shift: float = 0.0
    theta: float = 0.8
    eps: float = 0.1
    solver: Literal["sinkhorn", "log", "second_order", "uniform"] = "sinkhorn"
    attribute_share: float = 0.5
    global_term: Literal["phrases", "prompt"] = "phrases"

    def __post_init__(self):
        super().__post_init__()
        self.descriptors = check_descriptors(self.descriptors)
        for name in ("theta", "attribute_share"):
            _inside(name, getattr(self, name), 0, 1)
        _inside("region_max", self.region_max, 0, 1)
        _inside("region_min", self.region_min, 0, self.region_max)
        _inside("num_regions", self.num_regions, 0, 10_000)
        _inside("region_seed", self.region_seed, 0, 2**63)
        if not self.eps > 0:
            raise UsageError(f"eps is {self.eps}", "it must be positive", "the paper's is 0.1")
        if self.solver == "sinkhorn" and self.eps < MIN_EPS:
            raise UsageError(f"eps={self.eps} is too small for solver=sinkhorn", f"the minimum is {MIN_EPS}", "set solver=log")

    @property
    def only_features(self) -> bool:
        """Always."""
        return True

    @cached_property
    def max_per_image(self) -> int:
        """Largest number of regions of any image in the file, at most ``num_regions``."""
        return min(self.num_regions, max(len(found.regions) for found in self.table.images.values()))

    def notes(self, space: CompositionSpace) -> list[str]:
        """Return warnings about descriptors that do not match a label space."""
        found = []
        if not self.descriptors:
            kinds = " and ".join(space.vocabulary)
            found.append(f"no descriptors: {kinds} get plain sentences (give phrases with descriptors=FILE)")
        for kind, names in space.vocabulary.items():
            matched = match_descriptors(names, self.descriptors.get(kind, {}))
            plain = [*matched.missing, *matched.empty]
            if plain and self.descriptors:
                found.append(f"{len(plain)} of {len(names)} {kind} have no phrases, only plain sentences: {_some(plain)}")
            if matched.unknown:
                found.append(
                    f"{len(matched.unknown)} described {kind} left out, which no label is called: {_some(matched.unknown)}"
                )
        return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _inside(name: str, value: float, minimum: float, maximum: float) -> None:
    if not minimum <= value <= maximum:
        raise UsageError(f"{name} is {value}", f"it must lie between {minimum} and {maximum}", f"set {name} within these limits")
