"""Settings of MSCI; `presets.yaml` names useful combinations and `README.md` gives their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from methods.parts.branches_config import CrossAttentionConfig

LOW, HIGH = "low", "high"


@dataclass
class MSCIConfig(CrossAttentionConfig):
    """Fields of MSCI. Defaults are the preset ``default``.

    low_blocks: first blocks of the image tower whose tokens the first stage sees; 0 for a sixth of the tower (4 of 24).
    high_blocks: last blocks, whose tokens the second stage sees; 0 for a sixth.
    aggregator: how the maps of several blocks become one: a learned ``linear`` mix of all channels, their ``mean``, or the ``last``.
    aggregator_dropout: dropout after the linear mix.
    stage1_layers: cross-attention layers of the first stage, shared by the three branches.
    stage2_layers: the same of the second stage.
    stage1_heads: attention heads of the first stage; 0 for heads of width 64. Kept in checkpoints, since the weights do not show it.
    stage2_heads: the same of the second stage.
    stage1_dropout: dropout after the attention, inside and after the MLP of the first stage.
    stage2_dropout: the same of the second stage.
    stage_order: ``sequential`` (the second stage queries with the first one's answer), ``parallel`` (both query with the text), or one
        single stage: ``low`` or ``high``.
    residual_terms: which answers join the text: ``both``, the first stage's (``q1``) or the second's (``q2``).
    gate_scale: initial weight of an answer, one number a channel.
    zero_init: start the stages as the identity, so that training starts at the cosines of CLIP's own text (not the paper's).
    """

    about: ClassVar[str] = "Learned prompts and adapters; texts attend to low, then to high layers of the image tower."
    fractions: ClassVar[tuple[str, ...]] = (
        *CrossAttentionConfig.fractions,
        "aggregator_dropout",
        "stage1_dropout",
        "stage2_dropout",
    )
    positive: ClassVar[tuple[str, ...]] = ("stage1_layers", "stage2_layers")

    low_blocks: int = 0
    high_blocks: int = 0
    aggregator: Literal["linear", "mean", "last"] = "linear"
    aggregator_dropout: float = 0.1
    stage1_layers: int = 1
    stage2_layers: int = 1
    stage1_heads: int = 0
    stage2_heads: int = 0
    stage1_dropout: float = 0.1
    stage2_dropout: float = 0.1
    stage_order: Literal["sequential", "parallel", "low", "high"] = "sequential"
    residual_terms: Literal["both", "q1", "q2"] = "both"
    gate_scale: float = 0.1
    zero_init: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("low_blocks", "high_blocks", "stage1_heads", "stage2_heads"):
            if getattr(self, name) < 0:
                raise self.refused(name, "it must be 0 or more")
        if not self.added:
            raise self.refused("residual_terms", f"stage_order={self.stage_order} does not compute it")

    @property
    def added(self) -> tuple[str, ...]:
        """Stages whose answers join the text."""
        terms = {"both": (LOW, HIGH), "q1": (LOW,), "q2": (HIGH,)}[self.residual_terms]
        return tuple(s for s in terms if self.stage_order not in (LOW, HIGH) or s == self.stage_order)

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages that are needed: those whose answers are added, and one that another queries with."""
        asked = (LOW,) if self.stage_order == "sequential" and HIGH in self.added else ()
        return tuple(s for s in (LOW, HIGH) if s in (*self.added, *asked))
