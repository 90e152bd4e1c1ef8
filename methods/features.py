"""Data between the parts of a method: image and text features, the query to an index, the labels of a batch.

Letters: B images, P pairs, A attributes, O objects, D joint width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor


@dataclass
class ImageFeatures:
    """Features of B images: the image embedding ``pair`` [B, D]; ``attribute`` and ``object`` [B, D] if the method has branches."""

    pair: Tensor
    attribute: Tensor | None = None
    object: Tensor | None = None


@dataclass
class TextFeatures:
    """Features of P compositions ``pairs`` [P, 2]: their embeddings ``pair`` [P, D]; branches: ``attribute`` [A, D], ``object`` [O, D]."""

    pairs: Tensor
    pair: Tensor
    attribute: Tensor | None = None
    object: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def tile(self, start: int, stop: int) -> Self:
        """The text features of pairs ``start:stop``; primitives stay whole."""
        return replace(self, pairs=self.pairs[start:stop], pair=self.pair[start:stop])


def primitives_of(features: ImageFeatures | TextFeatures) -> tuple[Tensor, Tensor]:
    """The attribute and the object branch of features that have branches."""
    assert features.attribute is not None and features.object is not None
    return features.attribute, features.object


@dataclass
class RetrievalQuery:
    """Query of B images to a composition index: score(a, o) = query . t_ao + attribute[a] * object[o].

    ``query`` [B, D]; ``attribute`` [B, A] and ``object`` [B, O], non-negative, where primitives take part in the score; with
    ``combine="sum"`` their sum joins the score instead of their product. With ``probability`` the composition term is that weight times
    the softmax of the inner products among all pairs. ``bias`` is added to every score (SigLIP's).
    """

    query: Tensor
    attribute: Tensor | None = None
    object: Tensor | None = None
    probability: float | None = None
    combine: Literal["product", "sum"] = "product"
    bias: float = 0.0


@dataclass
class Targets:
    """Labels of B images: index of the attribute, the object and the training pair, each int64 [B].

    If only candidate labels are known they are probabilities instead, [B, A], [B, O] and [B, P] (torch's cross_entropy takes both), with
    the ``top1`` candidate label's attribute and object (int64 [B] each) and the ``candidates`` themselves (bool [B, P]).
    """

    attribute: Tensor
    object: Tensor
    pair: Tensor
    top1: tuple[Tensor, Tensor] | None = None
    candidates: Tensor | None = None
    noted: tuple[Tensor, Tensor | None] | None = None

    @property
    def hard(self) -> tuple[Tensor, Tensor]:
        """One attribute and one object per image, int64 [B] each: the true ones, or those of the top-1 candidate label."""
        return self.top1 or (self.attribute, self.object)

    def note(self, logits_BP: Tensor, relevance_BP: Tensor | None = None) -> None:
        """Keep the logits of a loss, and the relevance of labels, for the next label confidences; else they are computed again."""
        self.noted = logits_BP.detach(), relevance_BP
