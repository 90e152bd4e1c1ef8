"""Settings of ComCLIP; `README.md` gives their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from methods.comclip.rule import Mode, Rule, Weight
from methods.parts.region_config import RegionFileConfig

Fill = Literal["black", "mean", "blur", "crop"]


@dataclass
class ComCLIPConfig(RegionFileConfig):
    """Fields of ComCLIP.

    mode: ``unit`` (vectors of length 1), ``raw`` (as the towers give them: the paper's program on ComVG) or ``gclip`` (a successor's).
    regions: where sub-images come from, the same for all labels: ``grid`` (windows), ``patch`` (features of CLIP's own patches),
        ``superpixel`` (their means over segments), ``file`` (``regions_file``) or ``whole`` (none: plain CLIP).
    max_regions: maximal number of regions per image of a file, those with the best scores.
    fill: what is outside of a region: ``black`` (paper), ``mean`` colour, ``blur``, or ``crop`` to the region.
    include_whole: the whole image is one of the regions.
    choice: a word looks at regions by ``soft`` choice or at the ``top`` one.
    choice_tau: temperature of the soft choice, in cosines.
    relation: a third sub-image for attribute and object together: ``off``, or the ``union`` of their regions.
    phrase: how a word is written for the text tower; the paper's is the bare word.
    weight: of sub-images: ``ratio`` (paper), ``softmax`` or ``uniform``.
    tau: temperature of ``weight=softmax``, in cosines.
    beta: sum of the sub-images' weights, where the whole image has 1; 1 in the paper.
    min_score: if no word's cosine exceeds it, the score is plain CLIP's.
    guard: off follows the paper's program, whose weights may blow up.
    """

    about: ClassVar[str] = "Sub-images of attribute and object, weighted by their fit, added to the image. Trains nothing."
    trains: ClassVar[bool] = False

    mode: Mode = "unit"
    regions: Literal["grid", "patch", "superpixel", "file", "whole"] = "grid"
    max_regions: int = 16
    fill: Fill = "black"
    include_whole: bool = True
    choice: Literal["soft", "top"] = "soft"
    choice_tau: float = 0.01
    relation: Literal["off", "union"] = "off"
    phrase: str = "{}"
    weight: Weight = "ratio"
    tau: float = 0.01
    beta: float = 1.0
    min_score: float = 1e-4
    guard: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not self.choice_tau > 0 or not 1 <= self.max_regions <= 1000:
            raise UsageError(
                f"choice_tau is {self.choice_tau}, max_regions {self.max_regions}",
                "choice_tau must be positive, max_regions within 1 and 1000",
                "the defaults are 0.01 and 16",
            )
        if "{}" not in self.phrase:
            raise UsageError(
                f"phrase {self.phrase!r} has no place for the word",
                "each word is put into the phrase",
                "write {} where the word belongs",
            )
        self.rule  # noqa: B018 (it checks its own fields)

    @property
    def only_features(self) -> bool:
        """Except with CLIP's own patches as regions."""
        return self.regions not in ("patch", "superpixel")

    @property
    def rule(self) -> Rule:
        """Return the rule that weights sub-images."""
        return Rule(self.mode, self.weight, self.tau, self.beta, self.min_score, self.guard)

    def notes(self, space: CompositionSpace) -> list[str]:
        """Return warnings about these settings."""
        if self.regions == "whole":
            return ["regions=whole has no sub-images: the scores are plain CLIP's"]
        if self.regions == "file":
            return [f"regions of {len(self.regions_file):,} images; an image that the file does not name is scored as a whole"]
        return []
