"""The one place that opens files of a kind: text, JSON, YAML, numpy, safetensors, torch.

Files come from outside, and those of the program's own may be damaged. Each reader bounds size, depth and form before it builds anything
large, runs no code of the file, and turns whatever goes wrong into one `CzslError` that names the file, the place and a way out.

Common keyword arguments of all readers:

error : type of CzslError, default DataError
head : str, the error's first line; ``{path}`` stands for the file
fix : str, the error's last line
"""

from __future__ import annotations

import codecs
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from czsl.errors import CzslError, DataError
from czsl.filekinds import identify, identify_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PathLike = str | os.PathLike[str]
MAX_TEXT = 512 * 2**20  # bytes of a text
MAX_DEPTH = 64  # lists within lists
PLAIN = (str, int, float, bool, type(None))


class _Refusal:
    """Error of a reader: its type, first and last line."""

    def __init__(self, path: PathLike | str, error: type[CzslError], head: str, fix: str):
        self.path, self.error, self.head, self.fix = path, error, head, fix

    def __call__(self, why: BaseException | str) -> NoReturn:
        known = identify_file(self.path)
        why, fix = (f"it is {known[0]}", known[1]) if known else (reason(why), self.fix)
        raise self.error(self.head.replace("{path}", str(self.path)), why, fix) from None


def reason(error: BaseException | str) -> str:
    """An error's words in one line of at most 300 characters; the kind of error if it has no words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not {error.encoding.upper().replace('-SIG', '')}"
    if isinstance(error, RecursionError):
        return "it is nested without end"
    if isinstance(error, MemoryError):
        return "it says that it is larger than memory"
    text = " ".join(str(error).split())[:300]
    return text or (type(error).__name__ if isinstance(error, BaseException) else "")


# -- text --------------------------------------------------------------------------------------------------------------
def read_text(
    path: PathLike,
    *,
    max_bytes: int = MAX_TEXT,
    error: type[CzslError] = DataError,
    head: str = "cannot read {path}",
    fix: str = "is the path right?",
) -> str:
    """The text of a file in UTF-8, with or without a byte order mark, of at most ``max_bytes`` bytes; pipes are read too."""
    refuse = _Refusal(path, error, head, fix)
    try:
        with Path(path).open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as problem:  # a name with a zero byte is a ValueError
        refuse(problem)
    if len(content) > max_bytes:
        refuse(f"it is too large: the limit is {max_bytes:,} bytes")
    if known := identify(content):
        refuse(f"it is {known[0]}")
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as problem:
        line = content[: problem.start].count(b"\n") + 1
        hint = "; it looks like UTF-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
        refuse(f"it is not text in UTF-8: byte {problem.start}, in line {line}{hint}")


def read_lines(path: PathLike, **options: Any) -> list[str]:
    """The lines of a text file without white space around them; keyword arguments as :func:`read_text`."""
    return [line.strip() for line in read_text(path, **options).splitlines()]


# -- JSON --------------------------------------------------------------------------------------------------------------
def read_json(path: PathLike, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None, **options: Any) -> Any:
    """The content of a JSON file; ``pairs`` builds its objects. Other keyword arguments as :func:`read_text`."""
    text = read_text(path, **options)
    options.pop("max_bytes", None)
    return parse_json(text, path, pairs=pairs, **options)


def parse_json(
    text: str | bytes,
    path: PathLike = "the text",
    *,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    error: type[CzslError] = DataError,
    head: str = "{path} is not JSON",
    fix: str = "is it the right file?",
) -> Any:
    """Content of a JSON text; ``path`` names it in errors."""
    refuse = _Refusal(path, error, head, fix)
    try:
        content = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError, MemoryError) as problem:
        refuse(problem)
    if _max_brackets(text) > MAX_DEPTH and _depth(content) > MAX_DEPTH:
        refuse(f"lists and mappings are nested more than {MAX_DEPTH} deep")
    return content


def json_record(line: str | bytes) -> dict[str, Any] | None:
    """Return the mapping in a line of JSON lines, or None if the line is cut or not a mapping."""
    try:
        content = parse_json(line)
    except DataError:
        return None
    return content if isinstance(content, dict) else None


def json_records(path: PathLike) -> Iterator[dict[str, Any]]:
    """The whole mappings of a JSON-lines file of the program's own, line by line; others are passed over, no file has none."""
    try:
        with Path(path).open("rb") as file:
            for line in file:
                if (record := json_record(line)) is not None:
                    yield record
    except FileNotFoundError:
        return


def _max_brackets(text: str | bytes) -> int:
    """A bound on how deep a JSON text nests: brackets within strings count as well."""
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return 0
    import numpy as np

    codes = np.frombuffer(text, np.uint8)
    step = ((codes == 0x5B) | (codes == 0x7B)).astype(np.int8) - ((codes == 0x5D) | (codes == 0x7D))
    return int(np.cumsum(step, dtype=np.int64).max())


def _depth(content: Any) -> int:
    level, depth = [content], 0
    while level := [x for x in level if isinstance(x, list | dict)]:
        depth += 1
        level = [x for part in level for x in (part.values() if isinstance(part, dict) else part)]
    return depth


# -- YAML --------------------------------------------------------------------------------------------------------------
class _Loader(yaml.SafeLoader):
    """Plain values only; what looks like a date stays the text that it is, and a key stands once in its mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; YAML itself would let the last of two equal keys win without a word."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: PathLike, *, any_keys: bool = False, **options: Any) -> Any:
    """The content of a YAML file: texts, numbers, truth values, lists and mappings of texts (of ``any_keys``, where they may be).

    Other keyword arguments as :func:`read_text`.
    """
    text = read_text(path, **options)
    options.pop("max_bytes", None)
    return parse_yaml(text, path, any_keys=any_keys, **options)


def parse_yaml(
    text: str,
    path: PathLike = "the text",
    *,
    any_keys: bool = False,
    error: type[CzslError] = DataError,
    head: str = "{path} is not YAML",
    fix: str = "see a run's config.yaml",
) -> Any:
    """Content of a YAML text; ``path`` names it in errors."""
    refuse = _Refusal(path, error, head, fix)
    try:
        content = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        refuse(f"line {mark.line + 1}: {problem.problem}" if mark else problem)
    except Exception as problem:  # the constructors of YAML's own types raise many kinds
        refuse(problem)
    if why := _not_plain(content, len(text) + 1000, any_keys):
        refuse(why)
    return content


def _not_plain(content: Any, max_items: int, any_keys: bool = False) -> str:
    """Return why the values are not plain or exceed the limits; empty if all is well. An alias counts each time it occurs."""
    level, depth, count = [content], 0, 0
    while level:
        if depth > MAX_DEPTH:
            return f"lists and mappings are nested more than {MAX_DEPTH} deep"
        below: list[Any] = []
        for x in level:
            if isinstance(x, dict):
                known = PLAIN if any_keys else (str,)
                if odd := [key for key in x if not isinstance(key, known)]:
                    return f"the key {str(odd[0])[:80]!r} is a {type(odd[0]).__name__}, not a text: put it into quotes"
                below.extend(x.values())
            elif isinstance(x, list):
                below.extend(x)
            elif not isinstance(x, PLAIN):
                return f"it holds a {type(x).__name__}; texts, numbers, true, false, null, lists and mappings are known"
            if (count + len(below)) > max_items:
                return "its aliases unfold to more than the file holds"
        count += len(below)
        level, depth = below, depth + 1
    return ""


# -- arrays ------------------------------------------------------------------------------------------------------------
def read_array(
    path: PathLike,
    *,
    mapped: bool = False,
    error: type[CzslError] = DataError,
    head: str = "cannot read {path}",
    fix: str = "give an .npy file of plain numbers",
) -> np.ndarray:
    """The array of an ``.npy`` file, memory-mapped where asked; never unpickled.

    The header is trusted only if the file has the length that follows from it.
    """
    import numpy as np

    refuse = _Refusal(path, error, head, fix)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd headers
            # Mapped first: a header that promises more than there is cannot ask for memory.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                array.close()
                refuse("it holds an archive, not one array")
            if array.offset + array.nbytes != Path(path).stat().st_size:  # type: ignore[attr-defined]
                refuse(f"it is longer than the {array.dtype} of shape {list(array.shape)} of its header")
            if array.dtype.kind not in "biufcSUmM":
                refuse(f"it holds {array.dtype}, not numbers")
            return array if mapped else np.array(array)
    except CzslError:
        raise
    except Exception as problem:  # numpy's parser of headers raises many kinds
        if isinstance(problem, ValueError) and "empty file" in str(problem):
            return _empty_array(path, refuse)
        refuse(problem)


def _empty_array(path: PathLike, refuse: _Refusal) -> np.ndarray:
    """An array without elements, which cannot be mapped."""
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except Exception as problem:
        refuse(problem)
    return array


def read_arrays(
    path: PathLike,
    names: Sequence[str],
    *,
    stored: bool = False,
    error: type[CzslError] = DataError,
    head: str = "cannot read {path}",
    fix: str = "give an npz of plain arrays",
) -> dict[str, np.ndarray]:
    """Read those of the named arrays that an ``.npz`` holds; never unpickled.

    Archives that unfold to more than half of the memory are refused, with ``stored`` all compressed ones.
    """
    import numpy as np

    refuse = _Refusal(path, error, head, fix)
    try:
        if not zipfile.is_zipfile(path):
            with Path(path).open("rb") as file:
                one = file.read(6) == b"\x93NUMPY"
            refuse("it holds one array, not an archive of named ones" if one else "it is not an npz archive, or it is cut short")
        _check_archive(path, stored)
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in names if name in archive.files}
        if odd := next((name for name, x in found.items() if not isinstance(x, np.ndarray)), None):
            refuse(f"{odd} is not an array")
        return found
    except CzslError:
        raise
    except Exception as problem:  # zip, zlib and numpy raise many kinds
        refuse(problem)


def _check_archive(path: PathLike, stored: bool = False) -> None:
    """ValueError for a zip file that unfolds to more than half of the memory, or, ``stored``, to more than its own size."""
    with zipfile.ZipFile(path) as archive:
        unfolded = sum(entry.file_size for entry in archive.infolist())
    if stored and unfolded > Path(path).stat().st_size:
        raise ValueError("it is compressed")
    if unfolded > memory_bytes() // 2:
        raise ValueError(f"it unfolds to {unfolded:,} bytes, more than half of the memory")


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# -- tensors -----------------------------------------------------------------------------------------------------------
def read_safetensors(
    path: PathLike,
    *,
    error: type[CzslError] = DataError,
    head: str = "{path} is not a safetensors file",
    fix: str = "download or copy it again",
) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, on the CPU."""
    from safetensors.torch import load_file

    refuse = _Refusal(path, error, head, fix)
    try:
        return load_file(path)
    except Exception as problem:  # of the file's own, and of types that torch does not have
        refuse(problem)


def read_torch(
    path: PathLike,
    *,
    error: type[CzslError] = DataError,
    head: str = "cannot read {path}",
    fix: str = "save plain tensors with torch.save(model.state_dict(), FILE) or as .safetensors",
) -> Any:
    """Read a file of ``torch.save`` on the CPU with ``weights_only``: a pickle with anything but plain data is refused."""
    import torch

    refuse = _Refusal(path, error, head, fix)
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as problem:
        refuse(problem)
    except Exception as problem:  # torch raises many kinds here; all mean the same to the user
        refuse(f"only tensors and plain data are accepted, nothing is unpickled ({_unpickler_line(problem)})")


def _unpickler_line(error: Exception) -> str:
    """Error of torch's restricted unpickler, without its advice to switch the restriction off."""
    refused = r"(?:WeightsUnpickler error: |Trying to load )([^\n]+?)(?: was not an allowed global| whose module| Please|$)"
    found = re.search(refused, str(error), re.MULTILINE)
    return found[1][:200] if found else "no pickle of tensors" if "weights_only" in str(error) else reason(error)


# -- Parquet -----------------------------------------------------------------------------------------------------------
def parquet_errors() -> tuple[type[Exception], ...]:
    """Return the errors that pyarrow raises on damaged or foreign files, from opening them to converting columns to Python's values."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError)
