"""Text from outside, made safe to look at: names, labels and messages may hold what steers a terminal or reorders a line.

Results keep the real characters; only text for a terminal or a page is escaped here.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import lru_cache
from typing import Any

# Joiners belong to words of several scripts and to emoji; all other invisible characters are escaped.
_JOINERS = frozenset("\u200c\u200d")
_UNUSUAL = re.compile(r"[^ -~]")


def printable(text: str, keep: str = "") -> str:
    r"""Escape control, bidirectional and other invisible characters, and bytes that are not UTF-8.

    Parameters
    ----------
    text : str
    keep : str
        Characters to leave as they are, for text of the program itself that has lines: ``"\n"``.

    Returns
    -------
    str
        ``a\x1b[31mb`` for a name with an escape character, ``\u202e`` for a right-to-left override, ``\udce9`` for the byte E9 of a
        file name that is not UTF-8. Letters of all scripts, accents, emoji and spaces stay. A backslash stays single.
    """
    return _UNUSUAL.sub(lambda found: found[0] if found[0] in keep or _shown(found[0]) else _escaped(found[0]), text)


def printable_json(content: Any, indent: int | None = None) -> str:
    r"""JSON that is safe on a terminal and holds the same content: such characters are written as ``\uXXXX``.

    What is not Unicode (a byte of a file name that is not UTF-8) becomes a lone ``\udcXX``, which Python reads back as it was.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return _UNUSUAL.sub(lambda found: found[0] if found[0] == "\n" or _shown(found[0]) else _json_escaped(found[0]), text)


@lru_cache(4096)
def _shown(character: str) -> bool:
    kind = unicodedata.category(character)
    return character in _JOINERS or kind[0] in "LMNPS" or kind == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escaped(character: str) -> str:
    return json.dumps(character)[1:-1]  # a pair of surrogates above U+FFFF
