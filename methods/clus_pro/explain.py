"""Explanation by an image's nearest prototypes of attribute and object, with the training images nearest to these.

Letters: K prototypes, n training images, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from czsl.compositions import CompositionSpace
from methods.clus_pro.prototypes import prototype_cosines
from methods.explanation import Examples, Figures, Neighbours, Part

PROTOTYPES = 2  # nearest ones of each primitive whose training images are shown
IMAGES = 6  # of each
LIKELIEST = 5  # primitives in the list of nearest prototypes


@torch.inference_mode()
def prototype_parts(
    space: CompositionSpace,
    bank: Tensor,
    pair: Sequence[int],
    hidden_21D: Tensor,
    examples: Examples | None,
    hidden_2nD: Tensor | None,
) -> tuple[list[Part], list[str]]:
    """Cosines with all prototypes of the pair's primitives, the primitives with the nearest prototypes, and their training images.

    Parameters
    ----------
    space : CompositionSpace
    bank : float tensor [A + O, K, D]
        Prototypes, attributes first.
    pair : (int, int)
        Attribute and object to explain.
    hidden_21D : float tensor
        The image's features in the prototypes' space, attribute branch first.
    examples, hidden_2nD : optional
        Training images that show the attribute or the object, and their features in the prototypes' space.
    """
    A = space.num_attributes
    cosines: list[list[str | float | int]] = []
    galleries: list[Part] = []
    nearest: list[Part] = []
    notes: list[str] = []
    spaces = (("attribute", space.attributes, bank[:A]), ("object", space.objects, bank[A:]))
    for branch, (kind, names, own_CKD) in enumerate(spaces):
        index, hidden_1D = pair[branch], hidden_21D[branch]
        name = names[index]
        if not bool(own_CKD[index].any()):
            notes.append(f"training never saw the {kind} {name}: it has no prototypes")
            continue
        cosine_K = prototype_cosines(hidden_1D, own_CKD[index])[0]
        order = torch.argsort(cosine_K, descending=True, stable=True).tolist()
        cosines += [[kind, name, k + 1, round(float(cosine_K[k]), 4)] for k in order]
        nearest.append(_nearest_names(kind, names, hidden_1D, own_CKD))
        if examples is None or hidden_2nD is None:
            continue
        rows_n = np.flatnonzero((examples.attr, examples.obj)[branch] == index)
        near_nK = prototype_cosines(hidden_2nD[branch][torch.from_numpy(rows_n).to(bank.device)], own_CKD[index])
        for k in order[:PROTOTYPES]:
            best_n = torch.argsort(near_nK[:, k], descending=True, stable=True)[:IMAGES].cpu()
            title = f"{name} ({kind}), prototype {k + 1}: cosine {float(cosine_K[k]):.3f} with this image"
            text = f"The nearest of {len(rows_n)} training images of {name}, with their cosines to the prototype."
            galleries.append(
                Neighbours(title, rows_n[best_n.numpy()].tolist(), near_nK[best_n.to(bank.device), k].tolist(), text)
            )
    table = Figures("Prototypes of the composition", ["kind", "name", "prototype", "cosine"], cosines, "Nearest first.")
    return [*galleries, table, *nearest], notes


def _nearest_names(kind: str, names: tuple[str, ...], hidden_1D: Tensor, bank_CKD: Tensor) -> Figures:
    best_C, which_C = prototype_cosines(hidden_1D, bank_CKD.flatten(0, 1))[0].view(len(names), -1).max(1)
    order = torch.argsort(best_C, descending=True, stable=True)[:LIKELIEST].tolist()
    rows = [[names[c], int(which_C[c]) + 1, round(float(best_C[c]), 4)] for c in order]
    return Figures(f"Nearest prototypes among all {kind}s", [kind, "prototype", "cosine"], rows)
