"""``czsl methods``: what can be trained, with which presets and fields."""

from __future__ import annotations

import click

from czsl_cli.console import print_json, print_table


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or all settings of one: `czsl methods clusPro`."""
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
        return
    _describe(name, as_json)


def _describe(name: str, as_json: bool) -> None:
    import re
    from dataclasses import MISSING, fields

    from czsl.runs.config import RunConfig
    from methods.presets import load_presets, load_search
    from methods.registry import canonical_name, config_class

    listed = []
    for owner, config in (("method", config_class(name)), ("run", RunConfig)):
        text = "\n\n".join(base.__doc__ or "" for base in reversed(config.__mro__))
        for f in fields(config):
            found = re.search(rf"^\s+{f.name}: (.*?)(?=^\s*$|^\s+\w+: |\Z)", _lines(text), re.DOTALL | re.MULTILINE)
            about = " ".join(found.group(1).split()) if found else ""
            default = f.default if f.default is not MISSING else ""
            if f.name != "model":
                listed.append({"of": owner, "field": f.name, "default": default, "about": about})
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
        names = list(named)
        keys = list(dict.fromkeys(k for n in names for k in named[n]))
        if names:
            print_table([kind[:-1], *names], [[k, *(named[n].get(k, "") for n in names)] for k in keys])
    if search := load_search(name):
        drawn = [[field, kind, ", ".join(map(str, values))] for field, how in search.items() for kind, values in how.items()]
        print_table(["czsl tune tries", "", ""], drawn)


def _lines(text: str) -> str:
    return "\n".join(f"    {line.strip()}" for line in text.splitlines())
