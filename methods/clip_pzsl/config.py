"""Fields of CLIP-PZSL; README.md gives the source of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from methods.config import MethodConfig

Assign = Literal["argmax", "soft", "gumbel_logits", "gumbel_probs"]


@dataclass
class ClipPzslConfig(MethodConfig):
    """Fields of CLIP-PZSL. The label confidences have settings of the run (``label_*``), since they serve every method.

    depth: layers of the mining block; 0 leaves it out, so that label embeddings stay CLIP's.
    assign: which label an image is a point of: ``argmax`` (one-hot, gradient of the softmax), ``soft`` (the softmax),
        ``gumbel_logits`` (one-hot of noisy logits), ``gumbel_probs`` (noise on probabilities, as KMT-PLL has it).
    restrict: let an image be a point of its candidate labels only. In training the labels then hold their images of the batch, in testing
        they do not (README.md has the figures).
    reduce: ``mean`` or ``sum`` of a label's points.
    rho: step of a label towards what its points say.
    ffn_ratio: width of the block's MLP over the joint width.
    mu: step of the running average of label embeddings.
    seen_inference: embeddings of seen pairs in testing: the running ``average``, or the block without points (``symmetric``), as
        unseen pairs always have.
    tau: initial temperature of the cosines; learned.
    adapter: bottleneck width of the residual MLP on image features; 0 for none.
    adapter_scale: its weight.
    align_weight: weight of 1 - cosine between an image and its soft label embedding.
    outside_weight: weight of -log of the probability of all candidate labels together.
    anchor_weight: weight of 1 - cosine to the frozen features, of labels and of images.
    relevance_in_loss: multiply the term of each candidate label by its relevance 0.5 + 0.5 cosine, as KMT-PLL does.
    em_rounds: rounds of the closed form without training (``preset=em``); 0 for training.
    em_rho: step of a label towards the mean of its images in the closed form.
    """

    label: ClassVar[str] = "CLIP-PZSL"
    about: ClassVar[str] = "Label embeddings mined from images and words, trained on weighted candidate labels; towers frozen."
    classes: ClassVar[bool] = True
    adaptable: ClassVar[bool] = True

    depth: int = 1
    assign: Assign = "argmax"
    restrict: bool = False
    reduce: Literal["mean", "sum"] = "mean"
    rho: float = 0.1
    ffn_ratio: float = 2.0
    mu: float = 0.1
    seen_inference: Literal["average", "symmetric"] = "average"
    tau: float = 0.05
    adapter: int = 0
    adapter_scale: float = 0.1
    align_weight: float = 0.1
    outside_weight: float = 0.1
    anchor_weight: float = 1.0
    relevance_in_loss: bool = False
    em_rounds: int = 0
    em_rho: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        for name in ("tau", "ffn_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise self.refused(name, "it must be above 0")
        if not 0 <= self.mu <= 1:
            raise self.refused("mu", "it must lie between 0 and 1")
        at_least_0 = ("depth", "adapter", "em_rounds", "align_weight", "outside_weight", "anchor_weight", "rho", "em_rho")
        for name in at_least_0:
            if not 0 <= getattr(self, name) < math.inf:
                raise self.refused(name, "it must be 0 or more")

    @property
    def only_features(self) -> bool:
        """Always: it trains label embeddings next to the towers."""
        return True

    @property
    def keeps_features(self) -> bool:
        """Nothing before the features is trained."""
        return True
