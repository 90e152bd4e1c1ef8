"""The expectation of a reproduction: settings, CLIP and expected numbers, from published rows or from a file of one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from czsl.errors import UsageError
from czsl.reading import read_yaml
from methods.presets import load_presets
from methods.published.records import NUMBERS, WORLDS, Record, check_numbers, nearest, plain, published
from methods.registry import canonical_name

TOLERANCE = 1.0  # points: our choice
CLIPS = {"ViT-L/14": "ViT-L-14", "ViT-B/32": "ViT-B-32"}
PRESETS = ("released", "paper", "default")  # the first that a method has: what made its published numbers, as far as known
ADAPTED = {"tomcat": {"method": "csp", "preset": "tomcat-base", "recipe": "tomcat-{dataset}", "adapt": "tomcat recipe={dataset}"}}
KEYS = ("dataset", "data", "clip", "clip_weights", "settings", "adapt", "tolerance", "expect", "source")
FIX = "docs/reproduce.md describes the file"


@dataclass(frozen=True)
class Expected:
    """An expected number and how far below it a reproduction may stay, both in percent."""

    value: float
    tolerance: float

    def verdict(self, value: float | None) -> str:
        """Return ``reached``, ``above`` (reached, and more than the tolerance above), ``below``, or ``undefined`` for None."""
        if value is None or not math.isfinite(value):
            return "undefined"
        if value < self.value - self.tolerance:
            return "below"
        return "above" if value > self.value + self.tolerance else "reached"


@dataclass(frozen=True)
class Expectation:
    """A reproduction: what to train, and the numbers that it is held to.

    method : registered name of the method that is trained
    settings : of ``czsl train``, as a mapping or as its arguments
    numbers : expected numbers by world, then by name (``seen``, ``unseen``, ``hm``, ``auc``: the field's evaluator)
    adapt : adaptation to the test images, as experiment files write it
    source : where the numbers come from
    records : the published rows that they come from, empty for a file of one's own
    """

    method: str
    dataset: str
    clip: str
    settings: Any
    numbers: Mapping[str, Mapping[str, Expected]]
    source: str
    clip_weights: str | None = None
    data: str | None = None
    adapt: Any = None
    records: tuple[Record, ...] = field(default=())


def resolved(method: str, dataset: str) -> dict[str, Any]:
    """Return method, preset, recipe and adaptation of a method's published training on a dataset.

    Raises
    ------
    UsageError
        An unknown method; a method whose recipes have none for the dataset.
    """
    if plain(method) in ADAPTED:
        return {key: value.format(dataset=dataset) for key, value in ADAPTED[plain(method)].items()}
    name = canonical_name(method)
    known = load_presets(name)
    found: dict[str, Any] = {"method": name}
    if preset := next((p for p in PRESETS if p in known["presets"]), None):
        found["preset"] = preset
    if dataset in known["recipes"]:
        found["recipe"] = dataset
    elif known["recipes"] and dataset in published().datasets:
        raise UsageError(
            f"{name} has no recipe for {dataset}", f"recipes: {', '.join(known['recipes'])}",
            "give its settings in a file of your own: --expect FILE (docs/reproduce.md)",
        )  # fmt: skip
    return found


def from_papers(method: str, dataset: str, worlds: tuple[str, ...], tolerance: float | None, backbone: str | None) -> Expectation:
    """Return the expectation that published rows state.

    The tolerance is one point, or two of the paper's standard deviations if these are more. Without ``backbone`` it is ViT-L/14 if the
    paper has that.

    Raises
    ------
    UsageError
        An unknown method or dataset (with the nearest name), no such row, no recipe.
    """
    known = published()
    benchmark, settings = known.dataset(dataset).name, resolved(method, known.dataset(dataset).name)
    found = [r for r in known.select(benchmark, method) if r.world in worlds and r.backbone in CLIPS]
    have = list(dict.fromkeys(r.backbone for r in found))
    if not found:
        raise UsageError(
            f"no published numbers of {known.paper(method).method} on {benchmark} in the {' or '.join(worlds)} world are known here",
            "the file of published numbers has no such row",
            "give the numbers in a file of your own: --expect FILE (docs/reproduce.md); czsl published lists those that are known",
        )  # fmt: skip
    chosen = nearest(backbone, have, "backbone") if backbone else "ViT-L/14" if "ViT-L/14" in have else have[0]
    found = [r for r in found if r.backbone == chosen]
    settings |= found[0].paper.settings.get(chosen, {})
    numbers = {
        r.world: {
            k: Expected(v, tolerance if tolerance is not None else max(TOLERANCE, 2 * r.sd.get(k, 0.0)))
            for k, v in r.numbers.items()
        }
        for r in found
    }
    adapt = settings.pop("adapt", None)
    source = "; ".join(dict.fromkeys(f"{r.paper.citation} [{r.source}; {r.checked}]" for r in found))
    name = settings["method"]
    return Expectation(name, benchmark, CLIPS[chosen], settings, numbers, source, adapt=adapt, records=tuple(found))


def from_file(path: Path, method: str, dataset: str, worlds: tuple[str, ...], tolerance: float | None) -> Expectation:
    """Return the expectation of a file of one's own; what it leaves out is resolved as for published rows.

    Raises
    ------
    UsageError
        Unknown keys (with the nearest name), another dataset, no numbers, impossible numbers.
    """
    content = read_yaml(path, error=UsageError, head="{path} cannot be read", fix=FIX)
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no expectation", f"it is a {type(content).__name__}, not a mapping", FIX)
    for key in content:
        nearest(str(key), KEYS, f"key in {path.name}:")
    if content.get("dataset") is not None and plain(str(content["dataset"])) != plain(dataset):
        raise UsageError(
            f"{path.name} is about {content['dataset']}", f"the command was called with {dataset}", "name the same dataset"
        )
    general = _number(content.get("tolerance", TOLERANCE), "tolerance", path)
    given = content.get("expect")
    if not isinstance(given, dict) or not given:
        raise UsageError(
            f"{path.name} expects no numbers",
            "a reproduction is compared with at least one number",
            "write  expect: {closed: {auc: 23.8}}",
        )
    numbers: dict[str, dict[str, Expected]] = {}
    for world, row in given.items():
        world = nearest(str(world), WORLDS, f"world in {path.name}:")
        if not isinstance(row, dict) or not row:
            raise UsageError(
                f"{path.name} expects no numbers in the {world} world", f"{row!r}"[:200], f"write  {world}: {{auc: 23.8}}"
            )
        for key, value in row.items():
            key, own = nearest(str(key), NUMBERS, f"number in {path.name}:"), general
            if isinstance(value, dict):
                for inner in value:
                    nearest(str(inner), ("value", "tolerance"), f"key of {key} in {path.name}:")
                own = _number(value.get("tolerance", general), f"tolerance of {key}", path)
                value = value.get("value")
            numbers.setdefault(world, {})[key] = Expected(_number(value, key, path), own if tolerance is None else tolerance)
        check_numbers({k: e.value for k, e in numbers[world].items()}, f"{path.name}, {world} world", FIX)
    numbers = {world: row for world, row in numbers.items() if world in worlds}
    if not numbers:
        raise UsageError(
            f"{path.name} expects no numbers in the {' or '.join(worlds)} world",
            "a reproduction is compared with at least one number",
            "drop --world",
        )
    for key in ("clip", "clip_weights", "data", "source"):
        if content.get(key) is not None and not isinstance(content[key], str):
            raise UsageError(f"{path.name}: {key} is {content[key]!r}"[:200], "a text is expected", FIX)
    base = {} if content.get("settings") is not None and plain(method) not in ADAPTED else resolved(method, dataset)
    name = base.pop("method", None) or canonical_name(method)
    adapt = base.pop("adapt", None)
    settings = content["settings"] if content.get("settings") is not None else base
    return Expectation(
        name, dataset, content.get("clip") or ("tiny" if dataset == "toy" else "ViT-L-14"), settings, numbers,
        content.get("source") or path.name, content.get("clip_weights"), content.get("data"), content.get("adapt") or adapt,
    )  # fmt: skip


def _number(value: Any, name: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise UsageError(f"{path.name}: {name} is {value!r}"[:200], "a number of percent from 0 to 100 is expected", FIX)
    return float(value)
