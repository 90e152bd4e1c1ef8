"""Checkpoints of public programs: which of their tensors is which of ours, and what their settings are called.

Letters: A attributes, O objects, W text width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from czsl.errors import UsageError
from methods.parts.prompts import CONTEXT

State = Mapping[str, Tensor]
TABLE = "prompts.table"
# The frozen towers, which some programs save along (twice: under the names of CLIP and under those of their text encoder).
TOWERS = (r"clip\..*", r"text_encoder\..*", r"token_ids")

# Of the programs that descend from Troika: heads of names -> ours.
BRANCH_NAMES = {
    "soft_att_obj": TABLE,
    "comp_ctx_vectors": "prompts.context.pair",
    "attr_ctx_vectors": "prompts.context.attribute",
    "obj_ctx_vectors": "prompts.context.object",
    "additional_visual_params": "adapters",
}
# Their settings with ours, which have the same names: kept where the program's own configuration says otherwise than its defaults.
BRANCH_SETTINGS = {
    "adapter_dropout": 0.1,
    "attr_dropout": 0.3,
    **{f"{branch}_{what}_weight": 1.0 for branch in ("pair", "attr", "obj") for what in ("loss", "inference")},
}


@dataclass
class Translation:
    """A public state under our names.

    tensors : our name -> tensor
    origin : our name -> the public name or names
    ignored : public names that were left out
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, list[str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PublicNames:
    """Content of a public program's checkpoint.

    program : its name, for messages
    renamed : the part of a public name before the first dot -> what we call it; the rest of the name stays
    settings : (state, the program's configuration) -> fields of our method
    ignored : patterns of names that the program saves and never reads
    unread : the same where that depends on the state
    stacked : our name -> stems of the public tensors ``<stem>0``, ``<stem>1``, ... (of attributes, of objects) that are its rows
    constants : values that are in no public file
    absent : names of ours that no public file has and that may stay as they are
    table : our name of the learned words, which tell whether the labels fit; None if a program learns none
    """

    program: str
    renamed: Mapping[str, str]
    settings: Callable[[State, Mapping[str, Any]], dict[str, Any]]
    ignored: tuple[str, ...] = ()
    unread: Callable[[State], tuple[str, ...]] = lambda state: ()
    stacked: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    table: str | None = TABLE

    def towers(self, state: State) -> dict[str, Tensor]:
        """The CLIP that a checkpoint carries, in OpenAI's format; empty if it carries none."""
        return {k.removeprefix("clip."): torch.as_tensor(v) for k, v in state.items() if k.startswith("clip.")}

    def translate(self, state: State) -> Translation:
        """All tensors of a public state under our names.

        Raises
        ------
        UsageError
            Names that are neither mapped nor known to be unused, or rows that are not complete.
        """
        out, unknown = Translation(), []
        unread = self.unread(state)
        rows: dict[str, dict[int, Tensor]] = {stem: {} for stems in self.stacked.values() for stem in stems}
        for name, tensor in state.items():
            head, dot, tail = name.partition(".")
            numbered = re.fullmatch(r"(.*?)(\d{1,6})", name)
            if any(re.fullmatch(pattern, name) for pattern in unread):
                out.ignored.append(name)
            elif head in self.renamed:
                own = self.renamed[head] + dot + tail
                out.tensors[own], out.origin[own] = tensor, [name]
            elif numbered and numbered[1] in rows:
                rows[numbered[1]][int(numbered[2])] = tensor
            elif any(re.fullmatch(pattern, name) for pattern in (*TOWERS, *self.ignored)):
                out.ignored.append(name)
            else:
                unknown.append(name)
        if unknown:
            raise UsageError(
                f"this is not a checkpoint of the public {self.program} program",
                f"unknown tensors: {', '.join(sorted(unknown)[:5])}"
                + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
                "give the state dict that its training saved, and its method",
            )
        for own, stems in self.stacked.items():
            for stem in stems:
                if sorted(rows[stem]) != list(range(len(rows[stem]))) or not rows[stem]:
                    raise UsageError(
                        f"the checkpoint's {stem}0, {stem}1, ... are not complete",
                        f"it has {len(rows[stem])} of them",
                        "give the whole state dict that the training saved",
                    )
            ordered = [rows[stem][k] for stem in stems for k in range(len(rows[stem]))]
            if len({x.shape for x in ordered}) > 1:
                raise UsageError(
                    f"the checkpoint's {', '.join(f'{s}N' for s in stems)} differ in shape",
                    "they are rows of one tensor",
                    "give the file as its training saved it",
                )
            out.tensors[own] = torch.stack(ordered)
            out.origin[own] = [f"{stem}{k}" for stem in stems for k in range(len(rows[stem]))]
        out.tensors |= {own: torch.tensor(value) for own, value in self.constants.items()}
        return out

    def public_name(self, own: str) -> str:
        """Return the public program's name of a tensor."""
        for head, mine in self.renamed.items():
            if own == mine or own.startswith(mine + "."):
                return head + own.removeprefix(mine)
        return "/".join(f"{stem}N" for stem in self.stacked.get(own, (own,)))

    def rows(self, state: State) -> tuple[int, int] | None:
        """Attributes and objects of the checkpoint, where its names tell them apart."""
        for stems in self.stacked.values():
            counts = [sum(bool(re.fullmatch(rf"{stem}\d+", name)) for name in state) for stem in stems]
            return counts[0], counts[1]
        return None


def check_prompts(config: Mapping[str, Any]) -> None:
    """Refuse configurations whose prompts do not begin with "a photo of": learned words belong to their places in the prompt."""
    for key in ("prompt_template", "ctx_init"):
        said = config.get(key, [])
        other = [text for text in ([said] if isinstance(said, str) else said) if str(text).lower().split()[:3] != CONTEXT.split()]
        if other:
            raise UsageError(
                f"{key} {other[0]!r} is not supported",
                f"only prompts that start with {CONTEXT!r} are supported",
                "import checkpoints of such prompts",
            )


def branch_settings(state: State, config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of three branches: the adapters' width from their tensors, the rest from the program's configuration."""
    down = state.get("additional_visual_params.0.down_proj.weight")
    width = inferred("adapter_dim", len(down) if down is not None and down.ndim else 0, config)
    return {"adapter_dim": width, **{k: config.get(k, default) for k, default in BRANCH_SETTINGS.items()}}


def inferred(key: str, value: int, config: Mapping[str, Any]) -> int:
    """A number that follows from the tensors; UsageError if the configuration contradicts it."""
    if config.get(key, value) != value:
        raise UsageError(
            f"the checkpoint has {key} {value}",
            f"the configuration has {config[key]!r}",
            "give the configuration it was trained with",
        )
    return value


def count_layers(prefix: str, state: State) -> int:
    """Count the numbered modules of a state below a prefix."""
    return len({name.split(".")[1] for name in state if name.startswith(f"{prefix}.")})
