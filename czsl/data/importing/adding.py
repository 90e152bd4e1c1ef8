"""Adding a source's images to those of a dataset folder: the labels of both, in the spelling of the dataset."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import TYPE_CHECKING

from czsl.classes import ClassSpace
from czsl.compositions import SPLITS, CompositionSpace, index_pairs, prompt_name
from czsl.data.importing.entries import ImportSource
from czsl.data.importing.problems import Problem
from czsl.errors import DataError

if TYPE_CHECKING:
    from czsl.data.table import Dataset


def add_to(base: Dataset, source: ImportSource) -> None:
    """Change a source so that its images can be added to those of ``base``; ``source.space`` becomes the space of both.

    A label that means one of the dataset's names (``navy blue``, ``navy_blue``) gets the dataset's spelling; new names and pairs are
    added after those of the dataset and listed, as are pairs that training sees only now. An id that the dataset has gets a number.

    Raises
    ------
    DataError
        If one has attributes and objects, the other plain classes.
    """
    assert source.space is not None
    old = base.space
    if isinstance(old, ClassSpace) != isinstance(source.space, ClassSpace):
        raise DataError(
            f"{base.folder} holds {old.nouns}, the source {source.space.nouns}",
            "they cannot be mixed",
            "give data of the same kind",
        )
    known = {identity for split in SPLITS for identity in base.split(split).ids}
    spelt = {kind: {prompt_name(name): name for name in names} for kind, names in old.vocabulary.items()}
    entries = {}
    for entry in source.entries.values():
        attr = _spelling(entry.attr, spelt.get("attributes"), old.attributes)
        obj = _spelling(entry.obj, spelt.get("objects", spelt.get("classes")), old.objects)
        identity, number = entry.id, 1
        while identity in known:
            number += 1
            identity = f"{entry.id}#{number}"
        known.add(identity)
        entries[identity] = replace(entry, id=identity, attr=attr, obj=obj)
    source.entries = entries
    source.space = _merged(old, source)
    for kind, names in old.vocabulary.items():
        noun = {"attributes": "attribute", "objects": "object", "classes": "class"}[kind]
        for name in source.space.vocabulary[kind][len(names) :]:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"a misspelt {near[0]!r}?" if near else ""
            source.problems.append(Problem(f"new {noun}", (name,), "added", hint))
    _note_seen(old, source)


def _spelling(name: str, spelt: dict[str, str] | None, known: tuple[str, ...]) -> str:
    return name if name in known or spelt is None else spelt.get(prompt_name(name), name)


def _merged(old: CompositionSpace, source: ImportSource) -> CompositionSpace:
    """The labels and pairs of a space, then the new ones of the source, sorted."""
    labels = {split: {(e.attr, e.obj) for e in source.entries.values() if e.split == split} for split in SPLITS}
    lists = {}
    for split in SPLITS:
        known = [old.pair_names(pair) for pair in getattr(old, f"{split}_pairs")]
        lists[split] = [*known, *sorted(labels[split] - set(known))]
    every = set().union(*labels.values())
    attributes = [*old.attributes, *sorted({a for a, _ in every} - set(old.attributes))]
    objects = [*old.objects, *sorted({o for _, o in every} - set(old.objects))]
    if isinstance(old, ClassSpace):
        train, val, test = ([obj for _, obj in lists[split]] for split in SPLITS)
        return ClassSpace.of(objects, train, val, test)
    pairs = {f"{split}_pairs": index_pairs(part, attributes, objects) for split, part in lists.items()}
    return CompositionSpace(tuple(attributes), tuple(objects), **pairs)


def _note_seen(old: CompositionSpace, source: ImportSource) -> None:
    """List pairs that were unseen in val or test and that training now sees."""
    before = {split: {old.pair_names(pair) for pair in getattr(old, f"{split}_pairs")} for split in SPLITS}
    now = {(e.attr, e.obj) for e in source.entries.values() if e.split == "train"} - before["train"]
    for attr, obj in sorted(now):
        where = [split for split in ("val", "test") if (attr, obj) in before[split]]
        if where:
            name = f"{attr} {obj}".strip()
            source.problems.append(Problem("no longer unseen", (name,), "added", f"counts as seen in {' and '.join(where)} now"))
