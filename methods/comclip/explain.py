"""Explanation by the regions of a pair's words and their additions to the score. Letters: L regions, S image side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from methods.comclip.pairs import ComCLIPText, attended, pair_parts
from methods.comclip.regions import ComCLIPImages, file_masks, patches_per_side
from methods.comclip.windows import box_mask, grid_boxes, slic_segments
from methods.explanation import Box, Boxes, Explanation, Figures, HeatMap, Part, ScoredImage, branch_figures, centre_square

if TYPE_CHECKING:
    from czsl.clip.towers import Towers
    from czsl.compositions import CompositionSpace
    from czsl.data.files.regions import RegionTable
    from methods.comclip.config import ComCLIPConfig

MAP_SIDE = 96  # cells along the longer side of a map
SAME = "The fit of a word is its cosine to the part of the image that it sees (mode=raw: their inner product)."


def explain_pair(
    scored: ScoredImage, index: int, space: CompositionSpace, config: ComCLIPConfig, table: RegionTable | None, clip: Towers
) -> Explanation:
    """Weights w_a and w_o, fits, the score and CLIP's own, and where the words look."""
    images, text = scored.features, scored.text.tile(index, index + 1)
    assert isinstance(images, ComCLIPImages)
    assert isinstance(text, ComCLIPText)
    pair = text.pairs[0].tolist()
    names = space.pair_names(pair)
    parts = pair_parts(images, text, config)
    scale, clip_score = float(clip.logit_scale), float(images.pair[0] @ text.pair[0])
    rows: list[list[str | float]] = [
        [role, word, *(round(float(x[0, 0, k]), 4) for x in (parts.cosine, parts.fit, parts.weight))]
        for k, (role, word) in enumerate(zip(("attribute", "object", "both"), (*names, " ".join(names)), strict=True))
        if k < parts.weight.shape[-1]
    ]
    scores: list[list[str | float]] = [
        ["plain CLIP", round(clip_score, 5), round(scale * clip_score, 4)],
        ["ComCLIP", round(float(parts.score[0, 0]), 5), round(scale * float(parts.score[0, 0]), 4)],
    ]
    shown: list[Part] = [
        branch_figures(scored, index, (" ".join(names), *names)),
        Figures("What the words see", ["word is", "word", "cosine", "fit", "weight"], rows, SAME),
        Figures("What it changes", ["score of", "cosine", "times CLIP's scale"], scores),
    ]
    notes = []
    if bool(parts.guarded[0, 0]):
        notes.append(f"no word of {' '.join(names)} fits any part of the image: its score is plain CLIP's")
    layers = _layers(scored.image, scored.image_id, config, table, clip)
    if config.regions != "whole" and not len(layers.masks):
        notes.append("the image has no regions: the score is plain CLIP's")
    if not len(layers.masks):
        return Explanation(names, shown, notes)
    found = attended(images, text, config)[:2]
    choices = [words.choice[0, p] for words, p in zip(found, pair, strict=True)]
    maps: list[Part] = [layers.heat_map(f"{role}: {name}", choice) for role, name, choice in zip(
        ("attribute", "object"), names, choices, strict=True
    )]  # fmt: skip
    best = [int(choice[: len(layers.masks)].argmax()) for choice in choices]
    boxes = [_box(layers.masks[i], layers.extent) for i in best]
    captions = [
        f"{name}: {float(choice[i]):.2f} of its choice, weight {float(parts.weight[0, 0, k]):.3f}"
        for k, (name, choice, i) in enumerate(zip(names, choices, best, strict=True))
    ]
    return Explanation(names, [*shown, *maps, Boxes("The region that each word chooses most", boxes, captions)], notes)


class _Layers:
    """Regions of an image in the order of its features: masks over a rectangle of it, bool [L, h, w] of any resolution."""

    def __init__(self, masks: list[np.ndarray], extent: Box):
        self.masks, self.extent = masks, extent

    def heat_map(self, title: str, choice_L: Tensor) -> HeatMap:
        """The choice spread over the pixels of its regions."""
        values = choice_L.double().cpu().numpy()
        # A region's share is spread over its area, so that the map adds up to what the regions have.
        total = sum((v * mask / mask.sum() for v, mask in zip(values, self.masks, strict=False)), np.zeros(self.masks[0].shape))
        rest = float(values[len(self.masks) :].sum())
        note = f"its choice of regions, spread over them; {100 * rest:.1f} % is for the whole image"
        title += " (it chooses the whole image)" if rest > 0.5 else ""
        return HeatMap("what the words choose", title, _shrunk(total), self.extent, note, rest)


def _layers(image: Image.Image, image_id: str, config: ComCLIPConfig, table: RegionTable | None, clip: Towers) -> _Layers:
    whole: Box = (0, 0, *image.size)
    square = centre_square(image.size)
    if config.regions == "grid":
        boxes = grid_boxes(square[0], square[1], square[2] - square[0]).tolist()
        return _Layers([box_mask(box, image.size) for box in boxes], whole)
    if config.regions == "file":
        assert table is not None
        return _Layers(file_masks(table, image_id, image.size, config.max_regions), whole)
    if config.regions == "patch":
        side = patches_per_side(clip)
        return _Layers(list(np.eye(side * side, dtype=bool).reshape(-1, side, side)), square)
    if config.regions == "superpixel":
        segments = slic_segments(clip.pixels(image))
        return _Layers([segments == i for i in range(int(segments.max()) + 1)], square)
    return _Layers([], whole)


def _shrunk(values_hw: np.ndarray) -> np.ndarray:
    """Sums over cells of a coarser map, so that the total stays."""
    height, width = values_hw.shape
    factor = max(1, -(-max(height, width) // MAP_SIDE))
    rows, columns = np.arange(0, height, factor), np.arange(0, width, factor)
    return np.add.reduceat(np.add.reduceat(values_hw, rows, axis=0), columns, axis=1)


def _box(mask: np.ndarray, extent: Box) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = (extent[2] - extent[0]) / mask.shape[1], (extent[3] - extent[1]) / mask.shape[0]
    left, top = extent[0] + columns[0] * x, extent[1] + rows[0] * y
    return float(left), float(top), float(extent[0] + (columns[-1] + 1) * x), float(extent[1] + (rows[-1] + 1) * y)
