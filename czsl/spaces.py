"""Reading label spaces of both kinds: compositions, and plain classes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from czsl.classes import ClassSpace
from czsl.compositions import CompositionSpace
from czsl.errors import DataError


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


def load_space(path: str | os.PathLike[str]) -> CompositionSpace:
    """Read a ``space.json``; DataError where it is missing, not JSON, or not a label space."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no file {path}", "", "is the path right?") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise DataError(f"{path} is not JSON", str(error), "") from None
    return space_from_json(content, str(path))
