"""Words that the built-in CLIP was never trained on; found without torch, before a command starts its work."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from czsl.compositions import prompt_name

WORDS = Path(__file__).with_name("tiny") / "words.txt"
MAX_LISTED = 8
_WORD = re.compile(r"[^\W\d_]+|\d")


@cache
def known_words() -> frozenset[str]:
    """Return the words of the captions that ``tiny`` was trained on."""
    return frozenset(WORDS.read_text(encoding="utf-8").split())


def unknown_words(clip: str, texts: Iterable[str]) -> list[str]:
    """Return the words for which a CLIP has no vectors, sorted, each once.

    Parameters
    ----------
    clip : str
        Name of the CLIP. Only ``tiny`` has words without vectors; published models cover all of them.
    texts : iterable of str
        Names of attributes and objects, or sentences.
    """
    if clip != "tiny":
        return []
    words = {word for text in texts for word in _WORD.findall(prompt_name(text))}
    return sorted(words - known_words())


def note_on_words(words: list[str]) -> str:
    """Return the warning about :func:`unknown_words`; an empty text without any."""
    if not words:
        return ""
    more = f" and {len(words) - MAX_LISTED} more" if len(words) > MAX_LISTED else ""
    noun = "word" if len(words) == 1 else "words"
    return (
        f"the built-in CLIP `tiny` was never trained on {len(words):,} {noun} used here: {', '.join(words[:MAX_LISTED])}{more}. "
        "Such words have zero vectors, so labels that differ only in them get the same score. Name a real CLIP, e.g. --clip ViT-B-32"
    )
