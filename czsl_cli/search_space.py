"""The search space of ``czsl tune``: a file's content, or what a method or an adaptation suggests, and the trials that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from czsl_cli.console import print_json, print_lines, print_table
from czsl_cli.tune_watch import shown


def chosen_space(suggested: Mapping[str, Any], file: Path | None, fixed: set[str], name: str) -> dict[str, Any]:
    """The search space as plain data.

    Parameters
    ----------
    suggested : mapping
        What the method or the adaptation suggests.
    file : Path, optional
        A search file instead.
    fixed : set of str
        Settings that the command line fixes: they leave the suggestion, and must not be in the file.
    name : str
        For messages.

    Raises
    ------
    UsageError
        There is no suggestion, or the file is not YAML or searches what is fixed.
    """
    from czsl.errors import UsageError
    from czsl.reading import read_yaml

    if file is None:
        if not suggested:
            raise UsageError(
                f"{name} suggests nothing to search",
                "its presets hold no search space",
                "write a search file and give it with --search",
            )
        return {k: v for k, v in suggested.items() if k not in fixed}
    content = read_yaml(
        file, error=UsageError, head="{path} is not YAML", fix="write for example  lr: {loguniform: [1e-5, 1e-2]}"
    )
    if isinstance(content, dict):
        content = content["search"] if set(content) == {"search"} else content
        if both := fixed & set(content):
            raise UsageError(f"{', '.join(sorted(both))}: fixed and searched", f"{file} searches it", "drop one of the two")
    return content


def show_trials(config: Any, source: Any, check: Callable[[dict[str, Any]], Any], as_json: bool) -> None:
    """Print the settings of a search, a dataclass, and what it would try, with the reason of values that ``check`` refuses."""
    from dataclasses import asdict

    import yaml

    from czsl.errors import UsageError

    rows: list[dict[str, Any]] = []
    known = config.algorithm != "optuna"  # which proposes a trial from the results before it
    for number in range(config.trials if known else 0):
        values, reason = source.ask(number), ""
        try:
            check(values)
        except UsageError as error:
            reason = " ".join(str(error).split())
        rows.append({"trial": number, "values": values, "reason": reason})
    if as_json:
        print_json({"search": asdict(config), "trials": rows})
        return
    print_lines(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True), end="")
    names = list(rows[0]["values"]) if rows else []
    if rows:
        lines = [[r["trial"], *(shown(r["values"][n]) for n in names), r["reason"]] for r in rows]
        print_table(["trial", *names, ""], lines, "trials", err=True)
