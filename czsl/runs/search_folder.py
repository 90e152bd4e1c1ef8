"""The folder of a search: settings as YAML, a name with the time, and a table of trials."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from czsl.errors import UsageError
from czsl.reading import PathLike, read_yaml
from czsl.runs.files import write_atomically
from czsl.runs.run import MAX_CONFIG
from czsl.runs.settings import check_known, typed


class SearchFolder:
    """A folder with the settings of a search, the dataclass ``kind``, in the YAML file ``settings``.

    Raises
    ------
    UsageError
        The folder has no such file, or the file is damaged or was edited.
    """

    settings: ClassVar[str]
    kind: ClassVar[type]
    config: Any

    def __init__(self, path: PathLike):
        self.path = Path(path).resolve()
        file = self.path / self.settings
        if not file.is_file():
            raise UsageError(f"{self.path} is not a search", f"it has no {self.settings}", "give a folder that czsl tune wrote")
        error_texts: dict[str, Any] = {"head": f"{file} cannot be read", "fix": "was it edited by hand?"}
        content = read_yaml(file, error=UsageError, max_bytes=MAX_CONFIG, **error_texts)
        try:
            if not isinstance(content, dict):
                raise TypeError(f"it holds a {type(content).__name__}, not settings")
            check_known(content, (f.name for f in fields(self.kind)), "NAME")
            self.config = self.kind(**typed(content, self.kind))
            self.check()
        except (TypeError, ValueError, UsageError) as error:
            raise UsageError(error_texts["head"], str(error).splitlines()[0], error_texts["fix"]) from None

    @classmethod
    def new(cls, config: Any, out: PathLike, name: str | None, about: str) -> Self:
        """Make the folder ``name``, or ``tune-<about>-<time>``, and write the settings; an existing search is never overwritten."""
        path = Path(out) / (name or f"tune-{about}-{time.strftime('%Y%m%d-%H%M%S')}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise UsageError(f"{path} exists", "a search is never overwritten", "choose another --name, or --resume it") from None
        _write_settings(path / cls.settings, config)
        return cls(path)

    @classmethod
    def is_one(cls, path: PathLike) -> bool:
        """Return whether a folder is a search of this kind."""
        return (Path(path) / cls.settings).is_file()

    def write(self) -> None:
        """Write the settings again, with other values."""
        _write_settings(self.path / self.settings, self.config)

    def check(self) -> None:
        """Raise UsageError for what else is wrong with the settings."""


def _write_settings(file: Path, config: Any) -> None:
    write_atomically(file, yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True).encode())


def write_trials_csv(path: PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as a table with a column for each searched setting in ``values``."""
    table = io.StringIO()
    flat = [{k: v for k, v in {**row, **row["values"]}.items() if k != "values"} for row in rows]
    writer = csv.DictWriter(table, list(dict.fromkeys(k for row in flat for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(path, table.getvalue().encode())
