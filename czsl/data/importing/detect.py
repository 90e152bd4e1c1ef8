"""Detection of a source's layout from its files, and hints for a source that fits none."""

from __future__ import annotations

import os
from pathlib import Path

from czsl.data.images import is_image_name
from czsl.data.importing.annotations import form_of, json_files
from czsl.data.importing.imagefolder import metadata_files
from czsl.data.importing.parquet_images import image_columns, parquet_files
from czsl.data.importing.published import LISTS, METADATA
from czsl.data.importing.tables import SUFFIXES, manifest_in, open_parquet, split_tables, starts_with
from czsl.data.importing.textfiles import decode_text, parse_json, read_text
from czsl.data.importing.webdataset import COMPRESSED, shards
from czsl.errors import DataError
from czsl.filekinds import identify_file

HEAD = 1 << 16
UNKNOWN = "give a folder, a table, an annotation file or a tar; the page docs/data.md lists the layouts"


def find_layout(source: Path) -> str:
    """Return the layout of a source, judged by the content of its files; DataError if no layout fits."""
    if source.is_file():
        return _layout_of_file(source)
    if not source.is_dir():
        raise DataError(f"no file or folder {source}", "nothing exists at this path", "check the path")
    if (source / "dataset.json").is_file():
        raise DataError(f"{source} is a dataset folder already", "it was imported before", "use it as it is")
    if _is_hub_cache(source):
        raise DataError(f"{source} fits no layout", f"it looks like {_HUB_CACHE}", f"import {_snapshot(source)}")
    if (source / LISTS).is_dir():
        has_metadata = any((source / f"{METADATA}{suffix}").is_file() for suffix in (".t7", ".json"))
        return "published" if has_metadata or "vaw" not in _forms(source) else "vaw"
    if manifest := manifest_in(source):
        return _layout_of_file(manifest)
    if metadata_files(source):
        return "imagefolder"
    forms = _forms(source)
    known = [form for form in ("coco", "vaw", "label-studio", "fiftyone") if form in forms]
    if len(known) > 1:
        files = "; ".join(f"{form}: {forms[form][0].name}" for form in known)
        raise DataError(f"{source} fits more than one layout", files, f"choose: --layout {' or '.join(known)}")
    if known:
        return known[0]
    if split_tables(source):
        return "manifest"
    tables = parquet_files(source)
    if tables and _holds_images(tables[0]):
        return "parquet"
    if _has_image_files(source):  # then an archive or a table next to them is something else
        return "tree"
    return "parquet" if tables else "webdataset" if shards(source) else "tree"


def _has_image_files(folder: Path) -> bool:
    return any(is_image_name(name) and not name.startswith(".") for _, _, files in os.walk(folder) for name in files)


def _holds_images(path: Path) -> bool:
    """True if a Parquet file has a column of images with their paths, as the Hugging Face Hub writes them."""
    import pyarrow as pa

    try:
        with open_parquet(path) as parquet:
            schema = parquet.schema_arrow
            return any(pa.types.is_struct(schema.field(name).type) for name in image_columns(schema))
    except DataError:
        return False


def _layout_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise DataError(f"cannot read {path}", error.strerror or str(error), "is the path right?") from None
    if known := identify_file(path):
        raise DataError(f"{path} is not a folder, table, annotation file or archive", f"it is {known[0]}", known[1])
    if head.startswith(b"PAR1"):
        with open_parquet(path) as parquet:
            schema = parquet.schema_arrow
            return "parquet" if image_columns(schema) and not _names_files(schema) else "manifest"
    suffix = path.suffix.lower()
    if head[257:262] == b"ustar" or suffix == ".tar":
        return "webdataset"
    if head.startswith(b"PK\x03\x04"):
        raise DataError(f"{path} is a ZIP archive", "archives are not unpacked", "unpack it, and give the folder")
    for sign, name in COMPRESSED.items():
        if head.startswith(sign):
            raise DataError(f"{path} is compressed with {name}", "archives are not unpacked", "decompress it first")
    if suffix in (".t7", ".pt", ".pkl") or is_image_name(path.name):
        raise DataError(
            f"{path} is not a folder", "a single file of this kind is not a labelled set of images", "give its folder"
        )
    if suffix == ".parquet":
        return "manifest"  # its reader says what is wrong
    return _layout_of_text(path, head, suffix)


def _layout_of_text(path: Path, head: bytes, suffix: str) -> str:
    from czsl.data.importing.labelstudio import looks_like

    known = suffix in SUFFIXES
    try:
        text = decode_text(head.rsplit(b"\n", 1)[0] if len(head) == HEAD else head, path)
    except DataError:
        if known:
            return "manifest"
        raise DataError(f"{path} is not a folder", "and not a table, annotation file or archive", UNKNOWN) from None
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if start in ("[", "{") and suffix not in (".jsonl", ".ndjson", ".csv", ".tsv"):
        form = form_of(_parsed(path))
        if form is not None:
            return form
        return "manifest"
    if looks_like(text):
        return "label-studio"
    first = text.split("\n", 1)[0]
    if known or any(sign in first for sign in ",;\t|") or start in ("[", "{"):
        return "manifest"
    raise DataError(f"{path} is not a folder", "and not a table, annotation file or archive", UNKNOWN)


def _parsed(path: Path) -> object:
    """The content of a file that begins as JSON; None if it is not one value, as JSON lines are not."""
    text = read_text(path)
    try:
        return parse_json(text, path)
    except DataError:
        return None


def _names_files(schema) -> bool:
    """True if a table has a column of paths under the documented name, and its columns of bytes are something else."""
    import pyarrow as pa

    index = schema.get_field_index("image")
    return index >= 0 and (pa.types.is_string(schema.field(index).type) or pa.types.is_large_string(schema.field(index).type))


def _forms(folder: Path) -> dict[str, list[Path]]:
    """The JSON files of a folder by their form; files that cannot be parsed are left out."""
    found: dict[str, list[Path]] = {}
    for path in json_files(folder)[:100]:
        try:
            form = form_of(parse_json(read_text(path), path))
        except DataError:
            continue
        if form:
            found.setdefault(form, []).append(path)
    return found


_HUB_CACHE = "a cache of the Hugging Face Hub, with a folder for each revision"


def _is_hub_cache(folder: Path) -> bool:
    return (folder / "snapshots").is_dir() and ((folder / "refs").is_dir() or (folder / "blobs").is_dir())


def _snapshot(folder: Path) -> Path:
    revisions = sorted(path.name for path in (folder / "snapshots").iterdir())
    return folder / "snapshots" / (revisions[-1] if revisions else "REVISION")


def describe(source: Path) -> tuple[str, str] | None:
    """Describe a folder that fits no layout, and what to do with it; None if nothing is known about it."""
    if source.is_file():
        return None
    if list(source.glob("*.arrow")) or list(source.glob("*/*.arrow")):
        return (
            "a Hugging Face dataset that was saved to disk (Arrow files)",
            "write it with to_parquet, and import the Parquet files",
        )
    inner = [path for path in sorted(source.iterdir()) if path.is_dir() and (path / LISTS).is_dir()]
    if inner:
        return f"a folder around a published benchmark ({inner[0].name})", f"import {inner[0]}"
    tables = sorted(p.name for p in source.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
    if tables:
        return f"a folder of images with a table ({', '.join(tables[:5])})", f"give the table itself: {source / tables[0]}"
    if any(starts_with(path, b"PK\x03\x04") for path in source.glob("*.zip")):
        return "a folder of ZIP archives", "unpack them"
    if list(source.glob("*.tgz")) or list(source.glob("*.tar.*")):
        return "a folder of compressed tar archives", "decompress them to plain .tar"
    if list(source.glob("*.tfrecord*")):
        return "a folder of TFRecord files", "write the images with a table, or as WebDataset"
    if (source / "data.mdb").is_file():
        return "an LMDB database", "write the images with a table, or as WebDataset"
    if list(source.glob("**/Annotations/*.xml"))[:1]:
        return "Pascal VOC annotations (XML)", "convert them to COCO-style JSON"
    if (source / "data.yaml").is_file() or (source / "dataset.yaml").is_file():
        return "a YOLO dataset", "convert its boxes to COCO-style JSON"
    return None
