"""Which attribute and object a folder's name means: ``wet dog``, ``wet_dog`` or ``wet/dog``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from czsl.compositions import prompt_name
from czsl.errors import DataError

Pair = tuple[str, str]


@dataclass(frozen=True)
class FolderNames:
    """The known names, as far as they are given.

    With a list, a name in a folder may have spaces where the list has ``_``, or the reverse; the list's spelling is the label.
    Without lists, a folder with exactly one space splits there, else a folder with exactly one ``_`` there.

    Parameters
    ----------
    attributes, objects : tuple of str, optional
    """

    attributes: tuple[str, ...] | None = None
    objects: tuple[str, ...] | None = None

    @classmethod
    def read(cls, attributes: Path | None, objects: Path | None) -> FolderNames:
        """Read the lists from files, one name a line."""
        return cls(*(None if path is None else read_names(path) for path in (attributes, objects)))

    def resolve(self, folders: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], Pair | None]:
        """The pair of each folder (one or two path parts), or None where a listed name is needed and not found.

        Raises
        ------
        DataError
            Lists the folders that can be read in several ways, or, without lists, in none.
        """
        readings = {parts: self._readings(parts) for parts in sorted(set(folders))}
        unclear = [parts for parts, found in readings.items() if len(found) > 1]
        if self.attributes is None and self.objects is None:
            unclear += [parts for parts, found in readings.items() if not found]
        if unclear:
            names = ", ".join(repr("/".join(parts)) for parts in unclear)
            raise DataError(
                "cannot tell attribute and object in the names of folders",
                f"unclear ({len(unclear)}): {names}",
                "give --attributes FILE and --objects FILE (one name a line), or use folders attribute/object/; or --classes, where a "
                "folder is a plain class",
            )
        return {parts: found[0] if found else None for parts, found in readings.items()}

    def _readings(self, parts: tuple[str, ...]) -> list[Pair]:
        cuts = [(parts[0], parts[1])] if len(parts) == 2 else self._cuts(parts[0])
        pairs = ((_listed(a, self.attributes), _listed(o, self.objects)) for a, o in cuts)
        return sorted({(a, o) for a, o in pairs if a and o})

    def _cuts(self, name: str) -> list[Pair]:
        if self.attributes is None and self.objects is None:
            separator = " " if " " in name else "_"
            places = [i for i, sign in enumerate(name) if sign == separator]
        else:
            places = [i for i, sign in enumerate(name) if sign in " _"]
        return [(name[:i], name[i + 1 :]) for i in places]


@dataclass(frozen=True)
class KnownFirst(FolderNames):
    """Folder names read with words that are known, new words allowed: of all readings those with the most known names.

    A name that differs from a known one in nothing that a prompt shows is that one. A folder in which both names are new is read as
    without lists.
    """

    def _readings(self, parts: tuple[str, ...]) -> list[Pair]:
        name = parts[0]
        cuts = [(parts[0], parts[1])] if len(parts) == 2 else [(name[:i], name[i + 1 :]) for i, x in enumerate(name) if x in " _"]
        ranked: dict[int, set[Pair]] = {}
        for attr, obj in cuts:
            if attr and obj:
                found = _same_words(attr, self.attributes), _same_words(obj, self.objects)
                ranked.setdefault(sum(x is not None for x in found), set()).add((found[0] or attr, found[1] or obj))
        best = max(ranked, default=0)
        return sorted(ranked[best]) if best else FolderNames()._readings(parts)

    def resolve(self, folders: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], Pair | None]:
        """The pair of each folder; DataError lists the folders that can be read in several ways, or in none."""
        readings = {parts: self._readings(parts) for parts in sorted(set(folders))}
        if unclear := [parts for parts, found in readings.items() if len(found) != 1]:
            names = ", ".join(repr("/".join(parts)) for parts in unclear)
            raise DataError(
                "cannot tell attribute and object in the names of folders",
                f"unclear ({len(unclear)}): {names}",
                "use folders attribute/object/, or give --attributes FILE and --objects FILE (one name a line)",
            )
        return {parts: found[0] for parts, found in readings.items()}


def _same_words(name: str, known: tuple[str, ...] | None) -> str | None:
    if name in (known or ()):
        return name
    return next((k for k in known or () if prompt_name(k) == prompt_name(name)), None)


def _listed(name: str, known: tuple[str, ...] | None) -> str | None:
    if known is None or name in known:
        return name
    return next((k for k in known if _spaced(k) == _spaced(name)), None)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def read_names(path: Path) -> tuple[str, ...]:
    """Names of a text file, one a line; empty lines and repetitions are left out. DataError where it cannot be read."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", str(error), "give a text file with one name a line") from None
    return tuple(dict.fromkeys(name for name in names if name))
