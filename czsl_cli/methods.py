"""``czsl methods``: what can be trained, with which presets and fields, and what adapts while testing."""

from __future__ import annotations

import re
from typing import Any

import click

from czsl_cli.console import print_json, print_table


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or all settings of one: `czsl methods clusPro`.

    Adaptations (`czsl evaluate RUN --adapt NAME`) are listed after them, and described the same way: `czsl methods tomcat`.
    """
    from methods.adaptation.registry import ADAPTATIONS, adaptation_config, adaptation_recipes
    from methods.presets import load_presets
    from methods.registry import METHODS, config_class

    if name is None:
        rows = []
        for known in METHODS:
            facts, presets = config_class(known), load_presets(known)
            rows.append(
                [
                    known,
                    "yes" if facts.trains else "no",
                    ", ".join(presets["presets"]),
                    ", ".join(presets["recipes"]),
                    facts.about,
                ]
            )
        if as_json:
            keys = ("name", "trains", "presets", "recipes", "about")
            print_json([dict(zip(keys, row, strict=True)) for row in rows])
        else:
            print_table(["method", "trains", "presets", "recipes", "about"], rows)
            adapting = [[known, ", ".join(adaptation_recipes(known)), adaptation_config(known).about] for known in ADAPTATIONS]
            print_table(["adaptation while testing", "recipes", "about"], adapting)
        return
    if name.lower() in ADAPTATIONS:
        _describe_adaptation(name, as_json)
    else:
        _describe(name, as_json)


def _describe_adaptation(name: str, as_json: bool) -> None:
    from dataclasses import fields

    from methods.adaptation.registry import (
        adaptation_config,
        adaptation_recipes,
        adaptation_search,
        canonical_adaptation,
    )

    config, recipes, search = adaptation_config(name), adaptation_recipes(name), adaptation_search(name)
    listed = [{"field": f.name, "default": f.default, "about": _about(config.__doc__ or "", f.name)} for f in fields(config)]
    if as_json:
        print_json({"adaptation": canonical_adaptation(name), "fields": listed, "recipes": recipes, "search": search})
        return
    print_table(["field", "default", "about"], [list(row.values()) for row in listed], canonical_adaptation(name))
    _print_named("recipe", recipes)
    _print_search(search)


def _describe(name: str, as_json: bool) -> None:
    from dataclasses import MISSING, fields

    from czsl.runs.config import RunConfig
    from methods.presets import load_presets, load_search
    from methods.registry import canonical_name, config_class

    listed = []
    for owner, config in (("method", config_class(name)), ("run", RunConfig)):
        text = "\n\n".join(base.__doc__ or "" for base in reversed(config.__mro__))
        for f in fields(config):
            default = f.default if f.default is not MISSING else ""
            if f.name != "model":
                listed.append({"of": owner, "field": f.name, "default": default, "about": _about(text, f.name)})
    presets = load_presets(name)
    if as_json:
        print_json({"method": canonical_name(name), "fields": listed, **presets, "search": load_search(name)})
        return
    print_table(
        ["of", "field", "default", "about"],
        [[r["of"], r["field"], r["default"], r["about"]] for r in listed],
        canonical_name(name),
    )
    for kind, named in presets.items():
        _print_named(kind[:-1], named)
    _print_search(load_search(name))


def _print_named(kind: str, named: dict[str, dict[str, Any]]) -> None:
    keys = list(dict.fromkeys(k for settings in named.values() for k in settings))
    if named:
        print_table([kind, *named], [[k, *(settings.get(k, "") for settings in named.values())] for k in keys])


def _print_search(search: dict[str, Any]) -> None:
    drawn = [[field, kind, ", ".join(map(str, values))] for field, how in search.items() for kind, values in how.items()]
    if drawn:
        print_table(["czsl tune tries", "", ""], drawn)


def _about(text: str, field: str) -> str:
    """The line of a docstring that describes a field."""
    found = re.search(rf"^\s+{field}: (.*?)(?=^\s*$|^\s+\w+: |\Z)", _lines(text), re.DOTALL | re.MULTILINE)
    return " ".join(found.group(1).split()) if found else ""


def _lines(text: str) -> str:
    return "\n".join(f"    {line.strip()}" for line in text.splitlines())
