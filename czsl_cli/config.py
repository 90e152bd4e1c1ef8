"""From presets, recipes, files, options and ``key=value`` to the settings of a run."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from czsl.errors import UsageError
from czsl.runs.config import RunConfig
from methods.presets import load_presets
from methods.registry import canonical_name, method_class


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` texts with values read by YAML's rules; nested keys are written ``model.key=value`` or just ``key=value``."""
    settings = {}
    for text in pairs:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{text!r} is not key=value", "", "write for example: epochs=5 lr=1e-4")
        try:
            settings[key.strip().removeprefix("model.")] = yaml.safe_load(value) if value else None
        except yaml.YAMLError as error:
            raise UsageError(
                f"the value of {key} cannot be read", str(error).splitlines()[0], "quote it as YAML wants it"
            ) from None
    return settings


def read_config_file(path: Path) -> dict[str, Any]:
    """Settings of a YAML file: flat, or with the method's fields below ``model:`` as in a run's ``config.yaml``."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML", str(error).splitlines()[0], "") from None
    if not isinstance(content, dict) or not isinstance(content.get("model") or {}, dict):
        raise UsageError(f"{path} holds no settings", "a mapping of names to values is expected", "see a run's config.yaml")
    model = content.pop("model", None) or {}
    return {**{str(k): v for k, v in content.items()}, **{str(k): v for k, v in model.items()}}


def resolve(options: dict[str, Any], overrides: Sequence[str] = (), file: Path | None = None) -> RunConfig:
    """The complete settings of a run.

    Later ones win: defaults, the method's preset, its recipe, the file, the options (those not None), ``key=value``.

    Raises
    ------
    UsageError
        Unknown method, preset, recipe or key (with the nearest name); a value of the wrong type.
    """
    from_file = read_config_file(file) if file else {}
    given = {**from_file, **{k: v for k, v in options.items() if v is not None}, **parse_overrides(overrides)}
    method = canonical_name(str(given.get("method", RunConfig.method)))
    presets = load_presets(method)
    given["method"] = method
    settings: dict[str, Any] = {}
    # The toy's size is known; for a dataset of the user's the recipe is a choice to make.
    for kind, default in (("preset", "default"), ("recipe", "small" if given.get("data", RunConfig.data) == "toy" else None)):
        known = presets[f"{kind}s"]
        name = given.get(kind)
        if name is None and default in known:
            name = default
        if name is None:
            continue
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"{method} has no {kind}s" if not known else ""
            raise UsageError(f"{method} has no {kind} {name!r}", hint, f"{kind}s: {', '.join(known) or 'none'}")
        settings |= known[name]
        given[kind] = name
    settings |= given
    run_fields, Config = RunConfig.field_names(), method_class(method).Config
    model_fields = [f.name for f in fields(Config)]
    for key in settings:
        if key not in run_fields and key not in model_fields:
            near = difflib.get_close_matches(key, [*run_fields, *model_fields], n=1)
            raise UsageError(
                f"unknown setting {key!r}",
                f"did you mean {near[0]!r}?" if near else "",
                f"czsl methods {method} lists all of them",
            )
    model = asdict(Config(**_typed({k: v for k, v in settings.items() if k in model_fields}, Config)))
    return RunConfig(**_typed({k: v for k, v in settings.items() if k in run_fields}, RunConfig), model=model)


def _typed(settings: dict[str, Any], cls: type) -> dict[str, Any]:
    """Check values against a dataclass's annotations; an integer may stand for a float, a list for a tuple."""
    hints = get_type_hints(cls)
    out = {}
    for key, value in settings.items():
        hint = hints[key]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                choices = ", ".join(map(str, get_args(hint)))
                raise UsageError(f"{key}={value!r} is not a choice", "", f"choose one of: {choices}")
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
