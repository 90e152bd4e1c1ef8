"""Names of methods and where they live; a module is imported on first use."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from czsl.classes import ClassSpace
from czsl.errors import UsageError

if TYPE_CHECKING:
    from czsl.compositions import CompositionSpace
    from methods.config import MethodConfig
    from methods.method import Method

# One line a method: name as printed and typed -> "module:Class".
METHODS = {
    "zero-shot": "methods.zero_shot.model:ZeroShot",
    "coop": "methods.coop.model:CoOp",
    "csp": "methods.csp.model:CSP",
    "dfsp": "methods.dfsp.model:DFSP",
    "troika": "methods.troika.model:Troika",
    "clusPro": "methods.clus_pro.model:ClusPro",
    "lazsl": "methods.lazsl.model:LaZSL",
    "msci": "methods.msci.model:MSCI",
    "vp-cmjl": "methods.vp_cmjl.model:VPCMJL",
    "caila": "methods.caila.model:CAILA",
    "clip-pzsl": "methods.clip_pzsl.model:ClipPzsl",
    "comclip": "methods.comclip.model:ComCLIP",
    "gde": "methods.gde.model:GDE",
}


def canonical_name(name: str) -> str:
    """The registered spelling: case, ``-`` and ``_`` do not matter (``clus-pro`` is ``clusPro``).

    Raises
    ------
    UsageError
        Unknown method; names the nearest.
    """

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    known = {plain(m): m for m in METHODS}
    if plain(name) in known:
        return known[plain(name)]
    near = difflib.get_close_matches(plain(name), known, n=1, cutoff=0.4)
    raise UsageError(
        f"unknown method {name!r}",
        f"did you mean {known[near[0]]!r}?" if near else "no known name is close to it",
        f"methods: {', '.join(METHODS)}",
    )


def config_class(name: str) -> type[MethodConfig]:
    """The ``Config`` of a method.

    For a method in ``methods.NAME.model`` it is ``<Class>Config`` of ``methods.NAME.config``, so that looking at a method's settings
    imports no torch.
    """
    module, attribute = METHODS[canonical_name(name)].split(":")
    package, _, last = module.rpartition(".")
    if last == "model":
        return getattr(importlib.import_module(f"{package}.config"), f"{attribute}Config")
    return method_class(name).Config


def check_labels(name: str, space: CompositionSpace) -> None:
    """UsageError if the method needs attributes and the labels are plain classes; names the methods that do not."""
    config = config_class(name)
    if isinstance(space, ClassSpace) and not config.classes:
        able = ", ".join(other for other in METHODS if config_class(other).classes)
        why = f"the labels are {space.num_objects:,} plain classes"
        raise UsageError(f"{config.called()} needs attributes and objects", why, f"methods for plain classes: {able}")


def check_adaptable(name: str) -> None:
    """UsageError if no adaptation can move the scores of a method; names the methods that can be adapted."""
    config = config_class(name)
    if not config.adaptable:
        able = ", ".join(other for other in METHODS if config_class(other).adaptable)
        raise UsageError(
            f"{config.called()} cannot be adapted while testing",
            "its scores need more than one embedding for each composition",
            f"leave out --adapt; methods that can: {able}",
        )


def method_class(name: str) -> type[Method]:
    """The class of a method, imported on demand."""
    module, attribute = METHODS[canonical_name(name)].split(":")
    return getattr(importlib.import_module(module), attribute)
