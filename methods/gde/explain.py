"""Explanation by the parts of a composition's score, and by training images along the directions of its words.

Letters: n training images, A attributes, O objects, T their sum, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from czsl.compositions import CompositionSpace
from methods.explanation import Explanation, Figures, Neighbours, Part, ScoredImage, Shares, branch_figures
from methods.gde.geometry import moves

IMAGES = 6  # training images shown for each direction
LIKELIEST = 5  # primitives in the list of directions


@dataclass(frozen=True)
class Fitted:
    """The quantities that the score of a candidate follows from, in float64 on the CPU.

    space : the labels
    geometry : of the directions
    scale : factor of the cosines
    share : of the text in an embedding
    known : bool [T], which primitives have training images, attributes first
    mean : [D], centre of the training images
    offset : [D], mean of all pairs as a move from there
    directions : [T, D], of the primitives
    word : [D], text feature of the candidate's prompt
    """

    space: CompositionSpace
    geometry: Literal["sphere", "linear"]
    scale: float
    share: float
    known: Tensor
    mean: Tensor
    offset: Tensor
    directions: Tensor
    word: Tensor

    def from_mean(self, x_ND: Tensor) -> Tensor:
        """Moves [N, D] of unit features from the mean of all pairs."""
        return moves(self.mean, x_ND, self.geometry) - self.offset


def direction_parts(fitted: Fitted, scored: ScoredImage, index: int) -> Explanation:
    """The explanation of candidate ``index``.

    Its score is a sum of inner products with the image: of the prompt, of the centre, of the attribute's direction, of the object's. On the
    sphere cos and sin of the move's length scale centre and move, in the linear geometry the length of the end does: the sum is exact.
    """
    space, pair = fitted.space, scored.text.pairs[index].tolist()
    names = space.pair_names(pair)
    parts: list[Part] = [branch_figures(scored, index, (space.pair_name(pair), *names))]
    notes: list[str] = []
    image_D = scored.features.pair[0].double().cpu()
    parts.append(_score(fitted, scored, index, image_D))
    A = space.num_attributes
    kinds = (("attribute", space.attributes, 0), ("object" if names[0] else "class", space.objects, A))
    for branch, (kind, words, first) in enumerate(kinds):
        word, row = names[branch], first + pair[branch]
        if not word:
            continue
        parts.append(_nearest(fitted, kind, words, first, image_D))
        if not bool(fitted.known[row]):
            notes.append(f"no training image shows the {kind} {word}: its direction is zero, and only the text speaks of it")
        elif float(fitted.directions[row].norm()) < 1e-6:
            notes.append(f"the direction of {word} is zero: its training images are like all others")
        else:
            parts += _images(fitted, scored, pair, branch, row, kind, word)
    return Explanation(tuple(space.label(pair).values()), parts, notes)


def _score(fitted: Fitted, scored: ScoredImage, index: int, image_D: Tensor) -> Shares:
    """Exact parts of the score."""
    attribute, obj = scored.text.pairs[index].tolist()
    names, share = fitted.space.pair_names((attribute, obj)), fitted.share
    rows_TD, mean_D, offset_D = fitted.directions, fitted.mean, fitted.offset
    move_D = offset_D + rows_TD[attribute] + rows_TD[fitted.space.num_attributes + obj]
    if fitted.geometry == "sphere":
        length = move_D.norm()
        along, across = length.cos(), torch.sinc(length / torch.pi)
    else:
        along = across = 1 / (mean_D + move_D).norm()
    ends = float(image_D @ (along * mean_D + across * offset_D))
    terms = [(f"the prompt's text, share {share:.2f}", share * float(image_D @ fitted.word))]
    terms.append(("the centre of all images", (1 - share) * ends))
    for word, row in ((names[0], attribute), (names[1], fitted.space.num_attributes + obj)):
        if word:
            terms.append((f"the direction of {word}", (1 - share) * float(across * (image_D @ rows_TD[row]))))
        else:
            terms[1] = ("the centre of all images", terms[1][1] + (1 - share) * float(across * (image_D @ rows_TD[row])))
    values = fitted.scale * np.array([[value] for _, value in terms])
    text = "Parts of the score: inner products with the image, scaled. The centre's part differs little between compositions."
    return Shares("What the score is made of", [name for name, _ in terms], ["score"], values, [float(values.sum())], text)


def along(directions_TD: Tensor, moves_ND: Tensor) -> Tensor:
    """Cosines [N, T] of images' moves from the mean with directions; 0 for a zero direction."""
    return normalize(moves_ND, dim=-1) @ normalize(directions_TD, dim=-1).T


def _nearest(fitted: Fitted, kind: str, words: tuple[str, ...], first: int, image_D: Tensor) -> Figures:
    cosine_T = along(fitted.directions[first : first + len(words)], fitted.from_mean(image_D[None]))[0]
    order = torch.argsort(cosine_T, descending=True, stable=True)[:LIKELIEST].tolist()
    rows: list[list[str | float | int]] = [[words[i], round(float(cosine_T[i]), 4)] for i in order]
    plural = "classes" if kind == "class" else f"{kind}s"
    text = "Cosines of the image's way from the mean of all images with the direction of each word, without text."
    return Figures(f"Directions of {plural} along which the image lies", [kind, "cosine"], rows, text)


def _images(fitted: Fitted, scored: ScoredImage, pair: list[int], branch: int, row: int, kind: str, word: str) -> list[Part]:
    """Training images of the word that lie furthest along its direction."""
    examples = scored.examples(pair[0], pair[1])
    if examples is None:
        return []
    rows_n = np.flatnonzero((examples.attr, examples.obj)[branch] == pair[branch])
    if not len(rows_n):
        return []
    features_nD = normalize(examples.features[torch.from_numpy(rows_n)].double().cpu(), dim=-1)
    cosine_n = along(fitted.directions[row : row + 1], fitted.from_mean(features_nD))[:, 0]
    best = torch.argsort(cosine_n, descending=True, stable=True)[:IMAGES]
    text = f"Of {len(rows_n)} training images of {word}, those furthest along its direction, with their cosines."
    return [Neighbours(f"The direction of {word} ({kind})", rows_n[best.numpy()].tolist(), cosine_n[best].tolist(), text)]
