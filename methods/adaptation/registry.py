"""Names of adaptations and where they live; a module is imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from czsl.errors import UsageError, did_you_mean
from czsl.reading import read_yaml
from methods.adaptation import config as settings_of
from methods.adaptation.config import AdaptationConfig

if TYPE_CHECKING:
    from methods.adaptation.adaptation import Adaptation

# One line an adaptation: name as printed and typed -> "module:Class"; its settings are <Class>Config.
ADAPTATIONS = {
    "tomcat": "methods.adaptation.tomcat:Tomcat",
    "tda": "methods.adaptation.tda:Tda",
}


def canonical_adaptation(name: str) -> str:
    """Return the registered spelling; case does not matter.

    Raises
    ------
    UsageError
        Unknown adaptation; names the nearest.
    """
    if name.lower() in ADAPTATIONS:
        return name.lower()
    hint = did_you_mean(name.lower(), ADAPTATIONS, cutoff=0.4)
    raise UsageError(f"unknown adaptation {name!r}", hint, f"adaptations: {', '.join(ADAPTATIONS)}")


def adaptation_config(name: str) -> type[AdaptationConfig]:
    """Return the settings class of an adaptation, without importing torch."""
    return getattr(settings_of, f"{ADAPTATIONS[canonical_adaptation(name)].split(':')[1]}Config")


def adaptation_class(name: str) -> type[Adaptation]:
    """Return the class of an adaptation, imported on demand."""
    module, attribute = ADAPTATIONS[canonical_adaptation(name)].split(":")
    return getattr(importlib.import_module(module), attribute)


def adaptation_recipes(name: str) -> dict[str, dict[str, Any]]:
    """Return the named settings of an adaptation, from ``recipes.yaml`` next to this module."""
    return dict(read_yaml(Path(__file__).with_name("recipes.yaml"))[canonical_adaptation(name)]["recipes"])


def adaptation_search(name: str) -> dict[str, Any]:
    """Return the search space ``{setting: {kind: arguments}}`` of an adaptation."""
    return dict(read_yaml(Path(__file__).with_name("recipes.yaml"))[canonical_adaptation(name)]["search"])


def adaptation_settings(name: str, given: Mapping[str, Any] | AdaptationConfig | None = None) -> AdaptationConfig:
    """Build the complete settings of an adaptation: defaults, then the ``recipe`` among the given ones, then the given ones.

    Raises
    ------
    UsageError
        Unknown adaptation, recipe or setting; a value of the wrong type or out of its range.
    """
    if isinstance(given, AdaptationConfig):
        return given
    own, recipes = dict(given or {}), adaptation_recipes(name)
    recipe = own.pop("recipe", None)
    if recipe is not None and recipe not in recipes:
        hint = did_you_mean(str(recipe), recipes)
        raise UsageError(f"{canonical_adaptation(name)} has no recipe {recipe!r}", hint, f"recipes: {', '.join(recipes)}")
    return adaptation_config(name).of({**(recipes[recipe] if recipe is not None else {}), **own})
