"""Presets, recipes and search space of a method, kept as YAML next to its module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from czsl.reading import read_yaml
from methods.registry import METHODS, canonical_name

KINDS = ("presets", "recipes")


def presets_file(name: str) -> Path:
    """``presets.yaml`` in the method's folder, or ``<module>.yaml`` next to a method of one file."""
    module = METHODS[canonical_name(name)].split(":")[0].split(".")[1:]
    root = Path(__file__).parent
    folder = root.joinpath(*module[:-1])
    return folder / "presets.yaml" if len(module) > 1 else root / f"{module[0]}.yaml"


def load_presets(name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """``{"presets": {name: fields}, "recipes": {name: fields}}`` of a method; empty if it has none."""
    content = _read(name)
    return {kind: {k: dict(v or {}) for k, v in (content.get(kind) or {}).items()} for kind in KINDS}


def load_search(name: str) -> dict[str, Any]:
    """The search space ``{field: {kind: arguments}}`` that a method suggests for tuning; empty if it has none."""
    return dict(_read(name).get("search") or {})


def _read(name: str) -> dict[str, Any]:
    file = presets_file(name)
    return read_yaml(file) if file.is_file() else {}
