"""Parser of folder names (or other texts) into attribute and object: ``wet dog``, ``wet_dog``, ``wet+dog`` or ``wet/dog``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from czsl.compositions import prompt_name
from czsl.data.importing.textfiles import short
from czsl.errors import DataError

Pair = tuple[str, str]

MAX_NAMED = 100  # in an error


@dataclass(frozen=True)
class FolderNames:
    """The known names, as far as they are given.

    With a list, a name in a folder may have spaces where the list has ``_``, or the reverse; the list's spelling is the label.
    Without lists, a folder with exactly one space splits there, else a folder with exactly one ``_`` there. Where a name holds a ``+``,
    all of them must hold exactly one, and it separates, unless they might as well be split at their only space.

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
        """The pair of each folder (one or two path parts), or None if a listed name is needed and not found.

        Raises
        ------
        DataError
            Lists the folders that can be read in several ways, or, without lists, in none.
        """
        listed = sorted(set(folders))
        plus = _plus_separates([parts[0] for parts in listed if len(parts) == 1])
        readings = {parts: self._readings(parts, plus) for parts in listed}
        unclear = [parts for parts, found in readings.items() if len(found) > 1]
        if self.open:
            unclear += [parts for parts, found in readings.items() if not found]
        if unclear:
            names = ", ".join(repr(short("/".join(parts))) for parts in unclear[:MAX_NAMED])
            names += f" and {len(unclear) - MAX_NAMED} more" if len(unclear) > MAX_NAMED else ""
            raise DataError(
                "cannot tell attribute and object in names",
                f"unclear ({len(unclear)}): {names}",
                "give --attributes FILE and --objects FILE (one name a line), or use folders attribute/object/; or --classes, where a "
                "folder is a plain class",
            )
        return {parts: found[0] if found else None for parts, found in readings.items()}

    @property
    def open(self) -> bool:
        """True if names may occur that no list holds, so that every folder must have a reading."""
        return self.attributes is None and self.objects is None

    def _readings(self, parts: tuple[str, ...], plus: bool) -> list[Pair]:
        cuts = [(parts[0], parts[1])] if len(parts) == 2 else self._cuts(parts[0], plus)
        pairs = ((_listed(a, self.attributes), _listed(o, self.objects)) for a, o in cuts)
        return sorted({(a, o) for a, o in pairs if a and o})

    def _cuts(self, name: str, plus: bool) -> list[Pair]:
        if self.attributes is None and self.objects is None:
            signs = "+" if plus else " " if " " in name else "_"
            if not plus and "+" in name:
                signs = "+" + signs  # all readings, so that the name is listed as unclear
        else:
            signs = " _+"
        places = [i for i, sign in enumerate(name) if sign in signs]
        cuts = [(name[:i], name[i + 1 :]) for i in places]
        return [(attr.strip(), obj.strip()) for attr, obj in cuts] if plus else cuts


def _plus_separates(names: list[str]) -> bool:
    """True if every name holds one ``+``, and not all of them could be split at an only space or ``_`` instead."""
    other = all(name.count(" ") == 1 or (" " not in name and name.count("_") == 1) for name in names)
    return bool(names) and all(name.count("+") == 1 for name in names) and not other


@dataclass(frozen=True)
class KnownFirst(FolderNames):
    """Folder names read with words that are known, new words allowed: of all readings those with the most known names.

    A name that differs from a known one in nothing that a prompt shows is that one. A folder in which both names are new is read as
    without lists.
    """

    @property
    def open(self) -> bool:
        """True: new names are allowed."""
        return True

    def _readings(self, parts: tuple[str, ...], plus: bool) -> list[Pair]:
        name = parts[0]
        cuts = [(name[:i].strip(), name[i + 1 :].strip()) for i, sign in enumerate(name) if sign in " _+"]
        if len(parts) == 2:
            cuts = [(parts[0], parts[1])]
        ranked: dict[int, set[Pair]] = {}
        for attr, obj in cuts:
            if attr and obj:
                found = _same_words(attr, self.attributes), _same_words(obj, self.objects)
                ranked.setdefault(sum(x is not None for x in found), set()).add((found[0] or attr, found[1] or obj))
        best = max(ranked, default=0)
        return sorted(ranked[best]) if best else FolderNames()._readings(parts, plus)


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
