"""A dataset in the forms of other programs (image folder, table, COCO); importing an export gives the same dataset."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from czsl.classes import ClassSpace
from czsl.compositions import SPLITS
from czsl.data.export import choose
from czsl.data.images import image_size, is_image_name
from czsl.data.importing.columns import ID
from czsl.data.importing.published import LISTS
from czsl.data.table import Dataset
from czsl.errors import DataError, UsageError
from czsl.runs.files import whole_folder

FORMATS = ("imagefolder", "table", "coco")
MAX_PART = 200  # bytes in a part of a file's name
# Names that an image may not have, for they tell what a folder is.
RESERVED = {"dataset.json", "space.json", "annotations", "manifest.csv", "metadata.csv", LISTS}
ENDINGS = {b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}


@dataclass(frozen=True)
class Written:
    """One image that was written: its file's name, id, labels, split and size."""

    name: str
    id: str
    attr: str
    obj: str
    split: str
    size: tuple[int, int]


def export_dataset(
    data: Dataset,
    form: str,
    dest: Path,
    splits: Sequence[str] = SPLITS,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write a dataset in the form of another program; return the number of images.

    The whole dataset is written with its ``space.json``, so that importing it gives the same dataset, with the same hash. A part
    (``splits``, ``limit``) has the label space that its images show.

    Parameters
    ----------
    data : Dataset
    form : {"imagefolder", "table", "coco"}
        ``train/``, ``val/``, ``test/`` with a ``metadata.csv`` each; ``manifest.csv`` next to the images; ``annotations/train.json``, ..
        with a box around each whole image.
    dest : Path
        A folder that is absent or empty. Nothing is left of an export that fails.
    splits : sequence of str
    limit : int, optional
        At most this many images of each split, spread over the labels with the seed.
    seed : int
    progress : callable
        Called with the number of images that are written, and of all.

    Raises
    ------
    UsageError
        The form is unknown, or ``dest`` holds something.
    DataError
        The dataset has no image, or a label that the form cannot hold.
    """
    if form not in FORMATS:
        raise UsageError(f"no form {form!r}", "an export cannot be written in it", f"one of: {', '.join(FORMATS)}")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} is not an empty folder", "an export writes a folder of its own", "give a new folder")
    _check_labels(data)
    rows = {split: sorted(choose(data.split(split), limit, seed)) for split in splits if len(data.split(split))}
    if not any(rows.values()):
        raise DataError(f"{data.folder} has no images of {', '.join(splits)}", "the splits are empty", "choose another --split")
    with whole_folder(dest) as temporary:
        images = list(_write_images(data, form, temporary, rows, progress))
        {"imagefolder": _image_folder, "table": _table, "coco": _coco}[form](temporary, data, images)
        if limit is None and set(splits) == set(SPLITS):
            data.space.save(temporary / "space.json")
    return len(images)


def _check_labels(data: Dataset) -> None:
    wrong = [name for names in data.space.vocabulary.values() for name in names if name != name.strip()]
    if wrong:
        raise DataError(
            f"{len(wrong)} labels have spaces around them", ", ".join(map(repr, wrong[:5])), "rename them before the export"
        )


def _write_images(data: Dataset, form: str, root: Path, rows: dict[str, list[int]], progress: Callable) -> Iterator[Written]:
    ids = [data.split(split).ids[row] for split, chosen in rows.items() for row in chosen]
    folders = {"/".join(parts[:i]) for parts in (name.split("/") for name in ids) for i in range(1, len(parts))}
    done = 0
    for split, chosen in rows.items():
        part, wanted = data.split(split), set(chosen)
        for row, content in part.iter_images():
            if row not in wanted:
                continue
            attr, obj = data.space.pair_names(part.pairs[row])
            name = _file_name(part.ids[row], content, folders)
            path = root / split / name if form == "imagefolder" else root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            done += 1
            progress(done, len(ids))
            yield Written(name, part.ids[row], attr, obj, split, image_size(content, 2**62))


def _file_name(ident: str, content: bytes, folders: set[str]) -> str:
    """The id itself if it is a usable path of an image, otherwise a name made of its hash."""
    parts = ident.split("/")
    plain = is_image_name(ident) and ident.isprintable() and ident not in folders and parts[0] not in RESERVED
    plain = plain and not any(sign in ident for sign in '\\:"*?<>|') and ident == ident.strip() and len(ident.encode()) < 1000
    if plain and all(len(part.encode()) <= MAX_PART for part in parts):
        return ident
    ending = next((ending for sign, ending in ENDINGS.items() if content.startswith(sign)), ".jpg")
    return f"images/{hashlib.sha256(ident.encode()).hexdigest()[:24]}{ending}"


def _labels(data: Dataset, image: Written) -> dict[str, str]:
    return {"class": image.obj} if isinstance(data.space, ClassSpace) else {"attr": image.attr, "obj": image.obj}


# -- forms ---------------------------------------------------------------------------------------------------------
def _table(root: Path, data: Dataset, images: list[Written]) -> None:
    renamed = any(image.name != image.id for image in images)
    rows = [
        {"image": i.name, **_labels(data, i), "split": i.split, **({ID: i.id} if renamed else {})} for i in images
    ]  # fmt: skip
    _write_csv(root / "manifest.csv", rows)


def _image_folder(root: Path, data: Dataset, images: list[Written]) -> None:
    for split in dict.fromkeys(image.split for image in images):
        rows = [{"file_name": i.name, **_labels(data, i), ID: i.id} for i in images if i.split == split]
        _write_csv(root / split / "metadata.csv", rows)


def _coco(root: Path, data: Dataset, images: list[Written]) -> None:
    classes = isinstance(data.space, ClassSpace)
    category = {name: number for number, name in enumerate(data.space.objects, 1)}
    (root / "annotations").mkdir()
    for split in dict.fromkeys(image.split for image in images):
        content: dict[str, list[Any]] = {"images": [], "annotations": []}
        for number, image in enumerate((i for i in images if i.split == split), 1):
            width, height = image.size
            renamed = {ID: image.id} if image.name != image.id else {}
            content["images"].append({"id": number, "file_name": image.name, "width": width, "height": height, **renamed})
            label: dict[str, Any] = {"class": image.obj} if classes else {"attributes": {"attribute": image.attr}}
            box = {"bbox": [0, 0, width, height], "area": width * height, "iscrowd": 0}
            content["annotations"].append({"id": number, "image_id": number, "category_id": category[image.obj], **box, **label})
        content["categories"] = [{"id": number, "name": name} for name, number in category.items()]
        text = json.dumps({"info": {"description": data.name}, **content}, ensure_ascii=False)
        (root / "annotations" / f"{split}.json").write_text(text + "\n", encoding="utf-8")


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\r\n")  # so that both signs are quoted in cells
        writer.writeheader()
        writer.writerows(rows)
