"""Real image files, and small sources in each layout."""

import io
import json
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from czsl.compositions import SPLITS
from czsl.data.importing.importers import ImportOptions
from czsl.data.table import Dataset

PAIRS = {
    "train": ["dry cat", "dry dog", "wet cat", "wet hat"],
    "val": ["wet dog"],
    "test": ["dry hat", "wet cat"],
}

TREE = {"dry cat": 4, "dry dog": 4, "wet cat": 4, "wet dog": 4, "wet hat": 4, "dry hat": 4}


def encode(seed, size=(24, 18), kind="JPEG"):
    """The bytes of an image file of its own for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def png_header(width, height):
    """A PNG that claims a size in its header and holds next to no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


class Published:
    """A source in the published layout that a test can spoil before `write_metadata`."""

    def __init__(self, root, images_a_pair=3):
        self.root, self.records = root, []
        lists = root / "compositional-split-natural"
        lists.mkdir(parents=True)
        (root / "images").mkdir()
        for split, pairs in PAIRS.items():
            (lists / f"{split}_pairs.txt").write_text("\n".join(pairs) + "\n")
            for pair in pairs:
                for number in range(images_a_pair):
                    self.add(f"{split}_{pair.replace(' ', '_')}_{number}.jpg", pair, split)
        self.write_metadata()

    def add(self, name, pair, split, content=None):
        path = self.root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(len(self.records)) if content is None else content)
        self.record(name, pair, split)

    def record(self, name, pair, split):
        attr, obj = pair.split()
        self.records.append({"image": name, "attr": attr, "obj": obj, "set": split})
        self.write_metadata()

    def write_metadata(self):
        path = self.root / "metadata_compositional-split-natural.json"
        path.write_text(json.dumps(self.records))


@pytest.fixture
def published(tmp_path):
    return Published(tmp_path / "source")


@pytest.fixture
def make_tree(tmp_path):
    """Write images into folders: ``make_tree({"wet dog": 3})`` -> the root."""

    def make(folders, root=tmp_path / "tree"):
        for place, (folder, number) in enumerate(folders.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                (root / folder / f"{i}.png").write_bytes(encode(1000 * place + i, kind="PNG"))
        return root

    return make


LENIENT = ImportOptions(max_bad=1.0)


def kinds(report):
    return Counter(problem.kind for problem in report.problems)


def problem(report, kind):
    found = [p for p in report.problems if p.kind == kind]
    assert len(found) == 1, f"{kind}: {report.problems}"
    return found[0]


def labels(folder):
    """id -> 'split attr obj' of a whole dataset."""
    dataset = Dataset.open(folder)
    return {row.id: f"{row.split} {row.attr} {row.obj}" for name in SPLITS for row in dataset.split(name).rows()}
