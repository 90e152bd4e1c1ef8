"""``czsl predict --review``: the doubtful images as a table to correct, which ``czsl data import`` reads as labels."""

from __future__ import annotations

import csv
import heapq
import io
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from czsl.compositions import label_words
from czsl.data.importing.items import PREDICTED
from czsl.data.inputs import ImageSource, as_source
from czsl.errors import DataError, UsageError
from czsl_cli.answers import candidate_words, confidence, doubt

COLUMNS = ("image", "attr", "obj", "split")
CLASS_COLUMNS = ("image", "class", "split")
SIZE = 20  # images of a review file if no number is given and no threshold says which are doubtful


class Review:
    """The doubtful images among the records that pass by.

    Parameters
    ----------
    path : Path
        The CSV file to write; it must not exist, because it may hold corrections.
    source : ImageSource or Path
        The images, or the folder of them.
    size : int, optional
        Images to keep, least sure first. None: those that are not sure, or `SIZE` without a threshold.
    """

    def __init__(self, path: Path, source: ImageSource | Path, size: int | None = None):
        check_new(path)
        self.path, self._source, self._size = path, as_source(source), size
        self._threshold = False
        self._least_sure: list[tuple[float, _Last, dict[str, Any]]] = []  # a heap, the surest first
        self._unsure: list[tuple[float, _Last, dict[str, Any]]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record into account; images that could not be read have no candidates and are left out."""
        if record["error"]:
            return
        row = (-confidence(record), _Last(record["image"]), dict(record))
        self._threshold |= "sure" in record
        if self._size is None and doubt(record):
            self._unsure.append(row)
        heapq.heappush(self._least_sure, row)
        if len(self._least_sure) > (self._size or SIZE):
            heapq.heappop(self._least_sure)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The doubtful records, least sure first, then by name."""
        rows = self._unsure if self._threshold and self._size is None else self._least_sure
        return [record for _, _, record in sorted(rows, reverse=True)]

    def write(self) -> int:
        """Write the file and return the number of its images.

        Raises
        ------
        DataError
            If the file appeared in the meantime.
        """
        records = self.records
        below = {record["image"]: os.path.relpath(self._file(record["image"]), self._root) for record in records}
        text = review_table([{**record, "image": below[record["image"]]} for record in records], self.images_folder)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8", newline="")
            try:
                os.link(temporary, self.path)  # refuses a name that is taken
            except FileExistsError:
                raise DataError(f"{self.path} exists now", "another process made it", "give another --review FILE") from None
            except OSError:  # a file system without hard links
                check_new(self.path)
                temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return len(records)

    def _file(self, name: str) -> Path:
        file = self._source.file(name)
        assert file is not None  # archives are refused before anything is predicted
        return file

    @property
    def _root(self) -> Path:
        """The folder that holds all images."""
        roots = self._source.roots
        return Path(os.path.commonpath(roots) if len(roots) > 1 else roots[0] if roots else self._source.root).resolve()

    @property
    def images_folder(self) -> str | None:
        """Path from the file's folder to the images' folder; None if the images do not lie below the file's folder."""
        folder, root = self.path.parent.resolve(), self._root
        return root.relative_to(folder).as_posix() if root.is_relative_to(folder) else None

    @property
    def next_step(self) -> str:
        """The command that reads the corrected file."""
        where = "" if self.images_folder is not None else f" --root {shlex.quote(str(self._root))}"
        return f"czsl data import {shlex.quote(str(self.path))} NEW{where} --add-to MYDATA"


def check_new(path: Path) -> None:
    """UsageError if a review file of that name exists or its name is no .csv."""
    if path.suffix.lower() != ".csv":
        raise UsageError(
            f"--review {path}: a review file is a .csv", "czsl data import reads it back", f"--review {path.stem}.csv"
        )
    if os.path.lexists(path):
        raise UsageError(
            f"--review {path} exists", "it may hold corrections and is not overwritten", "give another file, or remove it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def review_table(records: list[dict[str, Any]], folder: str | None) -> str:
    """Return the table as CSV: image, labels (to be corrected; now the predicted ones), split ``train``, prediction, other candidates.

    ``folder`` is put before the images' names; None leaves them as they are.
    """
    classes = bool(records) and "class" in records[0]["predictions"][0]
    columns = CLASS_COLUMNS if classes else COLUMNS
    labels = columns[1:-1]
    most = max((len(record["predictions"]) for record in records), default=0)
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([*columns, PREDICTED, "prob", *(f"candidate_{i}" for i in range(2, most + 1))])
    for record in records:
        best = record["predictions"][0]
        others = [candidate_words(candidate) for candidate in record["predictions"][1:]]
        image = _image(record["image"], folder)
        rows.writerow([image, *(best[name] for name in labels), "train", label_words(best), f"{confidence(record):.4f}", *others])
    return text.getvalue()


def _image(name: str, folder: str | None) -> str:
    path = name if folder in (None, ".") else f"{folder}/{name}"
    # A spreadsheet would take a cell that begins so for a formula; the path is the same.
    return f"./{path}" if path[:1] in "=+-@\t\r" else path


class _Last:
    """Text that orders in reverse, so that of equally sure images the first by name is kept."""

    def __init__(self, text: str):
        self.text = text

    def __lt__(self, other: _Last) -> bool:
        return self.text > other.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Last) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)
