"""Settings of ClusPro; `presets.yaml` names useful combinations and `README.md` gives their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from methods.parts.branches_config import BranchesConfig


@dataclass
class ClusProConfig(BranchesConfig):
    """Fields of ClusPro. Defaults are the preset ``default``.

    heads: MLPs per primitive branch. 2: features are clustered after the first and compared after the second (released code); 1: one
        MLP does both (paper).
    num_prototypes: K, prototypes per primitive.
    assign_scope: samples of a primitive's transport problem: its own (``class``) or the whole ``batch`` (masked afterwards).
    assign_method: ``csot`` (structure-aware transport), ``sinkhorn`` (without structure) or ``cosine`` (nearest prototype).
    solver: ``log`` or ``kernel`` (the arithmetic of the released code, with its overflow).
    entropy: weight of the transport's entropy.
    structure_weight: weight of the transport's structure term.
    structure: likeness of samples: inner products of ``raw`` features or their ``cosine``.
    cost: minus the ``similarity`` to a prototype, or minus its ``log_softmax`` over the K prototypes at ``pcl_tau``.
    ema_assign: what moves prototypes: the plan's ``argmax``, or ``gumbel_on_plan``, a Gumbel sample with the plan as logits.
    ema_mean: what a prototype moves to: ``mean`` of its unit features, or ``normalised_sum`` of raw features.
    momentum: of the moving average.
    proto_normalise: keep prototypes at length 1.
    proto_init: ``zeros``; or from training images: the ``first_samples`` of a primitive, or ``kmeans`` (balanced, spherical).
    object_branch_bug: move object prototypes by attribute features, as the released code did until 2026-02-03.
    bn_mode: which rows the second MLP's running statistics follow: ``features_only``, or ``released`` (features, prototypes and a ring
        buffer of features).
    pcl_weight: weight of the contrastive loss (alpha).
    pcl_tau: its temperature.
    pdl_weight: weight of the decorrelation loss (beta).
    pdl_terms: weights of its attribute and object term.
    pdl_mix: ``half`` mixes the other branch's features into the prototypes, as the first release does.
    pdl_estimator: of HSIC: ``biased`` (reference) or ``unbiased``.
    fusion: ``logit`` (composition logit + product of probabilities, released) or ``probability`` (sum of probabilities, eq. 13).
    """

    about: ClassVar[str] = "Learned prompts and adapters with three branches, and prototypes that shape them in training."
    adaptable: ClassVar[bool] = True

    fractions: ClassVar[tuple[str, ...]] = (*BranchesConfig.fractions, "momentum")
    positive: ClassVar[tuple[str, ...]] = ("entropy", "num_prototypes", "pcl_tau")

    heads: Literal[1, 2] = 1
    num_prototypes: int = 5
    assign_scope: Literal["class", "batch"] = "class"
    assign_method: Literal["csot", "sinkhorn", "cosine"] = "csot"
    solver: Literal["log", "kernel"] = "log"
    entropy: float = 0.1
    structure_weight: float = 1.0
    structure: Literal["cosine", "raw"] = "cosine"
    cost: Literal["log_softmax", "similarity"] = "log_softmax"
    ema_assign: Literal["argmax", "gumbel_on_plan"] = "argmax"
    ema_mean: Literal["mean", "normalised_sum"] = "mean"
    momentum: float = 0.99
    proto_normalise: bool = True
    proto_init: Literal["kmeans", "first_samples", "zeros"] = "kmeans"
    object_branch_bug: bool = False
    bn_mode: Literal["features_only", "released"] = "features_only"
    pcl_weight: float = 0.2
    pcl_tau: float = 0.1
    pdl_weight: float = 0.5
    pdl_terms: tuple[float, float] = (1.0, 1.0)
    pdl_mix: Literal["none", "half"] = "none"
    pdl_estimator: Literal["unbiased", "biased"] = "unbiased"
    fusion: Literal["logit", "probability"] = "probability"

    def __post_init__(self):
        super().__post_init__()
        if len(self.pdl_terms) != 2:
            raise self.refused("pdl_terms", "two weights: of the attribute and of the object term")
        self.pdl_terms = (float(self.pdl_terms[0]), float(self.pdl_terms[1]))
        if self.object_branch_bug and (self.assign_scope != "batch" or self.ema_assign != "gumbel_on_plan"):
            raise self.refused("object_branch_bug", "it exists with assign_scope=batch and ema_assign=gumbel_on_plan only")
        if self.bn_mode == "released" and self.heads == 1:
            raise self.refused("bn_mode", "prototypes and ring buffers pass through the second MLP, which heads=1 does not have")

    @property
    def keeps_features(self) -> bool:
        """Without adapters nothing before the MLPs is trained."""
        return not self.adapter_dim
