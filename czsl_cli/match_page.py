"""The page of ``czsl match``: images, the sub-image that each word of a sentence sees, and its weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from czsl_cli.match_words import EXPLAINED, parse_in_words, region_in_words
from czsl_cli.pages import Card, Gallery, Table, picture, write_page

if TYPE_CHECKING:
    from PIL import Image

    from methods.comclip.matching import Matcher, Word

SIZE = 200  # pixels of a picture


def write_match_page(path: Path, questions: list[dict[str, Any]], matcher: Matcher, load: Callable[[str], Image.Image]) -> None:
    """Write the page: a table and the best matches of each question."""
    sections: list[Any] = []
    for question in questions:
        by_image = question["sentence"] is None
        rows = []
        for a in question["answers"]:
            name = a["sentence"].sentence if by_image else a["image"]
            rows.append([a["rank"], name, f"{a['match'].score:.4f}" if a["match"] else "-", f"{a['clip']:.4f}", a["clip_rank"]])
        about = "" if by_image else f"Looked for: {parse_in_words(question['sentence'])}."
        columns = ["rank", "sentence" if by_image else "image", "ComCLIP", "CLIP", "CLIP's rank"]
        sections.append(Table(question["title"], columns, rows, about))
        for a in [a for a in question["answers"] if a["match"]][:EXPLAINED]:
            sections.append(_gallery(a, load(a["image"]).convert("RGB"), matcher, by_image))
    intro = [
        f"CLIP {matcher.clip.name}, regions {matcher.regions}, mode {matcher.rule.mode}. Scores are cosines.",
        "Each word has a part of the image; it is added to the image with the weight below it. The whole image always weighs 1.",
    ]
    write_page(path, "Sentences and images", sections, intro)


def _gallery(answer: dict[str, Any], image: Image.Image, matcher: Matcher, by_image: bool) -> Gallery:
    cards = [Card(picture(image, SIZE), "the image", "weight 1")]
    cards += [_card(word, image, matcher) for word in answer["match"].words]
    sentence = f"{answer['sentence'].sentence} ({parse_in_words(answer['sentence'])})"
    text = "No word fits any part of the image: the score is plain CLIP's." if answer["match"].guarded else sentence
    name = answer["sentence"].sentence if by_image else answer["image"]
    return Gallery(f"{answer['rank']}. {name}: {answer['match'].score:.4f}", cards, text, SIZE)


def _card(word: Word, image: Image.Image, matcher: Matcher) -> Card:
    from methods.comclip.fills import sub_image

    shown = image if word.mask is None else sub_image(image, word.mask, matcher.fill)
    note = f"weight {word.weight:.3f}, cosine {word.cosine:.3f}, {region_in_words(word)}"
    return Card(picture(shown, SIZE), word.text, note)
