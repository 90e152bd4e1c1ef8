"""The runs below a folder: their paths, sizes and tags, and the checkpoints that can be deleted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from czsl.errors import CzslError, UsageError
from czsl.reading import PathLike, read_json
from czsl.runs import checkpoint
from czsl.runs.files import write_json

MAX_DEPTH = 4  # folders below the folder of runs: experiments and searches hold theirs deeper
TRACES = ("config.yaml", "metrics.jsonl", "checkpoints")  # what makes a folder a run's, if half gone
TAG = re.compile(r"[\w][\w.+-]{0,63}")


def run_folders(folder: PathLike) -> list[Path]:
    """Return the folders of runs below a folder, also those that are half gone, ordered by their paths; links are not followed."""
    return sorted(_search(Path(folder), 0))


def _search(folder: Path, depth: int) -> Iterator[Path]:
    try:
        children = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:  # no such folder, or one that may not be read
        return
    for path in children:
        if path.name.startswith("."):
            continue
        if any((path / name).exists() for name in TRACES):
            yield path
        elif depth + 1 < MAX_DEPTH:
            yield from _search(path, depth + 1)


def size_of(path: PathLike) -> int:
    """Return the bytes of all files of a folder, without those that links lead to."""
    total = 0
    for root, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(Path(root) / name).st_size
            except OSError:  # taken away meanwhile
                continue
    return total


def tags_of(path: PathLike) -> list[str]:
    """Return the tags of a run, sorted; a damaged file of tags holds none."""
    file = Path(path) / "tags.json"
    if not file.is_file():
        return []
    try:
        content = read_json(file)
    except CzslError:
        return []
    return sorted({x for x in content if isinstance(x, str) and TAG.fullmatch(x)}) if isinstance(content, list) else []


def set_tags(path: PathLike, add: list[str], remove: list[str]) -> list[str]:
    """Add tags to a run and remove others; returns those it has then.

    Raises
    ------
    UsageError
        A tag that is not a short word, or a tag to remove that the run does not have.
    """
    there = tags_of(path)
    for tag in add:
        if not TAG.fullmatch(tag):
            raise UsageError(
                f"{tag!r} cannot be a tag", "it is too long or has other characters", "use up to 64 letters, digits, - _ . +"
            )
    if absent := [tag for tag in remove if tag not in there]:
        raise UsageError(
            f"{Path(path).name} has no tag {absent[0]!r}", f"its tags: {', '.join(there) or 'none'}", "name one of these"
        )
    tags = sorted((set(there) | set(add)) - set(remove))
    write_json(Path(path) / "tags.json", tags)
    return tags


def superfluous(checkpoints: PathLike) -> list[Path]:
    """Return the checkpoints of a run but the best and the newest whole one; none if no checkpoint is whole."""
    there = checkpoint.steps(checkpoints)
    whole = [path for path in reversed(there) if checkpoint.is_valid(path)]
    if not whole:
        return []
    kept = {whole[0].name, checkpoint.best(checkpoints).get("checkpoint")}
    return [path for path in there if path.name not in kept]


def numbers_of(path: PathLike, weights: str) -> dict[str, dict[str, Any]]:
    """Return AUC and HM of the kept reports of a run, by name (``test-closed``); damaged ones are left out.

    So are reports of other weights than those with the hash ``weights`` (:func:`methods.fingerprint.fingerprint`).
    """
    found = {}
    for file in sorted(Path(path).glob("report-*.json")):
        try:
            report = read_json(file)
        except CzslError:
            continue
        if isinstance(report, dict) and report.get("checkpoint_sha256", weights) == weights:
            kept = {k: report.get(k) for k in ("auc", "hm") if isinstance(report.get(k), int | float)}
            found[file.stem.removeprefix("report-")] = kept
    return found
