"""Files of annotations in JSON (COCO, VAW, Label Studio, FiftyOne): found in a folder, told apart by their form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from czsl.data.importing.textfiles import parse_json, read_text
from czsl.errors import DataError

PLACES = ("*.json", "annotations/*.json", "*/*.json", "*/annotations/*.json")
MAX_FILES = 1000


def form_of(content: Any) -> str | None:
    """The form of parsed JSON: ``coco``, ``vaw``, ``label-studio``, ``fiftyone``, ``manifest``, or None."""
    if isinstance(content, dict):
        if isinstance(content.get("images"), list) and ("annotations" in content or "categories" in content):
            return "coco"
        if "samples" in content or {"classes", "labels"} <= set(content):
            return "fiftyone"
        return None
    if not isinstance(content, list):
        return None
    first = next((record for record in content if isinstance(record, dict)), {})
    if "instance_bbox" in first or {"object_name", "positive_attributes"} <= set(first):
        return "vaw"
    tasks = isinstance(first.get("data"), dict) and {"annotations", "completions", "predictions"} & set(first)
    if tasks or {"annotation_id", "lead_time"} <= set(first):
        return "label-studio"
    return "manifest" if first else None


def json_files(folder: Path) -> list[Path]:
    """JSON files that may hold annotations, in a folder and its folders, sorted."""
    found = {path for place in PLACES for path in folder.glob(place) if path.is_file()}
    return sorted(path for path in found if path.name not in ("space.json", "import.json", "package.json"))


def annotation_files(path: Path, form: str) -> list[tuple[Path, Any]]:
    """The annotation files of a form, parsed: the file itself, or those below a folder.

    Raises
    ------
    DataError
        A file cannot be read, none has the form, or there are more than `MAX_FILES`.
    """
    if path.is_file():
        content = parse_json(read_text(path), path)
        if form_of(content) != form:
            raise DataError(
                f"{path} is not a {form} file", f"it looks like: {form_of(content) or 'something else'}", "mend --layout"
            )
        return [(path, content)]
    files = json_files(path)
    if len(files) > MAX_FILES:
        raise DataError(f"{path} has {len(files):,} JSON files", f"limit {MAX_FILES:,}", "give the annotation file itself")
    found = [(file, content) for file in files if form_of(content := parse_json(read_text(file), file)) == form]
    if not found:
        raise DataError(
            f"{path} has no {form} file", f"JSON files: {', '.join(f.name for f in files[:5]) or 'none'}", "mend --layout"
        )
    return found


def image_places(root: Path, base: Path, stem: str = "") -> tuple[str, ...]:
    """Folders below the root in which the images of an annotation file may lie, the most probable first."""
    inside = base.resolve()
    near = inside.relative_to(root).as_posix() if inside.is_relative_to(root) else "."
    above = Path(near).parent.as_posix()
    near, above = ("" if place == "." else f"{place}/" for place in (near, above))
    words = [stem, stem.removeprefix("instances_"), stem.removesuffix("_annotations")]
    tails = ["", "images/", "data/", *(f"{word}/" for word in words if word), *(f"images/{word}/" for word in words if word)]
    return tuple(dict.fromkeys(f"{start}{tail}" for start in (near, above, "") for tail in tails))


def names_in(places: tuple[str, ...], name: Any) -> tuple[str, ...]:
    """The names below the root under which an image may be found in these folders."""
    if not isinstance(name, str) or not name or name.startswith("/"):
        return ()
    return tuple(f"{place}{name}".replace("\\", "/") for place in places)
