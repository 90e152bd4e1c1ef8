"""Common parts of the folders of searches: settings as YAML, a name with the time, and a table of trials."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from czsl.errors import UsageError
from czsl.reading import PathLike, read_yaml
from czsl.runs.files import write_atomically
from czsl.runs.run import MAX_CONFIG
from czsl.runs.settings import check_known, typed

Config = TypeVar("Config")


def read_settings(file: Path, kind: type[Config], check: Callable[[Config], Any] = lambda config: None) -> Config:
    """Return the settings that a search's YAML file holds, as a dataclass; ``check`` raises for what else is wrong with them.

    Raises
    ------
    UsageError
        The file is damaged or was edited.
    """
    error_texts: dict[str, Any] = {"head": f"{file} cannot be read", "fix": "was it edited by hand?"}
    content = read_yaml(file, error=UsageError, max_bytes=MAX_CONFIG, **error_texts)
    try:
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not settings")
        check_known(content, (f.name for f in fields(kind)), "NAME")  # type: ignore[arg-type]
        config = kind(**typed(content, kind))
        check(config)
    except (TypeError, ValueError, UsageError) as error:
        raise UsageError(error_texts["head"], str(error).splitlines()[0], error_texts["fix"]) from None
    return config


def write_settings(file: Path, config: Any) -> None:
    """Write the settings of a search, a dataclass, as YAML."""
    write_atomically(file, yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True).encode())


def stamp() -> str:
    """Return the time as names of folders have it."""
    return time.strftime("%Y%m%d-%H%M%S")


def new_folder(out: PathLike, name: str) -> Path:
    """Make the folder of a new search; UsageError if it exists."""
    path = Path(out) / name
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(f"{path} exists", "a search is never overwritten", "choose another --name, or --resume it") from None
    return path


def write_trials_csv(path: PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as a table with a column for each searched setting in ``values``."""
    table = io.StringIO()
    flat = [{k: v for k, v in {**row, **row["values"]}.items() if k != "values"} for row in rows]
    writer = csv.DictWriter(table, list(dict.fromkeys(k for row in flat for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(path, table.getvalue().encode())
