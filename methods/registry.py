"""Names of methods and where they live; a module is imported when its method is asked for."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from czsl.errors import UsageError

if TYPE_CHECKING:
    from methods.method import Method

# One line a method: name as printed and typed -> "module:Class".
METHODS = {
    "zero-shot": "methods.zero_shot:ZeroShot",
    "csp": "methods.csp:CSP",
    "troika": "methods.troika.model:Troika",
    "clusPro": "methods.clus_pro.model:ClusPro",
    "lazsl": "methods.lazsl.model:LaZSL",
    "msci": "methods.msci.model:MSCI",
    "clip-pzsl": "methods.clip_pzsl.model:ClipPzsl",
    "comclip": "methods.comclip.model:ComCLIP",
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
        f"did you mean {known[near[0]]!r}?" if near else "",
        f"methods: {', '.join(METHODS)}",
    )


def method_class(name: str) -> type[Method]:
    """The class of a method, imported on demand."""
    module, attribute = METHODS[canonical_name(name)].split(":")
    return getattr(importlib.import_module(module), attribute)
