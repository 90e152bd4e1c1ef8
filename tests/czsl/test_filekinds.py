"""Files that are something else than they should be: every reader names the kind, and says what to do."""

import io
import os
import threading
import zipfile

import pytest

from czsl.data.columns import read_column
from czsl.data.images import BadImage, decode
from czsl.data.importing.importers import import_dataset
from czsl.data.importing.textfiles import read_json as read_annotations
from czsl.errors import DataError
from czsl.filekinds import identify, identify_file
from czsl.reading import read_arrays, read_json, read_safetensors, read_text, read_torch, read_yaml


def workbook(member, **first):
    """A ZIP archive that holds what shows its kind."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {**first, "[Content_Types].xml": "<x/>", member: "<x/>"}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


KINDS = {
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
    "web page": b"\xef\xbb\xbf\n<!DOCTYPE html><html>404</html>",
    "old Office program": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "SQLite database": b"SQLite format 3\0" + bytes(84),
    "PDF document": b"%PDF-1.7\n%\xe2\xe3",
    "GGUF file": b"GGUF\3\0\0\0" + bytes(40),
    "HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "Excel workbook": workbook("xl/workbook.xml"),
    "OpenDocument spreadsheet": workbook("content.xml", mimetype="application/vnd.oasis.opendocument.spreadsheet"),
    "Numbers spreadsheet": workbook("Index/Document.iwa"),
}
READERS = {
    "table": (read_column, "t.csv"),
    "import": (lambda path: import_dataset(path, path.parent / "out"), "t.csv"),
    "annotations": (read_annotations, "t.json"),
    "text": (read_text, "t.txt"),
    "JSON": (read_json, "t.json"),
    "YAML": (read_yaml, "t.yaml"),
    "arrays": (lambda path: read_arrays(path, ["x"]), "t.npz"),
    "safetensors": (read_safetensors, "t.safetensors"),
    "torch": (read_torch, "t.pt"),
}


# An archive without the arrays that are wanted has none of them, and annotation files are looked at as text.
LENIENT = ("arrays", "annotations")


@pytest.mark.parametrize(
    ("kind", "reader"), [(k, r) for k in KINDS for r in READERS if r not in LENIENT or KINDS[k][:2] != b"PK"]
)
def test_every_reader_names_the_kind(tmp_path, kind, reader):
    read, name = READERS[reader]
    (tmp_path / name).write_bytes(KINDS[kind])
    with pytest.raises(DataError) as error:
        read(tmp_path / name)
    assert kind in error.value.why
    assert error.value.fix == identify_file(tmp_path / name)[1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].startswith(b"PK")])
def test_an_image_that_is_something_else(kind):
    with pytest.raises(BadImage, match=kind):
        decode(KINDS[kind])


@pytest.mark.parametrize("content", [b"", b"image,attr\n", b"PK\x03\x04", b"PAR1", b"{}", b"version 1\n", b"\x93NUMPY"])
def test_what_is_not_known_is_not_named(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    assert identify(content) is None
    assert identify_file(tmp_path / "t") is None


def test_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(KINDS["web page"]))
    writer.start()
    with pytest.raises(DataError) as error:
        read_text(pipe)
    writer.join()
    assert "web page" in error.value.why
