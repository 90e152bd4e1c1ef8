"""Problems of a labelled image set; import and verification find them in the same way."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from czsl.classes import ClassSpace
from czsl.compositions import SPLITS, CompositionSpace, label_of, label_words


class ImageRow(NamedTuple):
    """Facts about one image of a dataset folder, without its bytes (``sha256`` is their hash)."""

    id: str
    sha256: str
    attr: str
    obj: str
    split: str

    @property
    def label(self) -> str:
        """``"wet dog"``, or the class."""
        return label_words(label_of(self.attr, self.obj))


@dataclass(frozen=True)
class Problem:
    """One problem of the data.

    Parameters
    ----------
    kind : str
        A few words, the same for every problem of this kind.
    where : tuple of str
        The images (or pairs, or files) concerned.
    done : str
        What became of them: ``skipped``, ``kept``, ...
    detail : str
        The cause.
    bad : bool
        Whether it makes an image unusable: such images count for ``--max-bad``, and `verify` fails on them.
    """

    kind: str
    where: tuple[str, ...]
    done: str
    detail: str = ""
    bad: bool = False

    def to_json(self) -> dict:
        """Return it in the form of ``import.json``; what is not UTF-8 in a file's name is escaped."""
        return {**asdict(self), "where": [_utf8(name) for name in self.where], "detail": _utf8(self.detail)}


def count_kinds(problems: Iterable[Problem]) -> dict[str, int]:
    """Count the problems of each kind, the unusable ones first."""
    order = sorted(problems, key=lambda p: (not p.bad, p.kind))
    return dict(Counter(p.kind for p in order))


def duplicate_groups(rows: Iterable[ImageRow]) -> list[list[ImageRow]]:
    """Groups of two or more images with identical bytes, in the order of their first image."""
    groups: dict[str, list[ImageRow]] = defaultdict(list)
    for row in rows:
        groups[row.sha256].append(row)
    return [group for group in groups.values() if len(group) > 1]


def count_duplicates(rows: Iterable[ImageRow]) -> dict[str, int]:
    """Groups of identical images: all, across splits, in both train and test, with conflicting labels."""
    groups = duplicate_groups(rows)
    splits = [{row.split for row in group} for group in groups]
    return {
        "groups": len(groups),
        "across_splits": sum(len(s) > 1 for s in splits),
        "train_and_test": sum({"train", "test"} <= s for s in splits),
        "conflicting_labels": sum(_conflict(group) for group in groups),
    }


def duplicate_problems(rows: Iterable[ImageRow], dropped: frozenset[str] = frozenset()) -> list[Problem]:
    """List identical images: one problem a group, and one more where it spans splits or its labels conflict.

    The details of the latter are in the order of the images. ``dropped``: ids that the import left out because training holds
    the same bytes.
    """
    found = []
    for group in duplicate_groups(rows):
        ids = tuple(row.id for row in group)
        gone = [row.id for row in group if row.id in dropped]
        done = f"dropped {', '.join(gone)}" if gone else "kept"
        found.append(Problem("identical images", ids, done))
        if len({row.split for row in group}) > 1:
            found.append(Problem("identical images across splits", ids, done, "; ".join(row.split for row in group)))
        if _conflict(group):
            found.append(Problem("conflicting labels", ids, done, "; ".join(row.label for row in group)))
    return found


def space_problems(space: CompositionSpace, rows: Sequence[ImageRow]) -> list[Problem]:
    """Pairs of val and test with an attribute or object that no training pair has, and pairs (or classes) without images."""
    present = {(row.split, row.attr, row.obj) for row in rows}
    found = [] if isinstance(space, ClassSpace) else _never_trained(space)
    for split in SPLITS:
        for pair in getattr(space, f"{split}_pairs").tolist():
            if (split, *space.pair_names(pair)) not in present:
                found.append(Problem(f"{space.noun} without images", (space.pair_name(pair),), "kept", f"listed in {split}"))
    return found


def _never_trained(space: CompositionSpace) -> list[Problem]:
    found = []
    attributes, objects = set(space.train_pairs[:, 0].tolist()), set(space.train_pairs[:, 1].tolist())
    for a, o in space.closed_pairs.tolist():
        missing = []
        if a not in attributes:
            missing.append(f"attribute {space.attributes[a]!r}")
        if o not in objects:
            missing.append(f"object {space.objects[o]!r}")
        if missing:
            detail = f"{' and '.join(missing)} in no training pair: nothing can be learned about it"
            found.append(Problem("never trained", (space.pair_name((a, o)),), "kept", detail))
    return found


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _conflict(group: list[ImageRow]) -> bool:
    return len({(row.attr, row.obj) for row in group}) > 1
