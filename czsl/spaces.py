"""Reading label spaces of both kinds: compositions, and plain classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from czsl.classes import ClassSpace
from czsl.compositions import CompositionSpace
from czsl.errors import DataError
from czsl.reading import PathLike, read_json


def space_from_json(content: Any, source: str = "space.json") -> CompositionSpace:
    """The label space of parsed JSON: a space of classes where the content has ``classes``.

    Raises
    ------
    DataError
        If it describes neither kind; ``source`` names it.
    """
    if isinstance(content, dict) and "classes" in content:
        return ClassSpace.from_json(content, source)
    return CompositionSpace.from_json(content, source)


def load_space(path: PathLike) -> CompositionSpace:
    """Read a ``space.json``; DataError if it is missing, not JSON, or not a label space."""
    path = Path(path)
    if not Path(path).exists():
        raise DataError(f"no file {path}", "nothing exists at this path", "check the path")
    return space_from_json(read_json(path, head="{path} is not JSON"), str(path))
