"""The layouts that sources come in, and the reader of each; what a reader makes is in :mod:`czsl.data.importing.entries`.

A reader looks at names, labels and splits; no image is read. Each layout has a module of its own, imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from czsl.data.importing.entries import Entry, ImportSource, Reading
from czsl.errors import UsageError

# Layout: module and function of its reader.
READERS = {
    "published": "published:read_published",
    "tree": "tree:read_tree",
    "manifest": "tables:read_manifest",
    "imagefolder": "imagefolder:read_image_folder",
    "parquet": "parquet_images:read_parquet_images",
    "coco": "coco:read_coco",
    "vaw": "vaw:read_vaw",
    "webdataset": "webdataset:read_webdataset",
    "label-studio": "labelstudio:read_label_studio",
    "fiftyone": "fiftyone:read_fiftyone",
}
LAYOUTS = tuple(READERS)


def read_source(source: Path, layout: str, reading: Reading) -> ImportSource:
    """Read a source in one of `LAYOUTS`.

    Raises
    ------
    DataError
        The source cannot be understood.
    UsageError
        The layout is unknown, or an option does not go with it.
    """
    if layout not in READERS:
        raise UsageError(f"no layout {layout!r}", "czsl does not read such a layout", f"one of: {', '.join(LAYOUTS)}")
    if layout == "published" and reading.classes is not None:
        raise UsageError("the published layout holds pairs, not classes", f"{source} has pair lists", "drop --classes")
    if layout in ("published", "tree"):
        for given, option in ((reading.columns, "--columns"), (reading.root, "--root")):
            if given:
                raise UsageError(f"{option} with the layout {layout}", "it has no table of paths and labels", f"drop {option}")
    module, function = READERS[layout].split(":")
    reader: Callable[[Path, Reading], ImportSource] = getattr(import_module(f"czsl.data.importing.{module}"), function)
    return reader(source, reading)


__all__ = ["LAYOUTS", "Entry", "ImportSource", "Reading", "read_source"]
