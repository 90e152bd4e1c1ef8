"""Settings by name: values checked against a dataclass's annotations, unknown names answered with the nearest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from czsl.errors import UsageError, did_you_mean


def check_known(given: Iterable[str], known: Iterable[str], method: str) -> None:
    """Refuse names that no setting has.

    Raises
    ------
    UsageError
        Names the nearest one there is.
    """
    known = list(known)
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known)
            raise UsageError(f"unknown setting {key!r}", hint, f"czsl methods {method} lists all of them")


def typed(settings: dict[str, Any], cls: type) -> dict[str, Any]:
    """Check values against a dataclass's annotations; an integer may stand for a float, a list for a tuple.

    Raises
    ------
    UsageError
        A name that the dataclass does not have, a value of the wrong type, or one outside the choices.
    """
    hints = get_type_hints(cls)
    out = {}
    for key, value in settings.items():
        if key not in hints:
            raise UsageError(
                f"unknown setting {str(key)[:80]!r}", did_you_mean(str(key)[:80], hints), "remove it, or correct its name"
            )
        hint = hints[key]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                choices = ", ".join(map(str, get_args(hint)))
                raise UsageError(
                    f"{key}={value!r} is not a choice", f"{key} has a fixed set of values", f"choose one of: {choices}"
                )
            out[key] = value
            continue
        kinds = tuple(get_origin(k) or k for k in (get_args(hint) if isinstance(hint, UnionType) else (hint,)))
        if float in kinds and isinstance(value, str):  # YAML reads 1e-4 as a text
            with contextlib.suppress(ValueError):
                value = float(value)
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if tuple in kinds and isinstance(value, list):
            value = tuple(value)
        if isinstance(value, tuple) and get_origin(hint) is tuple:
            value = _tuple(key, value, get_args(hint))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("nothing" if k is type(None) else k.__name__ for k in kinds)
            raise UsageError(f"{key}={value!r} is of the wrong type", f"expected {wanted}", f"give {key} as {wanted}")
        out[key] = value
    return out


def _tuple(key: str, value: tuple, kinds: tuple[type, ...]) -> tuple:
    if len(value) == len(kinds) and all(
        type(v) is k or (k is float and type(v) is int) for v, k in zip(value, kinds, strict=True)
    ):
        return tuple(k(v) for v, k in zip(value, kinds, strict=True))
    wanted = ", ".join(k.__name__ for k in kinds)
    raise UsageError(f"{key}={list(value)!r} is of the wrong type", f"expected {wanted}", f"give {key} as [{wanted}]")
