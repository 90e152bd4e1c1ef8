"""From presets, recipes, files, options and ``key=value`` to the settings of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from czsl.errors import UsageError, did_you_mean
from czsl.reading import parse_yaml, read_yaml
from czsl.runs.config import RunConfig, as_made
from czsl.runs.settings import check_known, typed
from methods.presets import load_presets
from methods.registry import METHODS, canonical_name, config_class

# Why a method lacks a setting, where more than "others have it" is to be said.
_REASONS = {"train_mode": ": only their public loops leave training mode after the first validation"}


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` texts with values read by YAML's rules; nested keys are written ``model.key=value`` or just ``key=value``."""
    settings = {}
    for text in pairs:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(
                f"{text!r} is not key=value", "a setting has a name and a value", "write for example: epochs=5 lr=1e-4"
            )
        error_texts: dict[str, Any] = {"head": f"the value of {key} cannot be read", "fix": "quote it as YAML wants it"}
        # A colour such as #102030 would be a comment in YAML.
        known = value if value.startswith("#") else parse_yaml(value, error=UsageError, **error_texts) if value else None
        settings[key.strip().removeprefix("model.")] = known
    return settings


def read_config_file(path: Path) -> dict[str, Any]:
    """Settings of a YAML file: flat, or with the method's fields below ``model:`` as in a run's ``config.yaml``."""
    content = read_yaml(path, error=UsageError, head="{path} is not YAML", fix="see a run's config.yaml")
    if not isinstance(content, dict) or not isinstance(content.get("model") or {}, dict):
        raise UsageError(f"{path} holds no settings", "a mapping of names to values is expected", "see a run's config.yaml")
    if {"seed", "batch", "model"} <= content.keys():  # the config.yaml of a run
        content = as_made(content)
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
    # The toy is known: it has its own recipe, or that of small data. For a dataset of the user's the recipe is a choice to make.
    defaults = {"preset": ["default"], "recipe": ["toy", "small"] if given.get("data", RunConfig.data) == "toy" else []}
    for kind, usual in defaults.items():
        known = presets[f"{kind}s"]
        name = given.get(kind)
        if name is None:
            name = next((default for default in usual if default in known), None)
        if name is None:
            continue
        if name not in known:
            hint = did_you_mean(str(name), known) if known else f"{method} has no {kind}s"
            raise UsageError(f"{method} has no {kind} {name!r}", hint, f"{kind}s: {', '.join(known) or 'none'}")
        settings |= known[name]
        given[kind] = name
    settings |= given
    run_fields, Config = RunConfig.field_names(), config_class(method)
    if not Config.steps:
        if settings.get("epochs"):
            why = "it takes no gradient steps: one pass over the images is all there is"
            raise UsageError(f"{method} has no epochs, given: {settings['epochs']}", why, "leave out epochs")
        settings["epochs"] = 0
    model_fields = [f.name for f in fields(Config)]
    _check_own(settings, [*run_fields, *model_fields], method)
    check_known(settings, [*run_fields, *model_fields], method)
    own = Config.read_files({k: v for k, v in settings.items() if k in model_fields})
    model = asdict(Config(**typed(own, Config)))
    return RunConfig(**typed({k: v for k, v in settings.items() if k in run_fields}, RunConfig), model=model)


def _check_own(settings: dict[str, Any], known: Sequence[str], method: str) -> None:
    """Refuse a setting that other methods have and this one has not; names these."""
    for key in settings:
        if key in known:
            continue
        others = [name for name in METHODS if key in {f.name for f in fields(config_class(name))}]
        if others:
            raise UsageError(
                f"unknown setting {key!r}",
                f"{method} does not have it, {' and '.join(others)} {'does' if len(others) == 1 else 'do'}{_REASONS.get(key, '')}",
                f"leave {key} out; czsl methods {method} lists all of its settings",
            )


def fix_paths(config: RunConfig) -> None:
    """Make the paths of a run absolute: workers run in other folders."""
    from czsl.clip.weights import absolute

    if config.data != "toy":
        config.data = str(Path(config.data).resolve())
    for name in ("clip", "clip_weights", "partial_labels"):
        value = getattr(config, name)
        if value:
            setattr(config, name, absolute(value))
