"""Classes of a source, and which of them are unseen."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from czsl.classes import NO_ATTRIBUTE
from czsl.data.importing.foldernames import read_names
from czsl.errors import DataError

Pair = tuple[str, str]


@dataclass(frozen=True)
class ClassNames:
    """Names of classes, given by folders or by cells of a manifest.

    Parameters
    ----------
    unseen : tuple of str, optional
        Classes that training does not get; a name may have spaces where the source has ``_``, or the reverse. Without a list, those
        that have no training image are unseen.
    """

    unseen: tuple[str, ...] | None = None

    @classmethod
    def read(cls, unseen: Path | None) -> ClassNames:
        """Read the list from a file, one name a line."""
        return cls(None if unseen is None else read_names(unseen))

    def resolve(self, folders: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], Pair | None]:
        """The class of each folder as a pair without an attribute."""
        return {parts: (NO_ATTRIBUTE, parts[0]) for parts in set(folders)}

    def unseen_among(self, classes: Iterable[str]) -> frozenset[str]:
        """The unseen ones of the classes that a source has, in its spelling.

        Raises
        ------
        DataError
            Lists the names that no class has, with the nearest one.
        """
        known = {_plain(name): name for name in sorted(set(classes))}
        unknown = [name for name in self.unseen or () if _plain(name) not in known]
        if unknown and known:
            near = difflib.get_close_matches(_plain(unknown[0]), known, n=1)
            hint = f"did you mean {known[near[0]]!r}?" if near else f"there are: {', '.join(list(known.values())[:5])}, ..."
            named = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise DataError(f"--unseen names {len(unknown)} unknown classes: {named}", hint, "name classes that have images")
        return frozenset(known[_plain(name)] for name in self.unseen or () if _plain(name) in known)


def _plain(name: str) -> str:
    return name.replace("_", " ").strip()
