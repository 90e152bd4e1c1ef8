"""Pairs of one label space in the words of another. Letters: P pairs."""

from __future__ import annotations

import numpy as np

from czsl.compositions import CompositionSpace, prompt_name


def renamed_pairs(pairs_P2: np.ndarray, here: CompositionSpace, there: CompositionSpace) -> np.ndarray:
    """Index pairs of ``here`` as those that have the same names in ``there``, int64 [P, 2]; -1 for a name that is not in it.

    Names are compared as they enter prompts. If several are equal there, the first one counts.
    """
    columns = []
    for names_here, names_there, column_P in zip(
        (here.attributes, here.objects), (there.attributes, there.objects), np.asarray(pairs_P2).reshape(-1, 2).T, strict=True
    ):
        place = {prompt_name(name): i for i, name in reversed(list(enumerate(names_there)))}
        moved = np.array([place.get(prompt_name(name), -1) for name in names_here], dtype=np.int64)
        columns.append(moved[column_P])
    return np.stack(columns, axis=1)
