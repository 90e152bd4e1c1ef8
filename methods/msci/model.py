"""MSCI (Wang, Xu, Zhu, Li: MSCI: Addressing CLIP's Inherent Limitations for Compositional Zero-Shot Learning, IJCAI 2025).

Letters: B images, n texts (pairs or primitives), L visual tokens (class token first), D joint width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from czsl.clip.backbone import Clip
from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from methods.explanation import Explanation, ScoredImage, branch_figures
from methods.msci.config import HIGH, LOW, MSCIConfig
from methods.msci.explain import explained_parts
from methods.parts.cross_attention import CrossAttentionLayer, CrossAttentionLayers, Memory, branch_cosines
from methods.parts.cross_attention_method import AttendedImages, CrossAttentionMethod, candidate_texts

NUMBER = {LOW: 1, HIGH: 2}
FRACTION = 6  # of the tower's blocks, where the number of low or high blocks is not given: 4 of 24


class Stage(nn.Module):
    """Cross-attention layers over one map of the image, normalised once.

    Parameters
    ----------
    dim : int
        D.
    layers, heads : int
    dropout : float
    zero_init : bool
        Start as the identity.
    """

    def __init__(self, dim: int, layers: int, heads: int, dropout: float, zero_init: bool):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.cross_attn_layers = CrossAttentionLayers(dim, layers, heads, dropout)
        for layer in cast(list[CrossAttentionLayer], list(self.cross_attn_layers)) if zero_init else ():
            for last in (layer.cross_attn.proj, cast(nn.Linear, layer.mlp[-1])):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def memory(self, map_BLD: Tensor) -> Memory:
        """Keys and values of all layers."""
        return self.cross_attn_layers.memory(self.norm(map_BLD))

    def forward(self, text_nD: Tensor, memory: Memory) -> Tensor:
        """Texts [n, D] (or [B, n, D]) and what they find in the images, [B, n, D]."""
        return self.cross_attn_layers(text_nD, memory)


class MSCI(CrossAttentionMethod):
    """Learned prompts and adapters with three branches, whose texts attend to low, then to high layers of the image tower.

    A step costs an encoding of all training pairs, the image tower forth and back, and for each image two small transformers over
    all training pairs and primitives: at ViT-L/14 about 25 MFLOP a text forth. Each worker does that for its own images.
    """

    name, title, Config = "msci", "MSCI", MSCIConfig

    config: MSCIConfig
    stage_heads: Tensor

    def __init__(self, space: CompositionSpace, clip: Clip, config: MSCIConfig):
        super().__init__(space, clip, config)
        c, D = config, clip.dim
        self.taps = {stage: self._taps(stage) for stage in c.stages}
        learned = [s for s in c.stages if c.aggregator == "linear" and len(self.taps[s]) > 1]
        self.aggregators = nn.ModuleDict({s: self._linear(len(self.taps[s]) * D) for s in learned})
        heads = {s: self.attention_heads(f"stage{NUMBER[s]}_heads") for s in c.stages}
        self.stages = nn.ModuleDict({s: self._stage(s, heads[s]) for s in c.stages})
        self.gates = nn.ParameterDict({s: nn.Parameter(torch.full((D,), c.gate_scale)) for s in c.added})
        # The number of heads follows from no weight: without this, weights of 12 heads would load as those of 16.
        self.register_buffer("stage_heads", torch.tensor(list(heads.values())))

    def _taps(self, stage: str) -> range:
        name, depth = f"{stage}_blocks", len(self.clip.visual.blocks)
        count = getattr(self.config, name) or max(1, depth // FRACTION)
        if count > depth:
            raise self.config.refused(name, f"the image tower has {depth} blocks")
        return range(count) if stage == LOW else range(depth - count, depth)

    def _linear(self, channels: int) -> nn.Module:
        D = self.clip.dim
        return nn.Sequential(nn.Linear(channels, D), nn.LayerNorm(D), nn.ReLU(), nn.Dropout(self.config.aggregator_dropout))

    def _stage(self, stage: str, heads: int) -> Stage:
        c, number = self.config, NUMBER[stage]
        layers, dropout = getattr(c, f"stage{number}_layers"), getattr(c, f"stage{number}_dropout")
        return Stage(self.clip.dim, layers, heads, dropout, c.zero_init)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Refuses weights of another number of heads (:class:`UsageError`): their shapes are the same, the function is not."""
        there, here = state_dict.get("stage_heads", self.stage_heads).tolist(), self.stage_heads.tolist()
        if there != here:
            raise UsageError(
                "the weights are of another number of attention heads",
                f"theirs: {there}; here: {here}",
                f"set {' and '.join(f'stage{NUMBER[s]}_heads' for s in self.config.stages)} as they were in training",
            )
        return super().load_state_dict(state_dict, strict, assign)

    # -- images ----------------------------------------------------------------------------------------------------
    def image_features(self, batch: Mapping[str, Any]) -> Tensor:
        """Un-normalised class feature, then the map of each stage: [B, 1 + stages * L, D]."""
        last = len(self.clip.visual.blocks) - 1
        blocks = {last}.union(*self.taps.values())
        tokens = self.clip.visual.tapped(self.clip.normalise(batch["images"]), blocks, self.adapters)
        maps = [self.aggregate(s, [tokens[i] for i in self.taps[s]]) for s in self.taps]
        return torch.cat([tokens[last][:, :1], *(x.to(tokens[last].dtype) for x in maps)], dim=1)

    def aggregate(self, stage: str, maps: Sequence[Tensor]) -> Tensor:
        """One map [B, L, D] of those of a stage's blocks; a single one stays as it is."""
        if stage in self.aggregators:
            return self.aggregators[stage](torch.cat(list(maps), dim=-1))
        return torch.stack(list(maps)).mean(0) if self.config.aggregator == "mean" else maps[-1]

    def memory(self, features: Tensor) -> dict[str, Memory]:
        """Keys and values of each stage, computed once an image for all branches and texts."""
        maps = features[:, 1:].chunk(len(self.stages), dim=1)
        return {s: cast(Stage, stage).memory(x) for (s, stage), x in zip(self.stages.items(), maps, strict=True)}

    # -- text that looks at the image --------------------------------------------------------------------------------
    def answers(self, text_nD: Tensor, memory: dict[str, Memory]) -> dict[str, Tensor]:
        """Attended texts of each stage: q1 and q2 [B, n, D]."""
        out: dict[str, Tensor] = {}
        for s, stage in self.stages.items():
            asks = out[LOW] if s == HIGH and self.config.stage_order == "sequential" else text_nD
            out[s] = stage(asks, memory[s])
        return out

    def move(self, text_nD: Tensor, memory: dict[str, Memory]) -> Tensor:
        """t* = t + lambda1 q1 + lambda2 q2, [B, n, D]."""
        answers, moved = self.answers(text_nD, memory), text_nD
        for s, gate_D in self.gates.items():
            moved = moved + gate_D * answers[s]
        return moved

    def cosines(self, images: Sequence[Tensor], texts: Sequence[Tensor], memory: dict[str, Memory]) -> list[Tensor]:
        """Cosines with the moved texts; the texts of all branches are one set of queries."""
        return branch_cosines(images, texts, lambda text_mD: self.move(text_mD, memory))

    # -- explanation -----------------------------------------------------------------------------------------------
    def shares(self, text_nD: Tensor, memory: dict[str, Memory]) -> dict[str, Tensor]:
        """Summands of t*, each [B, n, D]: the text, and what each stage added to its query.

        With both answers of sequential stages: (1 + lambda1 + lambda2) t + (lambda1 + lambda2) D1 + lambda2 D2.
        """
        answers, chained = self.answers(text_nD, memory), self.config.stage_order == "sequential"
        parts = {"text": text_nD.expand_as(next(iter(answers.values())))}
        for s, answer in answers.items():
            parts[s] = answer - (answers[LOW] if s == HIGH and chained else text_nD)
        out = {name: torch.zeros_like(part) for name, part in parts.items()}
        out["text"] = parts["text"].clone()
        for s, gate_D in self.gates.items():
            for name in {"text", s} | ({LOW} if chained else set()):
                out[name] = out[name] + gate_D * parts[name]
        return out

    def attention(self, text_nD: Tensor, memory: dict[str, Memory]) -> dict[str, Tensor]:
        """Weights [n, L] of each stage for the first image, mean over its layers and heads."""
        answers, chained = self.answers(text_nD, memory), self.config.stage_order == "sequential"
        out: dict[str, Tensor] = {}
        for s, stage in self.stages.items():
            asks = answers[LOW] if s == HIGH and chained else text_nD
            out[s] = cast(Stage, stage).cross_attn_layers.attention(asks, memory[s])[0]
        return out

    def explain_candidate(self, scored: ScoredImage, index: int) -> Explanation:
        """The attention of each stage for the pair and its primitives, and the shares of text and stages in the moved texts."""
        names = self.space.pair_names(scored.text.pairs[index].tolist())
        labels = (" ".join(names), *names)
        assert isinstance(scored.features, AttendedImages)
        text_nD, memory = candidate_texts(scored.text, index), scored.features.memory
        attention, shares = self.attention(text_nD, memory), self.shares(text_nD, memory)
        parts = explained_parts(scored, attention, {name: part[0] for name, part in shares.items()}, labels)
        return Explanation(names, [*parts, branch_figures(scored, index, labels)])
