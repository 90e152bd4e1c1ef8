"""Providers of masks for the phrases in an image, in the order of their cost.

A mask is bool [H, W] of the original image; None if the phrase was not found, and the whole image stands for it. What needs
the tower is computed in batches over several images. Letters: K phrases, N patches, L windows, S image side, D joint width.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from czsl.clip.towers import Towers
from czsl.data.files.regions import RegionTable
from methods.comclip.parse import Composition, base_noun, head_of
from methods.comclip.regions import patches_per_side
from methods.comclip.windows import box_mask, grid_boxes, patch_shares, slic_segments
from methods.explanation import centre_square

PROVIDERS = ("patch", "grid", "superpixel", "file", "whole")
BACKGROUND = ("background", "other")
MAP_TAU = 0.01  # of the contrast between phrases
FOUND_MARGIN = 0.02  # cosine above the other phrases at the phrase's best patch
MASS = 0.8  # of a map, kept by its largest pieces
SAME_PHRASE = 0.8  # cosine from which a region's phrase means the word
Mask = np.ndarray | None
Encode = Callable[[Sequence[str]], Tensor]  # texts -> unit features


def mask_key(mask: np.ndarray) -> bytes:
    """Names a mask by what is in it."""
    return hashlib.blake2b(np.packbits(mask).tobytes() + repr(mask.shape).encode(), digest_size=16).digest()


@dataclass
class View:
    """An image in work, and what the provider has asked for.

    pixels : as CLIP sees it, uint8 [3, S, S]
    patches : [N, D], of length 1
    boxes, windows : [L, 4] in pixels of the original, [L, D] as the tower gives them
    encoded : sub-images that went through the tower, [D] each, by `mask_key`
    """

    name: str
    image: Image.Image
    pixels: np.ndarray
    patches: Tensor | None = None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    windows: Tensor | None = None
    encoded: dict[bytes, Tensor] = field(default_factory=dict)

    def window_masks(self) -> Iterator[np.ndarray]:
        """The windows, one after the other: 34 masks of a large photograph would take much memory."""
        return (box_mask(box, self.image.size) for box in self.boxes.tolist())

    def to_image(self, mask_SS: np.ndarray) -> Mask:
        """A mask over what CLIP sees, laid over the original; None if no pixel of a small one is left."""
        left, top, right, bottom = (round(x) for x in centre_square(self.image.size))
        size = max(1, right - left), max(1, bottom - top)
        own = np.asarray(Image.fromarray(mask_SS.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)).astype(bool)
        out = np.zeros((self.image.height, self.image.width), bool)
        out[top : top + size[1], left : left + size[0]] = own[: out.shape[0] - top, : out.shape[1] - left]
        return out if out.any() else None


@dataclass
class RegionProvider:
    """Finds phrases in images.

    Parameters
    ----------
    kind : str
        One of ``PROVIDERS``.
    clip : Towers
    encode : callable
        Texts to unit features, each text once.
    table : RegionTable, optional
        For ``file``.
    windows : int
        For ``grid``: the number of best windows of a phrase that are united.

    Attributes
    ----------
    counts : Counter
        What fell back, by its cause.
    """

    kind: str
    clip: Towers
    encode: Encode
    table: RegionTable | None = None
    windows: int = 1
    counts: Counter[str] = field(default_factory=Counter)

    def look_at(
        self, views: Sequence[View], encode_pixels: Callable[[Tensor], Tensor], sub_pixels: Callable[[View], Tensor]
    ) -> None:
        """Compute what the provider needs of the tower, for several images at once."""
        if self.kind in ("patch", "superpixel"):
            pixels = torch.from_numpy(np.stack([view.pixels for view in views]))
            patches = normalize(self.clip.visual.dense(self.clip.normalise(pixels))[1], dim=-1)
            for view, own in zip(views, patches, strict=True):
                view.patches = own
        elif self.kind == "grid":
            for view in views:
                left, top, right, _ = centre_square(view.image.size)
                view.boxes = grid_boxes(left, top, right - left)
            features = encode_pixels(torch.cat([sub_pixels(view) for view in views]))
            for view, own in zip(views, features.split([len(view.boxes) for view in views]), strict=True):
                view.windows = own
                view.encoded |= dict(zip(map(mask_key, view.window_masks()), own, strict=True))

        elif self.kind == "file":
            assert self.table is not None
            for view in views:
                known = self.table.of(view.name)
                outside = [r for r in known.regions if r.mask is None and r.pixels(view.image.size) is None] if known else []
                self.counts["regions outside of their image"] += len(outside)
                self.counts["images without regions in the file"] += known is None or not known.regions

    def masks(self, view: View, sentence: Composition) -> list[Mask]:
        """A mask, or None, for each entity of a sentence."""
        phrases = [entity.text for entity in sentence.entities]
        if not phrases or self.kind == "whole":
            return [None] * len(phrases)
        if self.kind == "file":
            return self._from_file(view, phrases)
        words_KD = self.encode(phrases)
        if self.kind == "grid":
            assert view.windows is not None
            best = (words_KD @ normalize(view.windows, dim=-1).T).topk(min(self.windows, len(view.windows)), dim=1).indices
            boxes = view.boxes.tolist()
            found: list[Mask] = [np.any([box_mask(boxes[i], view.image.size) for i in row], axis=0) for row in best.tolist()]
        elif self.kind == "superpixel":
            assert view.patches is not None
            found = self._segments(view, words_KD)
        else:
            assert view.patches is not None
            maps = patch_masks(view.patches, words_KD, self.encode(BACKGROUND), self.clip.image_size)
            found = [None if mask is None else view.to_image(mask) for mask in maps]
        self.counts["phrases not found in an image"] += sum(mask is None for mask in found)
        return found

    def _segments(self, view: View, words_KD: Tensor) -> list[Mask]:
        segments = slic_segments(view.pixels)
        assert view.patches is not None
        shares = torch.from_numpy(patch_shares(segments, patches_per_side(self.clip))).to(view.patches)
        scores_KG = (shares @ (view.patches @ words_KD.T)).T
        limit_K1 = scores_KG.mean(1, keepdim=True) + scores_KG.std(1, keepdim=True, correction=0)
        chosen = [np.flatnonzero(row) for row in (scores_KG > limit_K1).cpu().numpy()]
        return [view.to_image(np.isin(segments, own)) if len(own) else None for own in chosen]

    def _from_file(self, view: View, phrases: Sequence[str]) -> list[Mask]:
        assert self.table is not None
        known = self.table.of(view.name)
        if known is None or not known.regions:
            return [None] * len(phrases)
        said = list(dict.fromkeys(region.phrase for region in known.regions if region.phrase))
        masks: list[Mask] = []
        for phrase in phrases:
            wanted = set(known.matches[phrase]) if phrase in known.matches else self._meaning(phrase, said)
            own = [region.pixels(view.image.size) for region in known.regions if region.phrase in wanted]
            inside = [mask for mask in own if mask is not None]
            self.counts["phrases not found in an image"] += not inside
            masks.append(np.any(inside, axis=0) if inside else None)
        return masks

    def _meaning(self, phrase: str, said: Sequence[str]) -> set[str]:
        """Return the phrases of a file that a word refers to: those about the same noun, or similar by the text tower."""
        if not said:
            return set()
        alike = (self.encode(said) @ self.encode([phrase])[0] >= SAME_PHRASE).tolist()
        noun = base_noun(phrase.split()[-1])
        return {text for text, near in zip(said, alike, strict=True) if near or head_of(text) == noun}


def patch_masks(patches_ND: Tensor, words_KD: Tensor, background_MD: Tensor, size: int, tau: float = MAP_TAU) -> list[Mask]:
    """Masks over what CLIP sees, bool [S, S] each, from the cosines of phrases and patches; None if a phrase is not found.

    Phrases and background compete for every patch (softmax at ``tau``); a phrase has what lies above mean + standard deviation of its
    own map, of that the largest pieces with 80 % of the map. It is found where its cosine at its best patch exceeds the mean of the
    others' there by 0.02. Specification of this project; MaskCLIP (ECCV 2022) for the patches.
    """
    K, side = len(words_KD), round(len(patches_ND) ** 0.5)
    maps_XN = torch.cat([words_KD, background_MD]) @ patches_ND.T
    share_KN = (maps_XN / tau).softmax(0)[:K]
    fine_KSS = interpolate(share_KN.view(1, K, side, side), (size, size), mode="bilinear", align_corners=False)[0].cpu().numpy()
    masks: list[Mask] = []
    for k in range(K):
        best = int(maps_XN[k].argmax())
        others = (maps_XN[:, best].sum() - maps_XN[k, best]) / (len(maps_XN) - 1)
        above = fine_KSS[k] > fine_KSS[k].mean() + fine_KSS[k].std()
        found = bool(maps_XN[k, best] - others > FOUND_MARGIN) and above.any()
        masks.append(largest_pieces(above, fine_KSS[k]) if found else None)
    return masks


def largest_pieces(mask_SS: np.ndarray, weight_SS: np.ndarray, mass: float = MASS) -> np.ndarray:
    """The connected pieces of a mask with the largest weights, as many as it takes for a share ``mass`` of its weight."""
    from skimage.measure import label

    pieces = label(mask_SS, connectivity=1)
    weights = np.bincount(pieces[mask_SS], weights=weight_SS[mask_SS])
    order = np.argsort(-weights, kind="stable")
    enough = int(np.searchsorted(np.cumsum(weights[order]), mass * weights.sum())) + 1
    return np.isin(pieces, order[:enough][weights[order[:enough]] > 0])
