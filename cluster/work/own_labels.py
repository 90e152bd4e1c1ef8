"""Labelled images of the user's own in the label space of a run."""

from __future__ import annotations

import numpy as np

from czsl.classes import ClassSpace
from czsl.compositions import CompositionSpace, prompt_name
from czsl.data.subset import SplitPart
from czsl.data.table import Dataset, Split
from czsl.errors import DataError
from methods.method import Method


class Relabelled(Dataset):
    """A dataset whose labels are indices into another label space.

    Parameters
    ----------
    whole : Dataset
    space : CompositionSpace
        Has all labels of ``whole`` in it, by the words of their prompts.
    """

    def __init__(self, whole: Dataset, space: CompositionSpace):
        self.__dict__.update(whole.__dict__)
        self.space, self._whole = space, whole

    def split(self, name: str) -> Split:
        """The images of a split, with their labels in the new space."""
        part = SplitPart(whole := self._whole.split(name), np.arange(len(whole)))
        part.space = self.space
        part.attr = _indices(self._whole.space.attributes, self.space.attributes)[whole.attr]
        part.obj = _indices(self._whole.space.objects, self.space.objects)[whole.obj]
        return part


def relabelled(data: Dataset, split: str, trained: CompositionSpace) -> Dataset:
    """The user's images in the run's label space, extended by their new words.

    The candidates are the training pairs of the run and, as those of ``val``, the pairs of the images.

    Raises
    ------
    DataError
        Plain classes for a run of compositions, or the reverse.
    """
    if isinstance(data.space, ClassSpace) != isinstance(trained, ClassSpace):
        raise DataError(
            f"{data.folder} has {data.space.nouns}", f"the run names {trained.nouns}", "calibrate on labels of the run's kind"
        )
    names = {}
    for kind in ("attributes", "objects"):
        known = getattr(trained, kind)
        words = {prompt_name(name) for name in known}
        names[kind] = (*known, *(name for name in getattr(data.space, kind) if prompt_name(name) not in words))
    part = data.split(split)
    own = np.stack(
        [
            _indices(data.space.attributes, names["attributes"])[part.attr],
            _indices(data.space.objects, names["objects"])[part.obj],
        ],
        axis=1,
    )
    own = np.unique(own, axis=0) if len(own) else own.reshape(0, 2)
    space = type(trained)(names["attributes"], names["objects"], trained.train_pairs, own, own[:0])
    return Relabelled(data, space)


def on_space(method: Method, space: CompositionSpace) -> Method:
    """The method on a label space: itself if it has the same words."""
    same = (space.attributes, space.objects) == (method.space.attributes, method.space.objects)
    return method if same else method.for_space(space).eval()


def _indices(names: tuple[str, ...], within: tuple[str, ...]) -> np.ndarray:
    place = {prompt_name(name): i for i, name in reversed(list(enumerate(within)))}
    return np.array([place[prompt_name(name)] for name in names], dtype=np.int64)
