"""The search space of ``czsl tune`` as data: a file's content, or what a method or an adaptation suggests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
