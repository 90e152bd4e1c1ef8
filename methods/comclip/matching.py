"""Sentences and images, as in the paper: each entity and relation of a sentence has a sub-image, weighted by its fit to the word.

Everything is encoded once: words and captions, images, and sub-images, which sentences share where their masks are the same.
Letters: N images, C captions, K words of a caption, U sub-images of an image, D joint width.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from czsl.clip.backbone import Clip
from czsl.data.pixels import clip_pixels
from czsl.data.regions import RegionTable
from czsl.errors import CzslError
from methods.comclip.algebra import Rule, fits, gram_scores, weigh
from methods.comclip.config import Fill
from methods.comclip.fills import sub_images
from methods.comclip.model import word_features
from methods.comclip.parse import Composition
from methods.comclip.providers import Mask, Places, View

Load = Callable[[str], Image.Image]
Progress = Callable[[str, int, int], None]
TOGETHER = 16  # images whose sub-images are encoded together
RELATIONS = ("union", "whole", "off")


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
    clip : Clip
    places : str
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
    """

    clip: Clip
    places: str = "patch"
    rule: Rule = field(default_factory=Rule)
    fill: Fill = "black"
    relation: str = "union"
    table: RegionTable | None = None
    windows: int = 1
    batch: int = 64
    progress: Progress = lambda what, done, total: None
    passes: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self):
        self._texts: dict[str, Tensor] = {}
        self._places = Places(self.places, self.clip, self._unit, self.table, self.windows, self.counts)

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
                    pixels[name] = clip_pixels(load(name), self.clip.image_size)
                except CzslError as error:
                    errors[name] = " ".join(x for x in (error.what, error.why) if x)
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
            Of :meth:`whole`, for these images.
        load : callable
            Name -> RGB image; it is asked a second time for an image of :meth:`whole`.
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
            views = [self._view(name, load) for name in some]
            known = self._look(views)
            words = [[self._words(view, sentence) for sentence in wanted[view.name]] for view in views]
            self._encode_new(views, words, known)
            for view, own, sentences in zip(views, known, words, strict=True):
                whole_D = features[view.name]
                out[view.name] = [
                    self._match(whole_D, own, sentence, parts, masks)
                    for sentence, parts in zip(wanted[view.name], sentences, strict=True)
                ]
            self.progress("composing images", min(start + TOGETHER, len(names)), len(names))
        return out

    def _view(self, name: str, load: Load) -> View:
        image = load(name).convert("RGB")
        return View(name, image, clip_pixels(image, self.clip.image_size))

    def _look(self, views: list[View]) -> list[dict[bytes, Tensor]]:
        """Lets the provider look at the images; what it encoded as sub-images is known already, by the mask's key."""
        size = self.clip.image_size
        if self.places in ("patch", "superpixel"):
            self.passes["images for regions"] += len(views)
        self._places.look_at(
            views,
            lambda pixels: self._encode(pixels, "windows"),
            lambda view: sub_images(view.image, view.window_masks(), self.fill, size),
        )
        known: list[dict[bytes, Tensor]] = []
        for view in views:
            windows = [] if view.windows is None else list(view.windows)
            known.append({mask_key(mask): row for mask, row in zip(view.window_masks(), windows, strict=True)})
        return known

    def _words(self, view: View, sentence: Composition) -> list[tuple[str, str, Mask]]:
        """Text, kind and mask of each word."""
        masks = self._places.masks(view, sentence)
        out = [(entity.text, "entity", mask) for entity, mask in zip(sentence.entities, masks, strict=True)]
        if self.relation != "off":
            for subject, verb, obj in sentence.relations:
                one, other = masks[subject], masks[obj]
                union = None if one is None or other is None or self.relation == "whole" else one | other
                out.append((verb, "relation", union))
        return [(text, kind, None if mask is None or mask.all() else mask) for text, kind, mask in out]

    def _encode_new(
        self, views: list[View], words: list[list[list[tuple[str, str, Mask]]]], known: list[dict[bytes, Tensor]]
    ) -> None:
        """Sub-images that are not known yet, of all the images together."""
        pixels, places = [], []
        for i, (view, sentences) in enumerate(zip(views, words, strict=True)):
            new = {mask_key(m): m for parts in sentences for _, _, m in parts if m is not None and mask_key(m) not in known[i]}
            if new:
                pixels.append(sub_images(view.image, list(new.values()), self.fill, self.clip.image_size))
                places += [(i, key) for key in new]
        if pixels:
            for (i, key), row in zip(places, self._encode(torch.cat(pixels), "sub-images"), strict=True):
                known[i][key] = row

    def _match(
        self,
        whole_D: Tensor,
        known: Mapping[bytes, Tensor],
        sentence: Composition,
        parts: list[tuple[str, str, Mask]],
        masks: bool,
    ) -> Match:
        caption_D = self.texts([sentence.sentence])[0]
        words_KD = self.texts([text for text, _, _ in parts])
        views_KD = torch.stack([whole_D if m is None else known[mask_key(m)] for _, _, m in parts]) if parts else words_KD
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


def mask_key(mask: np.ndarray) -> bytes:
    """Names a mask by what is in it."""
    return hashlib.blake2b(np.packbits(mask).tobytes() + repr(mask.shape).encode(), digest_size=16).digest()
