"""Roles of a table's columns: image, attribute, object, class and split."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from czsl.data.importing.textfiles import short
from czsl.errors import DataError, UsageError

# The documented name of a role first; it outranks the usual ones. Compared without case, spaces and signs.
NAMES = {
    "image": (
        "image", "filename", "file", "filepath", "path", "imagepath", "imagefile", "imagename", "imagefilename", "imgpath",
        "imgname", "imgfile", "img", "picture", "photo", "relpath", "relativepath", "fname", "uri",
    ),
    "attr": ("attr", "attribute", "attributes", "state", "attrname", "attributename", "adjective", "adj", "property", "attributelabel"),
    "obj": ("obj", "object", "noun", "category", "objname", "objectname", "categoryname", "objectcategory", "objectlabel"),
    "class": ("class", "classname", "cls"),
    "pair": ("pair", "composition", "attrobj", "attributeobject", "pairname"),
    "split": ("split", "set", "phase", "subset", "partition", "splitname", "datasplit"),
}  # fmt: skip
ROLES = tuple(NAMES)
# A label that may be a class, an object next to an attribute, or hold attribute and object.
UNCLEAR = ("label", "labels", "choice", "tag", "target", "caption", "text", "txt", "groundtruth")
MAX_NAME_LENGTH = 1000  # characters of a column's name that is looked at
ID = "czsl_id"  # written by `czsl data export` for names that a file cannot have

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_of(text: str) -> str | None:
    """``train``, ``val`` or ``test`` for the usual names of splits in any case, or None."""
    return SPLIT_NAMES.get(text.strip().casefold())


def split_in_name(name: str) -> str | None:
    """The split that a path names: one of its folders, or a word of its file's name (``instances_val2017.json``).

    Raises
    ------
    DataError
        The file's name holds two splits.
    """
    *folders, file = name.split("/")
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[^A-Za-z0-9]+", file)]
    found = {split for word in words if (split := split_of(word))}
    if len(found) > 1:
        raise DataError(f"{name} names more than one split", ", ".join(sorted(found)), "rename it, or add a column split")
    if found:
        return found.pop()
    return next((split for folder in reversed(folders) if (split := split_of(folder.rpartition("=")[2]))), None)


@dataclass(frozen=True)
class Roles:
    """The column of each role, or None; ``id`` is the column that `czsl data export` adds."""

    image: str | None = None
    attr: str | None = None
    obj: str | None = None
    cls: str | None = None
    pair: str | None = None
    split: str | None = None
    id: str | None = None

    def shown(self) -> dict[str, str]:
        """The roles that have a column, by the names that ``--columns`` has for them."""
        found = {("class" if f.name == "cls" else f.name): getattr(self, f.name) for f in fields(self)}
        return {role: column for role, column in found.items() if column is not None}


def find_roles(
    columns: Sequence[str],
    chosen: Mapping[str, str] | None = None,
    classes: bool = False,
    where: str = "the table",
    has_image: bool = False,
) -> Roles:
    """Tell which column has which role.

    Parameters
    ----------
    columns : sequence of str
        The header.
    chosen : mapping, optional
        Columns by role, as given with ``--columns``; they outrank the names.
    classes : bool
        Labels are plain classes.
    where : str
        Named in errors.
    has_image : bool
        The image needs no column, for it is given otherwise.

    Raises
    ------
    DataError
        A role that is needed has no column, or more than one; the choices are listed.
    UsageError
        ``chosen`` names a role or a column that does not exist.
    """
    picked = _chosen(columns, chosen or {}, where)
    free = [column for column in columns if column not in picked.values()]

    def pick(role: str) -> str | None:
        if role in picked:
            return picked[role]
        return _pick(role, free, where)

    image = None if has_image and "image" not in picked else pick("image")
    split, ident = pick("split"), ID if ID in columns else None
    labels = _labels(picked, free, classes, where, pick)
    missing = ([] if image or has_image else ["image"]) + labels.pop("missing", [])
    if missing:
        why = f"it has: {', '.join(map(short, columns[:30])) or 'nothing'}" + (", ..." if len(columns) > 30 else "")
        example = ",".join(f"{role}=COLUMN" for role in missing)
        raise DataError(
            f"{where} lacks the columns {', '.join(missing)}",
            why,
            f"name them with --columns {example}; the usual names are image, attr, obj, split, or image, class, split",
        )
    return Roles(image=image, split=split, id=ident, **labels)


def _labels(picked, free, classes, where, pick) -> dict:
    """The columns of the labels by role; ``missing`` lists what is needed and not there."""
    if "pair" in picked or "class" in picked:
        return {"pair": picked["pair"]} if "pair" in picked else {"cls": picked["class"]}
    unclear = [column for column in free if _plain(column) in UNCLEAR]
    if classes:
        column = pick("class") or (None if pick("attr") else pick("obj"))
        if column is None and len(unclear) > 1:
            raise ambiguous("class", unclear, where)
        return {"cls": column or unclear[0]} if column or unclear else {"missing": ["class"]}
    attr, obj = pick("attr"), pick("obj")
    if attr is not None:
        if obj is None:
            obj = pick("class")
        if obj is None and len(unclear) > 1:
            raise ambiguous("obj", unclear, where)
        obj = obj or (unclear[0] if unclear else None)
        return {"attr": attr, "obj": obj} if obj else {"missing": ["obj"]}
    pair, cls = pick("pair"), pick("class")
    if pair and cls:
        raise DataError(
            f"{where} has more than one kind of label",
            f"{short(pair)} and {short(cls)}",
            f"choose: --columns pair={pair} or class={cls}",
        )
    if pair or cls:
        return {"pair": pair} if pair else {"cls": cls}
    if obj is None and not unclear:
        return {"missing": ["attr", "obj"]}
    choices = [obj] if obj else unclear
    column = choices[0]
    other = ", ".join(short(c) for c in free if c not in choices)
    raise DataError(
        f"{where} has no column of attributes",
        f"{' and '.join(map(short, choices))} may be a plain class or hold attribute and object; other columns: {other or 'none'}",
        f"choose: --classes, --columns pair={column} ('wet dog'), or --columns attr=COLUMN,obj={column}",
    )


def _chosen(columns: Sequence[str], chosen: Mapping[str, str], where: str) -> dict[str, str]:
    found = {}
    for role, name in chosen.items():
        if role not in ROLES:
            raise UsageError(
                f"--columns has no role {role!r}", "a column can only have one of the roles below", f"one of: {', '.join(ROLES)}"
            )
        matches = [c for c in columns if c == name] or [c for c in columns if c.strip().casefold() == name.strip().casefold()]
        if not matches:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(map(short, columns[:30]))}"
            raise UsageError(f"--columns {role}={name}: {where} has no such column", hint, "name a column of the table")
        if len(matches) > 1:
            raise ambiguous(role, matches, where)
        found[role] = matches[0]
    return found


def _pick(role: str, columns: Sequence[str], where: str) -> str | None:
    """The column of a role by its name: the documented name, or else the only usual one."""
    main, *usual = NAMES[role]
    for names in ((main,), usual):
        found = [column for column in columns if _plain(column) in names]
        if len(found) > 1:
            raise ambiguous(role, found, where)
        if found:
            return found[0]
    return None


def may_be(role: str, columns: Sequence[str]) -> list[str]:
    """The columns whose name is one of those of a role."""
    return [column for column in columns if _plain(column) in NAMES[role]]


def ambiguous(role: str, found: Sequence[str], where: str) -> DataError:
    """The error of a role that more than one column may have; it lists them."""
    counts = Counter(found)
    names = ", ".join(short(name) + (f" ({number} times)" if number > 1 else "") for name, number in counts.items())
    fix = f"choose one with --columns {role}=NAME" if len(counts) > 1 else "give each column a name of its own"
    what = {"attr": "attribute", "obj": "object"}.get(role, role)
    return DataError(f"{where} has more than one column that may be the {what}", names, fix)


def _plain(name: str) -> str:
    """The name without case, spaces and signs; a whole line that was read as one name has no role."""
    return re.sub(r"[\W_]+", "", name.casefold()) if len(name) <= MAX_NAME_LENGTH else ""
