"""Methods from checkpoints of the public programs.

Letters: A attributes, O objects, W text width.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from czsl.clip.backbone import Clip
from czsl.clip.loading import clip_from_state
from czsl.compositions import CompositionSpace
from czsl.errors import UsageError
from czsl.runs.settings import typed
from methods.building import build
from methods.method import Method
from methods.parts.public import PublicNames, Translation, check_prompts
from methods.presets import load_presets
from methods.registry import canonical_name, method_class

# One line a method whose public checkpoints are understood: name -> "module:PublicNames".
PUBLIC = {
    "csp": "methods.csp.model:PUBLIC",
    "troika": "methods.troika.reference:PUBLIC",
    "clusPro": "methods.clus_pro.reference:PUBLIC",
    "msci": "methods.msci.reference:PUBLIC",
    "caila": "methods.caila.reference:PUBLIC",
}


@dataclass
class Imported:
    """A method with a public checkpoint's weights, and what was read of the checkpoint."""

    method: Method
    translation: Translation


def from_reference(
    name: str,
    state: Mapping[str, Tensor],
    attributes: Sequence[str],
    objects: Sequence[str],
    config: Mapping[str, Any] | None = None,
    clip: Clip | None = None,
) -> Method:
    """A method with the weights of a public program's checkpoint, in evaluation mode.

    Parameters
    ----------
    name : str
        ``csp``, ``troika``, ``cluspro``, ``msci`` or ``caila``.
    state : mapping of str to tensor
        The public state dict.
    attributes, objects : sequence of str
        Labels in the order of the checkpoint's rows (the public programs sort them).
    config : mapping, optional
        The public program's configuration under its own names; what it leaves out takes that program's defaults. Numbers of layers
        and widths are read from the tensors.
    clip : Clip, optional
        Needed where the state holds no CLIP (``clip.*``); where it holds one, that is used.

    Returns
    -------
    Method
        In the method's preset ``released``. Its space has no pairs: name them in ``score_images`` and ``branch_logits``.

    Raises
    ------
    UsageError
        A key that is missing, unexpected or of another shape, or labels that do not fit the rows; names it.
    """
    public = public_names(name)
    none = np.zeros((0, 2), np.int64)
    space = CompositionSpace(tuple(attributes), tuple(objects), none, none, none)
    own = clip_in(state, public)
    clip = clip if own is None else own
    if clip is None:
        raise UsageError("the checkpoint holds no CLIP", "it has no tensors clip.*", "give the CLIP it was trained with")
    return read_reference(name, state, space, clip, config or {}).method


def clip_in(state: Mapping[str, Tensor], public: PublicNames) -> Clip | None:
    """The CLIP that a public checkpoint carries, or None."""
    towers = {k: v.float() if v.is_floating_point() else v for k, v in public.towers(state).items()}
    return clip_from_state(towers, "the checkpoint's CLIP") if towers else None


def public_names(name: str) -> PublicNames:
    """Names of a method's public checkpoints; UsageError for a method without any."""
    name = canonical_name(name)
    if name not in PUBLIC:
        raise UsageError(
            f"there are no public checkpoints of {name}",
            "its public program saves none, or none that is known here",
            f"methods with public checkpoints: {', '.join(PUBLIC)}",
        )
    module, attribute = PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def read_reference(
    name: str, state: Mapping[str, Tensor], space: CompositionSpace, clip: Clip, config: Mapping[str, Any]
) -> Imported:
    """The method of a public checkpoint on a label space and a CLIP; see :func:`from_reference`."""
    name, public = canonical_name(name), public_names(name)
    state = {key: torch.as_tensor(value) for key, value in state.items()}
    check_prompts(config)
    translation = public.translate(state)
    _check_words(public, state, translation, space, clip)
    settings = _settings(name, public, state, config)
    method = build(name, space, clip, settings).to(clip.device).eval()
    own = method.state_dict()
    _check(public, translation, own)
    for key, value in translation.tensors.items():
        own[key] = value.to(own[key].dtype)
    method.load_state_dict(own)
    return Imported(method, translation)


def _settings(name: str, public: PublicNames, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The method's fields: its preset ``released``, what follows from the tensors, and the program's configuration."""
    Config = method_class(name).Config
    known = {f.name for f in fields(Config)}
    released = {k: v for k, v in load_presets(name)["presets"].get("released", {}).items() if k in known}
    return typed({**released, "names": "reference", **public.settings(state, config)}, Config)


def _check_words(
    public: PublicNames, state: Mapping[str, Tensor], translation: Translation, space: CompositionSpace, clip: Clip
) -> None:
    """The learned words tell first whether labels and CLIP are those of the checkpoint."""
    if public.table is None:
        return
    table, stored = translation.tensors.get(public.table), public.public_name(public.table)
    if table is None or table.ndim != 2:
        what = "no" if table is None else f"a {list(table.shape)}"
        raise UsageError(
            f"this is not a checkpoint of the public {public.program} program",
            f"it has {what} tensor {stored} [A + O, W]",
            "is it the right method?",
        )
    A, O = space.num_attributes, space.num_objects
    split = public.rows(state)
    if len(table) != A + O or split not in (None, (A, O)):
        there = f"{split[0]} attributes and {split[1]} objects" if split else f"{len(table)} attributes and objects together"
        raise UsageError(
            f"the checkpoint has {there}",
            f"the labels have {A} + {O}; {stored} has {len(table)} rows, attributes first",
            "give the label space it was trained on",
        )
    if table.shape[1] != clip.text.width:
        raise UsageError(
            "the checkpoint was trained with another CLIP",
            f"its words ({stored}) are {table.shape[1]} wide, the text tower of {clip.name} is {clip.text.width} wide",
            "give the CLIP it was trained with, e.g. ViT-L-14 for words of 768",
        )


def _check(public: PublicNames, translation: Translation, own: Mapping[str, Tensor]) -> None:
    """Every tensor of the method has its public one, of the same shape and finite, and the reverse."""
    tensors = translation.tensors
    missing = [public.public_name(k) for k in own if k not in tensors and k not in public.absent]
    unexpected = [public.public_name(k) for k in tensors if k not in own]
    for what, names in (("lacks", missing), ("has tensors that the method does not:", unexpected)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise UsageError(
                f"the checkpoint {what} {', '.join(names[:5])}{more}",
                f"as a checkpoint of the public {public.program} program on this CLIP",
                "is it the right method, and the CLIP it was trained with?",
            )
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise UsageError(
                f"the checkpoint's {public.public_name(key)} has shape {list(value.shape)}",
                f"the method and its CLIP need {list(own[key].shape)}",
                "give the CLIP and the configuration it was trained with",
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UsageError(
                f"the checkpoint's {public.public_name(key)} holds NaN or infinite values",
                "its training diverged",
                "import an earlier epoch",
            )
