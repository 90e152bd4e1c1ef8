"""Explanation by regions of an image and phrases of a candidate, in shares that add up to the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from czsl.clip.towers import Towers
from czsl.data.files.regions import checked_boxes
from methods.explanation import Boxes, Figures, HeatMap, Part, Shares
from methods.lazsl.config import LaZSLConfig
from methods.lazsl.regions import boxes_of, region_features
from methods.lazsl.scoring import PhraseFeatures
from methods.lazsl.solver import plan_of
from methods.parts.views import crops, encode_views

CONVERGED = 1e-12
MAP_SIDE = 96  # cells along the longer side of a map that is shown
SHOWN = 6  # phrases whose regions are drawn: those with the largest shares


@dataclass(frozen=True)
class WeightedPhrase:
    """A prompt, the label it describes (``wet``), and what it weighs among the candidate's phrases."""

    text: str
    label: str
    weight: float


@dataclass(frozen=True)
class TransportExplanation:
    """Parts of the score of an image and a candidate; N phrases, R kept regions, float64.

    candidate : names of the attribute and the object, or of the class
    score : psi, a weighted mean cosine; ``logit_scale * score`` is what prediction prints
    baseline : of the whole image only (the description baseline)
    boxes : int [R, 4], left, top, right, bottom in pixels of the original
    phrases : N of them
    plan : T [N, R]
    similarity : cosines s of phrases and regions [N, R]
    whole_similarity : cosines q of phrases and the whole image [N]
    local : shares of the score theta * T * s [N, R]
    whole : shares of the score (1 - theta) * weight * q [N]; ``local.sum() + whole.sum()`` is the score
    lift : T / (weight * mass) - 1 [N, R]: what transport adds to a uniform plan, which T itself hardly shows
    notes : fallbacks that were taken, as text
    settings : theta, eps, solver, region seed, CLIP and size of the image
    """

    image: str
    candidate: tuple[str, ...]
    score: float
    logit_scale: float
    logit_bias: float
    baseline: float
    boxes: np.ndarray
    phrases: tuple[WeightedPhrase, ...]
    plan: np.ndarray
    similarity: np.ndarray
    whole_similarity: np.ndarray
    local: np.ndarray
    whole: np.ndarray
    lift: np.ndarray
    notes: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def by_phrase(self) -> np.ndarray:
        """Share of each phrase in the score, through regions and through the whole image, [N]."""
        return self.local.sum(1) + self.whole

    @property
    def by_region(self) -> np.ndarray:
        """Share of each region in the score, [R]; what is left of the score belongs to the whole image."""
        return self.local.sum(0)

    @property
    def best_region(self) -> np.ndarray:
        """The region that contributes most to each phrase, int [N]."""
        return self.local.argmax(1)

    def heat_map(self, values_R: np.ndarray | None = None, max_side: int = 512) -> np.ndarray:
        """Mean of a value over the regions that cover a pixel, [height, width] of the image shrunk to ``max_side`` on its longer side; 0 if
        uncovered.

        The values are the regions' shares by default; ``lift[n]`` shows where a single phrase finds support.
        """
        width, height = self.settings["image_size"]
        scale = min(1.0, max_side / max(width, height))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        edges = np.round(self.boxes * np.tile([size[1] / width, size[0] / height], 2)).astype(int)
        values_R = self.by_region if values_R is None else np.asarray(values_R)
        total, cover = np.zeros((size[0] + 1, size[1] + 1)), np.zeros((size[0] + 1, size[1] + 1))
        for (left, top, right, bottom), value in zip(edges, values_R, strict=True):
            for grid, amount in ((total, value), (cover, 1.0)):
                grid[top, left] += amount
                grid[bottom, right] += amount
                grid[top, right] -= amount
                grid[bottom, left] -= amount
        total, cover = (grid.cumsum(0).cumsum(1)[:-1, :-1] for grid in (total, cover))
        covered = cover > 0.5
        return np.where(covered, total / np.where(covered, cover, 1.0), 0.0)

    @property
    def parts(self) -> list[Part]:
        """Return the parts to show: regions by their shares, the best region of each phrase, and the shares that add up to the score."""
        width, height = self.settings["image_size"]
        shown = np.argsort(-self.by_phrase, kind="stable")[:SHOWN].tolist()
        maps = [("all phrases: mean share of the regions here", self.heat_map(max_side=MAP_SIDE), "share of the score")]
        maps += [
            (f"{self.phrases[n].text}: lift", self.heat_map(self.lift[n], MAP_SIDE), "over an even plan")
            for n in shown
            if self.phrases[n].weight
        ]
        extent = (0.0, 0.0, float(width), float(height))
        best = [(tuple(self.boxes[r].tolist()), f"{self.phrases[n].text}: {self.local[n, r]:.5f}") for n, r in self._drawn(shown)]
        bias = f" and {self.logit_bias:+g}" if self.logit_bias else ""
        share_text = f"They add up to the score {self.score:.4f}; times {self.logit_scale:g}{bias} it is what prediction prints."
        regions = [f"region {r + 1}: {box}" for r, box in enumerate(self.boxes.tolist())]
        totals = [float(self.local.sum()), float(self.whole.sum()), self.score]
        by_phrase = np.stack([self.local.sum(1), self.whole, self.by_phrase], axis=1)
        lines: list[list[str | float | int]] = [
            [
                phrase.text,
                phrase.label,
                round(phrase.weight, 4),
                int(self.best_region[n]) + 1,
                round(float(self.whole_similarity[n]), 4),
            ]
            for n, phrase in enumerate(self.phrases)
        ]
        return [
            *(HeatMap("Where the regions support the phrases", title, values, extent, note) for title, values, note in maps),
            Boxes("The best region of each phrase", [box for box, _ in best], [c for _, c in best], "By its share of the score."),
            Shares(
                "Shares by phrase", [p.text for p in self.phrases], ["regions", "whole image", "sum"], by_phrase, totals, share_text
            ),
            Shares(
                "Shares by region", [*regions, "the whole image"], ["share"],
                np.append(self.by_region, self.whole.sum())[:, None], [self.score], share_text,
            ),
            Figures("Phrases", ["phrase", "label", "weight", "best region", "cosine with the whole image"], lines),
        ]  # fmt: skip

    def _drawn(self, phrases: list[int]) -> list[tuple[int, int]]:
        return [(n, int(self.best_region[n])) for n in phrases if self.phrases[n].weight]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        arrays = (
            "boxes",
            "plan",
            "similarity",
            "whole_similarity",
            "local",
            "whole",
            "lift",
            "by_phrase",
            "by_region",
            "best_region",
        )
        return {
            "image": self.image,
            "candidate": list(self.candidate),
            "score": self.score,
            "logit_scale": self.logit_scale,
            "baseline": self.baseline,
            "phrases": [vars(p) for p in self.phrases],
            **{name: getattr(self, name).tolist() for name in arrays},
            "notes": list(self.notes),
            "settings": self.settings,
        }


@torch.inference_mode()
def explain_image(
    clip: Towers,
    config: LaZSLConfig,
    image: Image.Image,
    text: PhraseFeatures,
    candidate: tuple[str, ...],
    image_id: str = "0",
    boxes: Any = None,
    prompt: str | None = None,
) -> TransportExplanation:
    """The explanation of one candidate.

    Parameters
    ----------
    clip : Towers
    config : LaZSLConfig
    image : PIL image
        The original.
    text : PhraseFeatures
        Return the explanation of this candidate only.
    candidate : tuple of str
        Its names.
    image_id : str
        Random regions are drawn by it: the name under which the image was scored.
    boxes : [R, 4], optional
        Regions of the user's own instead. They are cut to the image; those outside are dropped and counted in ``notes``.
    prompt : str, optional
        What the whole image is compared with, where that is not the phrases.

    Raises
    ------
    DataError
        If a box is empty or inverted.
    """
    image, notes = image.convert("RGB"), []
    if boxes is None:
        boxes_R4, outside = boxes_of(image.size, image_id, config)
    else:
        boxes_R4, outside = checked_boxes(boxes, image.size)
    if outside:
        notes.append(f"{outside} regions lie outside the image and were dropped")
    pixels = torch.from_numpy(clip.pixels(image))[None]
    regions = crops(image, boxes_R4, clip.pixels)[None] if len(boxes_R4) else None
    if regions is None:
        boxes_R4 = np.array([[0, 0, *image.size]])
        notes.append("no regions: the whole image is the only one")
    features = region_features(encode_views(clip, pixels, regions), clip.dim, config)
    if bool(features.none_kept[0]):
        notes.append("the selection kept no region, so all of them were kept")

    _, phrase_1N, weight_1N = text.problems[0]
    features_FD = torch.cat([bank.features for bank in text.banks]).double()
    texts = [line for bank in text.banks for line in bank.texts]
    labels = [bank.names[x] for bank in text.banks for x, n in enumerate(bank.count.tolist()) for _ in range(n)]
    phrases = [WeightedPhrase(texts[f], labels[f], w) for f, w in zip(phrase_1N[0].tolist(), weight_1N[0].tolist(), strict=True)]
    # The plan is solved again in float64 and to convergence; which regions are kept is what prediction decided.
    features_ND, whole_D = features_FD[phrase_1N[0]], features.pair[0].double()
    mass_1R = (features.mass > 0).double() / (features.mass > 0).sum()
    s_NR, q_N = features_ND @ features.regions[0].double().T, features_ND @ whole_D
    solver, strength = (config.solver, config.theta / config.eps) if config.theta else ("uniform", 0.0)
    plan_NR = plan_of(solver, s_NR[None], weight_1N, mass_1R, strength, CONVERGED)[0]
    product_NR = weight_1N[0, :, None] * mass_1R
    whole_N = weight_1N[0] * q_N
    lift_NR = plan_NR / product_NR - 1
    if prompt is not None:
        own_D = text.pair[0].double()
        phrases.append(WeightedPhrase(prompt, " ".join(candidate), 0.0))
        s_NR = torch.cat([s_NR, own_D[None] @ features.regions[0].double().T])
        plan_NR, lift_NR = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (plan_NR, lift_NR))
        q_N, whole_N = torch.cat([q_N, (own_D @ whole_D)[None]]), torch.cat([torch.zeros_like(whole_N), (own_D @ whole_D)[None]])
    local_NR = config.theta * plan_NR * s_NR
    baseline = float(whole_N.sum())
    whole_N = (1 - config.theta) * whole_N
    return TransportExplanation(
        image=image_id,
        candidate=candidate,
        score=float(local_NR.sum() + whole_N.sum()),
        logit_scale=float(clip.logit_scale),
        logit_bias=0.0 if clip.logit_bias is None else float(clip.logit_bias),
        baseline=baseline,
        boxes=boxes_R4[features.kept[0].cpu().numpy()],
        phrases=tuple(phrases),
        plan=_numpy(plan_NR),
        similarity=_numpy(s_NR),
        whole_similarity=_numpy(q_N),
        local=_numpy(local_NR),
        whole=_numpy(whole_N),
        lift=_numpy(lift_NR),
        notes=tuple(notes),
        settings={
            "theta": config.theta,
            "eps": config.eps,
            "solver": config.solver,
            "regions": config.regions if boxes is None else "given",
            "region_seed": config.region_seed,
            "regions_sampled": int(features.kept.shape[1]),
            "clip": clip.name,
            "clip_sha256": clip.sha256,
            "image_size": list(image.size),
        },
    )


def _numpy(x: torch.Tensor) -> np.ndarray:
    return x.cpu().numpy()
