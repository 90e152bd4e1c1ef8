"""LaZSL on plain classes, as in its paper: names and their phrases instead of attributes and objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from czsl.clip.backbone import Clip
from czsl.compositions import prompt_name
from czsl.data.images import decode, read_image_file
from czsl.errors import DataError, UsageError
from methods.lazsl.config import LaZSLConfig
from methods.lazsl.explain import Explanation, explain_image
from methods.lazsl.phrases import make_bank
from methods.lazsl.regions import prepare_views, region_side
from methods.lazsl.scoring import PhraseSide, mixed_scores
from methods.parts.views import encode_views


def class_side(clip: Clip, classes: Sequence[str], config: LaZSLConfig) -> PhraseSide:
    """Phrases of C classes as candidates; ``pair`` [C, D] is each one's mean phrase.

    Raises
    ------
    DataError
        No class, one named twice, or descriptors that name none of them.
    """
    if not classes or len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise DataError("no classes" if not classes else f"class named twice: {', '.join(twice[:5])}", "", "name each once")
    bank = make_bank(clip, "classes", classes, [prompt_name(name, config.names) for name in classes], config)
    places_C1 = torch.arange(len(classes), device=bank.mean.device)[:, None]
    return PhraseSide(places_C1, bank.mean, banks=(bank,), shares=(1.0,))


class LaZSLClasses:
    """Classes of an image by regions and phrases.

    Parameters
    ----------
    clip : Clip
    classes : sequence of str
        C names.
    config : LaZSLConfig, optional
        ``descriptors["classes"]`` are their phrases; fields about attributes and pairs play no part.
    """

    def __init__(self, clip: Clip, classes: Sequence[str], config: LaZSLConfig | None = None):
        self.clip, self.classes, self.config = clip, tuple(classes), config or LaZSLConfig()
        self.text = class_side(clip, self.classes, self.config)

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image | str | Path], ids: Sequence[str] | None = None) -> Tensor:
        """Features [B, (1 + R) * D] of images, or of files; random regions are drawn by the ids (default: 0, 1, ..)."""
        ids = [str(i) for i in range(len(images))] if ids is None else ids
        rows = []
        for image, image_id in zip(images, ids, strict=True):
            opened = image if isinstance(image, Image.Image) else decode(read_image_file(Path(image)))
            views = prepare_views(opened, image_id, self.config, self.clip.image_size)
            regions = views["regions"][None] if "regions" in views else None
            rows.append(encode_views(self.clip, views["images"][None], regions))
        return torch.cat(rows) if rows else torch.zeros(0, self.clip.dim, device=self.clip.device)

    @torch.inference_mode()
    def scores(self, features_BF: Tensor) -> Tensor:
        """Scores [B, C], CLIP's scale times cosines; ``config.theta=0`` gives the description baseline."""
        side = region_side(features_BF.to(self.clip.device), self.clip.dim, self.config)
        return self.clip.logit_scale * mixed_scores(side, self.text, self.config)

    def predict(self, images: Sequence[Image.Image | str | Path], k: int = 5) -> list[list[dict[str, Any]]]:
        """The k best classes of each image, ``{"class", "score", "prob"}``, best first."""
        if not len(images):
            return []
        scores_BC = self.scores(self.features(images))
        prob_BC = scores_BC.double().softmax(1)
        best_Bk = scores_BC.topk(min(k, len(self.classes)), dim=1).indices.tolist()
        return [
            [{"class": self.classes[c], "score": float(scores_BC[b, c]), "prob": float(prob_BC[b, c])} for c in row]
            for b, row in enumerate(best_Bk)
        ]

    def explain(self, image: Image.Image, name: str, image_id: str = "0", boxes: Any = None) -> Explanation:
        """Which region supports which phrase of a class."""
        if name not in self.classes:
            raise UsageError(f"no class {name!r}", f"{len(self.classes)} classes: {', '.join(self.classes[:5])}, ...", "")
        place = self.classes.index(name)
        return explain_image(self.clip, self.config, image, self.text.tile(place, place + 1), (name,), image_id, boxes)
