"""The folder of a composition index: ``index.json`` and plain ``.npy`` arrays, each with its size and SHA-256.

Nothing is unpickled, and only the files named here are opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from czsl.errors import DataError, UsageError
from czsl.reading import PathLike, read_array, read_json
from czsl.runs.files import sha256_file, whole_folder, write_json

FORMAT, VERSION = "czsl composition index", 2
ARRAYS = {"flat": ("pairs", "vectors"), "ivf": ("pairs", "vectors", "order", "starts", "centroids")}
_NAMES = {"index.json", "radii.npy"} | {f"{name}.npy" for name in ARRAYS["ivf"]}  # radii: of version 1, which is replaced
_AGAIN = "build the index again"


def write(folder: PathLike, arrays: dict[str, np.ndarray], facts: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write the folder, whole or not at all. UsageError if it holds something else, or if meta is not JSON."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and all(path.name in _NAMES for path in folder.iterdir())):
        raise UsageError(f"{folder} exists and holds other files", "it would be replaced", "choose another folder")
    try:
        meta = json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError("the meta of the index is not JSON", str(error), "use texts, numbers, lists and dicts") from None
    with whole_folder(folder, replace=True, sync=True) as temporary:
        files = {}
        for name, array in arrays.items():
            path = temporary / f"{name}.npy"
            with path.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(temporary / "index.json", {"format": FORMAT, "version": VERSION, **facts, "files": files, "meta": meta})


def read(folder: PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """Arrays (vectors memory-mapped), facts and meta; DataError names the file that is broken."""
    folder = Path(folder)
    content = _read_json(folder)
    facts = _facts(content, folder)
    pairs, dim, cells = facts["pairs"], facts["dim"], facts["cells"]
    expected: dict[str, tuple[type, tuple[int, ...]]] = {
        "pairs": (np.int64, (pairs, 2)),
        "vectors": (np.float32, (pairs, dim)),
        "order": (np.int64, (pairs,)),
        "starts": (np.int64, (cells + 1,)),
        "centroids": (np.float32, (cells, dim)),
    }
    arrays = {}
    for name in ARRAYS[facts["kind"]]:
        path = folder / f"{name}.npy"
        _check_file(path, content["files"].get(path.name))
        array = read_array(path, mapped=True, fix=_AGAIN)
        dtype, shape = expected[name]
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            raise DataError(
                f"{path}: {array.dtype} of shape {list(array.shape)}",
                f"index.json records {np.dtype(dtype)} {list(shape)}",
                _AGAIN,
            )
        arrays[name] = array if name == "vectors" else np.array(array)
    return arrays, facts, content["meta"]


def describe(folder: PathLike) -> dict[str, Any]:
    """``kind``, ``pairs``, ``dim``, ``cells`` and ``meta`` as written in ``index.json``; the arrays are not read."""
    folder = Path(folder)
    content = _read_json(folder)
    return {**_facts(content, folder), "meta": content["meta"]}


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.exists():
        raise DataError(f"{folder} is not an index", "it has no index.json", "is the path right?")
    content = read_json(path, head="cannot read {path}", fix=_AGAIN)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} does not describe an index", "its format is another one", "check the path")
    if content.get("version") != VERSION:
        raise DataError(f"{path}: version {content.get('version')!r}", f"this program reads version {VERSION}", _AGAIN)
    if not isinstance(content.get("files"), dict) or not isinstance(content.get("meta"), dict):
        raise DataError(f"{path} is damaged", "it has no `files` or no `meta`", _AGAIN)
    return content


def _facts(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {name: content.get(name) for name in ("kind", "pairs", "dim", "cells")}
    minimum = {"pairs": 1, "dim": 1, "cells": 1 if facts["kind"] == "ivf" else 0}
    if not isinstance(facts["kind"], str) or facts["kind"] not in ARRAYS:
        raise DataError(
            f"{folder}/index.json: unknown kind {facts['kind']!r}",
            "it was written by another program or version",
            f"kinds are {', '.join(ARRAYS)}",
        )
    for name, smallest in minimum.items():
        if type(facts[name]) is not int or not smallest <= facts[name] < 2**40:
            raise DataError(f"{folder}/index.json is damaged", f"{name} is {facts[name]!r}, not a whole number above 0", _AGAIN)
    return facts


def _check_file(path: Path, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise DataError(f"index.json does not list {path.name}", f"in {path.parent}", _AGAIN)
    if not path.is_file():
        raise DataError(f"no file {path}", "index.json lists it", _AGAIN)
    if path.stat().st_size != entry.get("bytes"):
        raise DataError(f"{path} has {path.stat().st_size} bytes", f"index.json records {entry.get('bytes')}", _AGAIN)
    if sha256_file(path) != entry.get("sha256"):
        raise DataError(f"{path} was changed", "its SHA-256 is not the one in index.json", _AGAIN)
