"""Files that are something else than their name or their place promises: pointers, web pages, workbooks, databases."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

HEAD_BYTES = 512
OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
AS_CSV = "save its sheet as CSV"
# First bytes in lower case -> what the file is, and what to do.
SIGNS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with git lfs pull"),
    (b"<!doctype html", "a web page, not the file itself", "download it again"),
    (b"<html", "a web page, not the file itself", "download it again"),
    (OFFICE, "a workbook or document of an old Office program", AS_CSV),
    (b"sqlite format 3\0", "an SQLite database", "export its table as CSV"),
    (b"%pdf-", "a PDF document", "give the data that it was made of"),
    (b"gguf", "a GGUF file of llama.cpp", "give the model that it was made from, as .safetensors"),
    (b"\x89hdf\r\n", "an HDF5 file", "export what it holds as files or as a table"),
)


def identify(head: bytes) -> tuple[str, str] | None:
    """Tell what a file is, by its first bytes, and what to do with it; None for a file that may be what it should be."""
    plain = head[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next(((what, fix) for sign, what, fix in SIGNS if plain.startswith(sign)), None)


def identify_file(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Tell what a file is as :func:`identify` does, workbooks of today's programs included, which are ZIP archives."""
    try:
        if not Path(path).is_file():  # a pipe is read once
            return None
        with Path(path).open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return None
    if not head.startswith(b"PK\x03\x04"):
        return identify(head)
    names = archive_names(path)
    if "xl/workbook.xml" in names or "xl/workbook.bin" in names:
        return "an Excel workbook", AS_CSV
    if b"application/vnd.oasis.opendocument.spreadsheet" in head:
        return "an OpenDocument spreadsheet", AS_CSV
    return ("a Numbers spreadsheet", AS_CSV) if any(name.endswith("Document.iwa") for name in names) else None


def archive_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the files in a ZIP archive; empty if it is not a complete archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # a damaged directory raises many kinds
        return []
