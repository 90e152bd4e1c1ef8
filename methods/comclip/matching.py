"""Sentences and images, as in the paper: each entity and relation of a sentence has a sub-image, weighted by its fit to the word.

Everything is encoded once: words and captions, images, and sub-images, which sentences share where their masks are the same.
Letters: N images, C captions, K words of a caption, U sub-images of an image, D joint width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from czsl.clip.towers import Towers
from czsl.data.files.regions import RegionTable
from czsl.errors import CzslError
from methods.comclip.algebra import Rule, fits, gram_scores, weigh
from methods.comclip.config import Fill
from methods.comclip.fills import sub_images
from methods.comclip.model import word_features
from methods.comclip.parse import Composition
from methods.comclip.providers import Mask, RegionProvider, View, mask_key

Load = Callable[[str], Image.Image]
Progress = Callable[[str, int, int], None]
TOGETHER = 16  # images whose sub-images are encoded together
RELATIONS = ("union", "whole", "off")
Drawn = tuple[str, str, Mask]  # a word, its kind and its mask


@dataclass(frozen=True)
class Word:
    """A word of a sentence in an image: its fit, cosine and weight; ``mask`` None: the whole image stands for it."""

    text: str
    kind: Literal["entity", "relation"]
    fit: float
    cosine: float
    weight: float
    mask: Mask


@dataclass(frozen=True)
class Match:
    """A sentence and an image: cosines of ComCLIP and of plain CLIP, the words, and whether the guard left the image as it is."""

    score: float
    clip: float
    words: tuple[Word, ...]
    guarded: bool


@dataclass
class Matcher:
    """ComCLIP on sentences.

    Parameters
    ----------
    clip : Towers
    regions : str
        Provider of regions, see :mod:`methods.comclip.providers`.
    rule : Rule
        Mode, weights, guard.
    fill : str
        What is outside of a region.
    relation : {"union", "whole", "off"}
        Sub-image of a relation: of subject and object together where both are found (else the whole image), the whole image, or none.
    table : RegionTable, optional
    windows : int
    batch : int
        Images or sub-images a pass of the tower.

    Attributes
    ----------
    passes : Counter
        Images, sub-images and texts that went through a tower.
    counts : Counter
        What fell back to plain CLIP, by its cause.
    failed : dict
        Images that cannot be composed (a mask of another size), and why; :meth:`matches` leaves them out.
    """

    clip: Towers
    regions: str = "patch"
    rule: Rule = field(default_factory=Rule)
    fill: Fill = "black"
    relation: str = "union"
    table: RegionTable | None = None
    windows: int = 1
    batch: int = 64
    progress: Progress = lambda what, done, total: None
    passes: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self._texts: dict[str, Tensor] = {}
        self._provider = RegionProvider(self.regions, self.clip, self._unit, self.table, self.windows, self.counts)

    # -- texts -----------------------------------------------------------------------------------------------------
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features [C, D] of texts as the tower gives them; a text is encoded once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            self._texts |= dict(zip(new, word_features(self.clip, new, raw=True), strict=True))
            self.passes["texts"] += len(new)
        return torch.stack([self._texts[text] for text in texts]) if texts else self.clip.mean.new_zeros(0, self.clip.dim)

    def _unit(self, texts: Sequence[str]) -> Tensor:
        return normalize(self.texts(texts), dim=-1)

    # -- images ----------------------------------------------------------------------------------------------------
    def _encode(self, pixels_N3SS: Tensor, what: str) -> Tensor:
        """Features [N, D] as the tower gives them."""
        self.passes[what] += len(pixels_N3SS)
        parts = [self.clip.visual(self.clip.normalise(part)) for part in pixels_N3SS.split(self.batch)]
        return torch.cat(parts).to(self.clip.mean.dtype) if parts else self.clip.mean.new_zeros(0, self.clip.dim)

    @torch.inference_mode()
    def whole(self, names: Sequence[str], load: Load) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Features [D] of whole images by name, and what is wrong with those that have none."""
        features: dict[str, Tensor] = {}
        errors: dict[str, str] = {}
        names = list(dict.fromkeys(names))
        for start in range(0, len(names), self.batch):
            pixels: dict[str, np.ndarray] = {}
            for name in names[start : start + self.batch]:
                try:
                    pixels[name] = self.clip.pixels(load(name))
                except CzslError as error:
                    errors[name] = _in_words(error)
            if pixels:
                encoded = self._encode(torch.from_numpy(np.stack(list(pixels.values()))), "images")
                features |= dict(zip(pixels, encoded, strict=True))
            self.progress("encoding images", min(start + self.batch, len(names)), len(names))
        return features, errors

    def clip_scores(self, features: Mapping[str, Tensor], names: Sequence[str], captions: Sequence[str]) -> Tensor:
        """Plain CLIP's cosines [N, C]."""
        if not names:
            return torch.zeros(0, len(captions))
        images_ND = normalize(torch.stack([features[name] for name in names]), dim=-1)
        return images_ND @ self._unit(captions).T

    # -- matches ---------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def matches(
        self, wanted: Mapping[str, Sequence[Composition]], features: Mapping[str, Tensor], load: Load, masks: bool = False
    ) -> dict[str, list[Match]]:
        """ComCLIP's answer for some sentences of each image.

        Parameters
        ----------
        wanted : mapping
            Name of an image -> sentences.
        features : mapping
            Result of :meth:`whole`, for these images.
        load : callable
            Name -> RGB image; it is called a second time for an image of :meth:`whole`.
        masks : bool, default False
            Keep the words' masks, to show them.
        """
        every = list(dict.fromkeys(sentence for sentences in wanted.values() for sentence in sentences))
        self.texts([text for sentence in every for text in (sentence.sentence, *sentence.words)])
        self.counts["sentences without a word"] += sum(not sentence.entities for sentence in every)
        out: dict[str, list[Match]] = {}
        names = [name for name in wanted if wanted[name]]
        for start in range(0, len(names), TOGETHER):
            some = names[start : start + TOGETHER]
            views = [view for name in some if (view := self._view(name, load)) is not None]
            self._look(views)
            drawn = {view.name: words for view in views if (words := self._draw(view, wanted[view.name])) is not None}
            self._encode_new([(view, drawn[view.name]) for view in views if view.name in drawn])
            for view in views:
                pairs = zip(wanted[view.name], drawn[view.name], strict=True) if view.name in drawn else ()
                out[view.name] = [self._match(view, features[view.name], *pair, masks) for pair in pairs]
            self.progress("composing images", min(start + TOGETHER, len(names)), len(names))
        return {name: found for name, found in out.items() if found}

    def _view(self, name: str, load: Load) -> View | None:
        try:
            image = load(name).convert("RGB")
        except CzslError as error:  # gone since it was encoded
            self.failed[name] = _in_words(error)
            return None
        return View(name, image, self.clip.pixels(image))

    def _look(self, views: list[View]) -> None:
        """Lets the provider look at the images."""
        if self.regions in ("patch", "superpixel"):
            self.passes["images for regions"] += len(views)
        self._provider.look_at(
            views,
            lambda pixels: self._encode(pixels, "windows"),
            lambda view: sub_images(view.image, view.window_masks(), self.fill, self.clip.pixels),
        )

    def _draw(self, view: View, sentences: Sequence[Composition]) -> list[list[Drawn]] | None:
        """The words of each sentence in an image; None if its regions cannot be used."""
        try:
            return [self._words(view, sentence) for sentence in sentences]
        except CzslError as error:
            self.failed[view.name] = _in_words(error)
            return None

    def _words(self, view: View, sentence: Composition) -> list[Drawn]:
        """Text, kind and mask of each word."""
        masks = self._provider.masks(view, sentence)
        out = [(entity.text, "entity", mask) for entity, mask in zip(sentence.entities, masks, strict=True)]
        if self.relation != "off":
            for subject, verb, obj in sentence.relations:
                one, other = masks[subject], masks[obj]
                union = None if one is None or other is None or self.relation == "whole" else one | other
                out.append((verb, "relation", union))
        return [(text, kind, None if mask is None or mask.all() else mask) for text, kind, mask in out]

    def _encode_new(self, drawn: list[tuple[View, list[list[Drawn]]]]) -> None:
        """Sub-images that did not go through the tower yet, of several images together."""
        pixels, found_in = [], []
        for view, sentences in drawn:
            masks = [mask for words in sentences for _, _, mask in words if mask is not None]
            new = {key: mask for mask in masks if (key := mask_key(mask)) not in view.encoded}
            if new:
                pixels.append(sub_images(view.image, new.values(), self.fill, self.clip.pixels))
                found_in += [(view, key) for key in new]
        if pixels:
            for (view, key), row in zip(found_in, self._encode(torch.cat(pixels), "sub-images"), strict=True):
                view.encoded[key] = row

    def _match(self, view: View, whole_D: Tensor, sentence: Composition, parts: list[Drawn], masks: bool) -> Match:
        caption_D = self.texts([sentence.sentence])[0]
        words_KD = self.texts([text for text, _, _ in parts])
        views_KD = torch.stack([whole_D if m is None else view.encoded[mask_key(m)] for _, _, m in parts]) if parts else words_KD
        clip_score = float(normalize(whole_D, dim=-1) @ normalize(caption_D, dim=-1))
        if self.rule.mode == "unit":
            whole_D, views_KD, words_KD = (normalize(x, dim=-1) for x in (whole_D, views_KD, words_KD))
        fit_K, cosine_K = fits(words_KD, views_KD, self.rule)
        weight_K, guarded = weigh(fit_K, cosine_K, torch.ones_like(fit_K, dtype=torch.bool), self.rule)
        score = float(gram_scores(caption_D[None], whole_D, views_KD, weight_K[None])[0])
        self.counts["pairs left to plain CLIP by the guard"] += bool(guarded)
        numbers = zip(parts, fit_K.tolist(), cosine_K.tolist(), weight_K.tolist(), strict=True)
        words = tuple(
            Word(text, "relation" if kind == "relation" else "entity", fit, cosine, weight, mask if masks else None)
            for (text, kind, mask), fit, cosine, weight in numbers
        )
        return Match(score, clip_score, words, bool(guarded))


def _in_words(error: CzslError) -> str:
    return ": ".join(x for x in (error.what, error.why) if x)
