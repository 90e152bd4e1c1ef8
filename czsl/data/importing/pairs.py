"""Lists of pairs: ``wet dog``, or ``long sleeved+shirt`` as VAW-CZSL does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from czsl.data.importing.textfiles import read_text, short
from czsl.errors import DataError

SEPARATORS = {"space": " ", "plus": "+"}

Pair = tuple[str, str]


def read_pair_lists(paths: Sequence[Path], separator: str | None = None) -> tuple[list[list[Pair]], str]:
    """Read lists of pairs, one pair per line; all lists are written in the same way.

    Parameters
    ----------
    paths : sequence of Path
    separator : {"space", "plus"}, optional
        How a pair is written; default: the only way in which every line can be read.

    Returns
    -------
    lists : list of list of (attribute, object)
        One for each path.
    separator : str
        Key of `SEPARATORS`.

    Raises
    ------
    DataError
        A list cannot be read, a line is not a pair, or the lists can be read in both ways.
    """
    lines = [[(number, line) for number, line in enumerate(_lines(path), 1) if line.strip()] for path in paths]
    texts = [(path, number, line) for path, part in zip(paths, lines, strict=True) for number, line in part]
    if separator is None:
        separator = _only_separator(texts)
    for path, number, line in texts:
        if split_pair(line, separator) is None:
            expected = "attribute object" if separator == "space" else "attribute+object"
            fix = "use _ inside a name" if separator == "space" else "write one + in each line"
            raise DataError(f"{path}, line {number}: {short(line)!r}", f"expected: {expected}", fix)
    return [[_pair(line, separator) for _, line in part] for part in lines], separator


def split_pair(text: str, separator: str) -> Pair | None:
    """Attribute and object of a text, or None if it is not written with this separator."""
    parts = text.split() if separator == "space" else [part.strip() for part in text.split("+")]
    return (parts[0], parts[1]) if len(parts) == 2 and all(parts) else None


def _pair(text: str, separator: str) -> Pair:
    pair = split_pair(text, separator)
    assert pair is not None
    return pair


def _only_separator(texts: Sequence[tuple[Path, int, str]]) -> str:
    """Spaces, unless there is a ``+`` somewhere; then the one way in which all lines are pairs."""
    marked = [item for item in texts if "+" in item[2]]
    if not marked:
        return "space"
    by_plus = all(split_pair(line, "plus") for _, _, line in texts)
    by_space = all(split_pair(line, "space") for _, _, line in texts)
    if by_plus and not by_space:
        return "plus"
    path, number, line = next((item for item in marked if split_pair(item[2], "space")), marked[0])
    readings = [
        f"attribute {short(pair[0])!r}, object {short(pair[1])!r}" for key in SEPARATORS if (pair := split_pair(line, key))
    ]
    why = f"{path.name}, line {number}: {short(line.strip())!r} is {' or '.join(readings) or 'no pair'}"
    if not by_plus:
        path, number, line = next(item for item in texts if not split_pair(item[2], "plus"))
        why += f"; {path.name}, line {number}: {short(line.strip())!r} has no +" if "+" not in line else ""
    raise DataError("the pair lists can be read in more than one way", why, "say which with --pairs space or --pairs plus")


def _lines(path: Path) -> list[str]:
    return read_text(path, "is the folder complete?").splitlines()
