"""Mutated files and odd JSON: each reader imports what it can, or ends in the documented error; never in another one.

``python -m tests.czsl.data.importing.test_fuzz SECONDS`` runs the same for longer.
"""

import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from czsl.compositions import SPLITS
from czsl.data.importing.importers import ImportOptions, import_dataset
from czsl.errors import CzslError
from tests.czsl.data.conftest import PAIRS, encode
from tests.czsl.data.importing.test_webdataset import write_tar

NAMES = [(f"{s}-{a}-{o}.png", a, o, s) for s in SPLITS for a in ("wet", "dry") for o in ("dog", "cat")]
ODD = [
    b"\0", b"\xff", b"\xff\xfe", b'"', b"'", b",", b";", b"\t", b"\n", b"\r", b"{", b"}", b"[", b"]", b":", b"null", b"NaN",
    b"1e999", b"-1", b"9" * 5000, b"../", b"/etc/passwd", b"\\", b"file://", b"C:\\", b"://", b"+", b" ", b"=", b"train", b"image",
    b"attr", b"ustar", b"\xef\xbb\xbf", b"PAR1", b"\x1b[31m", "\u202e".encode(), b"a" * 3000, b"[" * 3000, b'{"a":' * 2000,
]  # fmt: skip


def records(key="image"):
    return [{key: n, "attr": a, "obj": o, "split": s} for n, a, o, s in NAMES]


def text_of(rows, sign=","):
    return "\n".join(sign.join(row) for row in [("image", "attr", "obj", "split"), *rows]) + "\n"


def coco():
    images = [{"id": i, "file_name": n, "width": 24, "height": 18} for i, (n, *_) in enumerate(NAMES)]
    annotations = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1 + (o == "cat"),
            "bbox": [i, 1, 8.5, 9],
            "attributes": {"attribute": a},
            "split": s,
        }
        for i, (_, a, o, s) in enumerate(NAMES)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]}


def vaw():
    return [
        {"image_id": i, "instance_id": str(i), "instance_bbox": [1, 2, 9, 8], "object_name": o, "positive_attributes": [a]}
        for i, (_, a, o, _) in enumerate(NAMES)
    ]


def studio():
    def choice(name, value):
        return {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": [value]}, "id": name}

    box = {
        "id": "b",
        "from_name": "x",
        "to_name": "image",
        "type": "rectanglelabels",
        "value": {"x": 1, "y": 2, "width": 50, "height": 40},
    }
    return [
        {"id": i, "data": {"image": f"/data/upload/1/1a2b3c4d-{n}", "split": s}, "file_upload": n,
         "annotations": [{"result": [choice("attr", a), choice("obj", o), *([box] if i % 3 == 0 else [])]}]}
        for i, (n, a, o, s) in enumerate(NAMES)
    ]  # fmt: skip


def fiftyone_labels():
    classes = ["wet dog", "wet cat", "dry dog", "dry cat"]
    return {"classes": classes, "labels": {n.removesuffix(".png"): i % 4 for i, (n, *_) in enumerate(NAMES)}}


def fiftyone_samples():
    def label(value):
        return {"_cls": "Classification", "label": value}

    boxes = {"_cls": "Detections", "detections": [{"label": "dog", "bounding_box": [0.1, 0.1, 0.5, 0.5]}]}
    samples = [{"filepath": n, "tags": [s], "attr": label(a), "obj": label(o), "x": 3} for n, a, o, s in NAMES]
    return {"samples": [*samples, {**samples[0], "found": boxes}]}


def put_parquet(path, with_images):
    columns = {key: [record[key] for record in records()] for key in ("image", "attr", "obj", "split")}
    if with_images:
        values = [{"bytes": encode(i, kind="PNG"), "path": n} for i, (n, *_) in enumerate(NAMES)]
        columns["image"] = pa.array(values, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table(columns), path, row_group_size=5)


def put_tar(path):
    members = []
    for i, (_, a, o, s) in enumerate(NAMES):
        members += [(f"{i:03d}.png", encode(i, kind="PNG")), (f"{i:03d}.json", json.dumps({"attr": a, "obj": o, "split": s}))]
        members += [(f"{i:03d}.cls", "1"), (f"{i:03d}.txt", "text")]
    write_tar(path, members)


def put_published(root):
    lists = root / "compositional-split-natural"
    lists.mkdir()
    for split, pairs in PAIRS.items():
        (lists / f"{split}_pairs.txt").write_text("\n".join(pair.replace(" ", "+") for pair in pairs))
    found = [{"image": n, "_image": f"x/{n}", "attr": a, "obj": o, "set": s} for n, a, o, s in NAMES]
    (root / "metadata_compositional-split-natural.json").write_text(json.dumps(found))
    return lists / "train_pairs.txt"


SPACE = {"attributes": ["wet", "dry"], "objects": ["dog", "cat"], "train_pairs": [["wet", "dog"]], "test_pairs": [["dry", "cat"]]}
# Kind: the name of the file that is mutated, and what is written into it.
KINDS = {
    "csv": ("t.csv", lambda p: p.write_text(text_of(NAMES))),
    "semicolons": ("t.csv", lambda p: p.write_text(text_of(NAMES, ";"))),
    "utf16": ("t.csv", lambda p: p.write_bytes(text_of(NAMES, "\t").encode("utf-16"))),
    "jsonl": ("t.jsonl", lambda p: p.write_text("\n".join(map(json.dumps, records())))),
    "json": ("t.json", lambda p: p.write_text(json.dumps(records()))),
    "parquet": ("t.parquet", lambda p: put_parquet(p, False)),
    "parquet images": ("t.parquet", lambda p: put_parquet(p, True)),
    "image folder": ("metadata.csv", lambda p: p.write_text(text_of(NAMES).replace("image", "file_name", 1))),
    "coco": ("t.json", lambda p: p.write_text(json.dumps(coco()))),
    "vaw": ("train.json", lambda p: p.write_text(json.dumps(vaw()))),
    "label studio": ("t.json", lambda p: p.write_text(json.dumps(studio()))),
    "fiftyone": ("labels.json", lambda p: p.write_text(json.dumps(fiftyone_labels()))),
    "samples": ("samples.json", lambda p: p.write_text(json.dumps(fiftyone_samples()))),
    "tar": ("t.tar", put_tar),
    "pairs": ("train_pairs.txt", lambda p: p.write_text("\n".join(pair.replace(" ", "+") for pair in PAIRS["train"]))),
    "space": ("space.json", lambda p: p.write_text(json.dumps(SPACE))),
}  # fmt: skip


class Bench:
    """A folder with images and one file that is mutated; made once for a kind."""

    def __init__(self, kind, root):
        self.kind, self.root = kind, Path(root)
        for i, (name, *_) in enumerate(NAMES):
            for place in ("", "images/", "data/"):
                (self.root / place).mkdir(exist_ok=True)
                (self.root / place / name).write_bytes(encode(i, kind="PNG"))
            (self.root / "images" / f"{i}.jpg").write_bytes(encode(i, kind="PNG"))
        name, write = KINDS[kind]
        self.path = put_published(self.root) if kind == "pairs" else self.root / name
        if kind == "space":
            (self.root / "manifest.csv").write_text(text_of(NAMES))
        write(self.path)
        self.whole = self.path.read_bytes()
        self.source = self.root if kind in ("pairs", "space", "image folder") else self.path
        self.options = ImportOptions(max_bad=1, workers=1, columns={"pair": "label"} if kind == "fiftyone" else {})
        self.out = self.root.parent / f"{self.root.name}-out"

    def run(self, content):
        """Import with another content of the file; the documented error, or None."""
        self.path.write_bytes(content)
        shutil.rmtree(self.out, ignore_errors=True)
        try:
            report = import_dataset(self.source, self.out, self.options)
        except CzslError as error:
            assert error.exit_code in (2, 3), error
            assert not self.out.exists()
            assert len(str(error)) < 20_000
            return error
        json.dumps(report.to_json())
        assert report.named == sum(report.images.values()) + report.bad
        return None


def mutate(content, chance):
    """A few edits: bytes replaced, removed, repeated, moved, odd ones put in; or the end cut off."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at, size = chance.randrange(len(data) + 1), min(chance.choice((1, 1, 2, 8, 64, 512)), len(data))
        kind = chance.randrange(7)
        if kind == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = data[at : at + size] * chance.choice((1, 2, 20))
        elif kind == 3:
            data[at:at] = chance.choice(ODD)
        elif kind == 4:
            data[at : at + size] = chance.choice(ODD)
        elif kind == 5 and chance.random() < 0.3:
            del data[at:]
        elif data:
            other = chance.randrange(len(data))
            data[at:at] = data[other : other + size]
    return bytes(data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "/x", "train", "wet dog", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=5,
)


def replace_somewhere(value, new, chance):
    """The value with one part of it replaced."""
    if chance.random() < 0.15 or not isinstance(value, dict | list) or not value:
        return new
    if isinstance(value, list):
        at = chance.randrange(len(value))
        return [*value[:at], replace_somewhere(value[at], new, chance), *value[at + 1 :]]
    key = chance.choice(sorted(value))
    return {**value, key: replace_somewhere(value[key], new, chance)}


CONTENTS = {
    "json": records,
    "coco": coco,
    "vaw": vaw,
    "label studio": studio,
    "fiftyone": fiftyone_labels,
    "samples": fiftyone_samples,
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_imported(tmp_path, kind):
    (tmp_path / "source").mkdir()
    bench = Bench(kind, tmp_path / "source")
    assert bench.run(bench.whole) is None


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files(tmp_path, kind):
    (tmp_path / "source").mkdir()
    bench = Bench(kind, tmp_path / "source")
    for seed in range(15):
        bench.run(mutate(bench.whole, random.Random(seed)))


@pytest.mark.parametrize("kind", CONTENTS)
def test_odd_values_in_json(tmp_path, kind):
    (tmp_path / "source").mkdir()
    bench = Bench(kind, tmp_path / "source")

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(VALUES, st.randoms(use_true_random=False))
    def check(value, chance):
        bench.run(json.dumps(replace_somewhere(CONTENTS[kind](), value, chance)).encode())

    check()


ODD_VALUES = [None, [], {}, "", "../x", -1, 1e308, float("nan"), True, [[]], {"a": 1}, "train", 2**70, ["a", "b"], [1, 2, 3, 4]]


def main(seconds):
    """Run mutations of every kind until the time is over, and print what is found."""
    end, count, found = time.monotonic() + seconds, 0, {}
    with tempfile.TemporaryDirectory() as folder:
        benches = {}
        for kind in KINDS:
            (Path(folder) / kind.replace(" ", "-")).mkdir()
            benches[kind] = Bench(kind, Path(folder) / kind.replace(" ", "-"))
        seed = int(time.time())
        while time.monotonic() < end:
            for kind, bench in benches.items():
                seed, count = seed + 1, count + 1
                chance = random.Random(seed)
                content = mutate(bench.whole, chance)
                if kind in CONTENTS and chance.random() < 0.5:
                    new = chance.choice(ODD_VALUES)
                    content = json.dumps(replace_somewhere(CONTENTS[kind](), new, chance)).encode()
                try:
                    bench.run(content)
                except Exception as error:
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    key = (kind, type(error).__name__, f"{Path(place.filename).name}:{place.lineno}")
                    if key not in found:
                        print(key, str(error)[:200], flush=True)
                        Path(f"/tmp/fuzz-found-{len(found)}").write_bytes(content)
                    found[key] = found.get(key, 0) + 1
    print(f"{count} imports in {seconds} s; {len(found)} kinds of failure: {found}")


if __name__ == "__main__":
    main(float(sys.argv[1]))
