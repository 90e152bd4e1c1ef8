"""Settings of methods that look at regions of an image and may take them from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from czsl.data.files.regions import RegionTable, notes_on, read_regions
from czsl.data.table import Dataset
from czsl.errors import UsageError
from czsl.reading import PathLike
from methods.config import MethodConfig


def read_records(path: PathLike) -> list[dict[str, Any]]:
    """A region file as plain records, which a run keeps."""
    path = Path(path)
    return read_regions(path).to_json()


@dataclass
class RegionFileConfig(MethodConfig):
    """A method adds its own ``regions``, of which ``file`` is one kind.

    regions_file: regions of images by name (our JSON, GRiT's or GroundingDINO's), kept with the run.
    """

    reads: ClassVar[Mapping[str, Callable[[Path], Any]]] = {"regions_file": read_records}

    regions_file: list[dict[str, Any]] = field(default_factory=list)

    @property
    def from_file(self) -> bool:
        """True if regions come from the file."""
        return getattr(self, "regions", "") == "file"

    def __post_init__(self):
        super().__post_init__()
        if self.from_file != bool(self.regions_file):
            kind = getattr(self, "regions", "")
            why = "regions=file reads them from regions_file" if self.from_file else f"regions={kind} reads none"
            raise UsageError("regions and regions_file do not fit", why, "set regions=file regions_file=FILE, or neither")

    @cached_property
    def table(self) -> RegionTable:
        """The regions of the file."""
        return RegionTable.from_json(self.regions_file, "regions_file")

    def data_notes(self, data: Dataset) -> list[str]:
        """Return warnings about regions that do not match the images."""
        return notes_on(self.table, data) if self.from_file else []
