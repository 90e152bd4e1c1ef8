"""Descriptor files: for each attribute, object or class a few phrases that say what to look for in a picture of it.

``{"attributes": {name: [phrase, ..]}, "objects": {..}}`` or ``{"classes": {..}}``; the plain form of the published files,
``{class: [phrase, ..]}``, means classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from czsl.compositions import prompt_name
from czsl.errors import DataError
from czsl.reading import PathLike, parse_json, read_text

KINDS = ("attributes", "objects", "classes")
MAX_BYTES = 64 * 2**20
MAX_PHRASE = 1000  # characters; a text tower reads 77 tokens
SHAPE = 'write {"attributes": {"wet": ["water drops"]}, "objects": {..}}, or {"classes": {..}}'

Phrases = dict[str, list[str]]


@dataclass(frozen=True)
class Matched:
    """Phrases for labels, and what did not fit.

    phrases : of each label, in the labels' order; empty if the file has none
    missing : labels that the file does not name
    empty : labels that it names without a phrase
    unknown : names of the file that no label has
    """

    phrases: list[list[str]]
    missing: list[str]
    empty: list[str]
    unknown: list[str]


def read_descriptors(path: PathLike) -> dict[str, Phrases]:
    """Phrases by kind (``attributes``, ``objects``, ``classes``; those that the file has) and name.

    Raises
    ------
    DataError
        No such file, not JSON, a name twice, or something else than lists of texts.
    """
    path = Path(path)
    text = read_text(path, max_bytes=MAX_BYTES, head="cannot read the descriptors {path}", fix=SHAPE)
    content = parse_json(text, path, pairs=_once, head="{path} is not a file of descriptors", fix=SHAPE)
    return check_descriptors(content, str(path))


def check_descriptors(content: Any, source: str = "descriptors") -> dict[str, Phrases]:
    """Descriptors of unknown origin in their full form ``{kind: {name: [phrase, ..]}}``, white space tidied.

    Raises
    ------
    DataError
        Names what is not as it should be.
    """
    if not isinstance(content, dict):
        raise DataError(f"{source} holds no descriptors", f"a mapping is expected, not {type(content).__name__}", SHAPE)
    if not any(isinstance(value, dict) for value in content.values()):
        content = {"classes": content} if content else {}
    if wrong := sorted(map(str, content.keys() - set(KINDS))):
        raise DataError(f"{source} has unknown parts: {', '.join(wrong[:5])}", f"known: {', '.join(KINDS)}", SHAPE)
    return {
        kind: {str(n): _phrases(p, f"{source}: {kind}: {n!r}") for n, p in _mapping(content[kind], source)} for kind in content
    }


def match_descriptors(names: Sequence[str], described: Mapping[str, list[str]]) -> Matched:
    """The phrases of labels: by their own spelling, or else by the words that the two names have in a prompt.

    Raises
    ------
    DataError
        The file describes something, but none of the labels.
    """
    by_words = {prompt_name(name): name for name in described}
    keys = [name if name in described else by_words.get(prompt_name(name)) for name in names]
    unknown = sorted(set(described) - {key for key in keys if key is not None})
    if described and len(unknown) == len(described):
        near = [(name, *difflib.get_close_matches(name, names, n=1)) for name in unknown[:100]]
        hint = f"described: {', '.join(unknown[:3])}" + next((f"; {a!r} for {b[0]!r}?" for a, *b in near if b), "")
        raise DataError("the descriptors name none of the labels", hint, "give the descriptors of these labels")
    missing = [name for name, key in zip(names, keys, strict=True) if key is None]
    empty = [name for name, key in zip(names, keys, strict=True) if key is not None and not described[key]]
    return Matched([[] if key is None else described[key] for key in keys], missing, empty, unknown)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return dict(pairs)


def _mapping(value: Any, source: str):
    if not isinstance(value, dict):
        raise DataError(f"{source} is not a file of descriptors", f"no mapping of names: {str(value)[:80]}", SHAPE)
    return value.items()


def _phrases(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(phrase, str) for phrase in value):
        raise DataError(
            f"{where} has no list of phrases", f"found: {str(value)[:80]}", "give a list of texts, which may be empty"
        )
    tidy = [" ".join(phrase.split()) for phrase in value]
    if too_long := [phrase for phrase in tidy if len(phrase) > MAX_PHRASE]:
        raise DataError(f"{where} has a phrase of {len(too_long[0]):,} characters", f"limit {MAX_PHRASE}", "shorten it")
    return [phrase for phrase in tidy if phrase]
