"""Text shared by the terminal and HTML output of ``czsl match``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.comclip.parse import Composition

EXPLAINED = 3  # matches of a sentence that are explained


def parse_in_words(sentence: Composition) -> str:
    """Return what was found in a sentence: ``dog, cat; chase (dog, cat)``."""
    if not sentence.entities:
        return "no word to look for: plain CLIP"
    names = [entity.text for entity in sentence.entities]
    relations = [f"{verb} ({names[i]}, {names[j]})" for i, verb, j in sentence.relations]
    return "; ".join([", ".join(names), *relations])


def region_in_words(word: Any) -> str:
    """``whole image``, or how much of it."""
    return "whole image" if word.mask is None else f"{100 * word.mask.mean():.0f} % of the image"
