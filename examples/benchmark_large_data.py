"""Measure the costs of a large dataset: time and memory of a process with kept and with streamed pixels, and with kept features.

    python examples/benchmark_large_data.py --images 100000

Draws a dataset of small pictures, then starts one process per way, which runs through an epoch in batches of 64: `kept` (decoded once into
a file, here with the time that takes), `kept, again` (the file is there), `streamed` (read and decoded for each batch) and `streamed,
again`. All four must see the same bytes. `features` draws batches out of a mapped file of image features. Memory is a process's own
(anonymous) memory at its highest; mapped files do not count, since the system takes their pages back when it needs room. The
folder is deleted at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from czsl.compositions import CompositionSpace
from czsl.data.batches import FeatureWriter, PixelCache, epoch_batches, load_features
from czsl.data.importing.writer import Record, write_dataset
from czsl.data.pixels import clip_pixels
from czsl.data.streaming import StreamedPixels
from czsl.data.table import Dataset

BATCH, DIM = 64, 768
WAYS = ("open", "kept", "kept, again", "streamed", "streamed, again", "features")
MB = 2**20


def pictures(number: int, side: int) -> Iterator[bytes]:
    """JPEG pictures of side x side pixels with colours of several scales, each another one."""
    rng = np.random.default_rng(0)
    for _ in range(number):
        coarse = np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((side // 4, side // 4, 1), np.uint8))
        fine = rng.integers(0, 32, (side, side, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse // 8 * 7 + fine).save(out, "JPEG")
        yield out.getvalue()


def anonymous_memory(process: int | str = "self") -> int:
    """Anonymous memory of a process in bytes, from Linux; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def make_dataset(folder: Path, images: int, side: int) -> None:
    """A dataset of pictures, all in one split."""
    A, O = 20, 10
    names = tuple(f"a{i}" for i in range(A)), tuple(f"o{i}" for i in range(O))
    space = CompositionSpace(*names, np.stack(divmod(np.arange(A * O), O), axis=1), np.zeros((0, 2)), np.zeros((0, 2)))

    def records() -> Iterator[Record]:
        for i, content in enumerate(pictures(images, side)):
            yield Record(f"{i:07d}.jpg", content, f"a{i % A}", f"o{i // A % O}", "train")

    write_dataset(folder, space, records(), "large")


class Memory:
    """The highest anonymous memory of this process while the block runs, above that at its start."""

    def __enter__(self) -> Memory:
        self.start = self.peak = anonymous_memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, anonymous_memory())

    @property
    def above(self) -> float:
        """Megabytes above the start."""
        return (self.peak - self.start) / MB


def one_way(way: str, folder: Path, side: int) -> dict[str, float | str]:
    """Run one way in this process."""
    digest = hashlib.sha256()

    def prepare(image: Image.Image, name: str) -> dict[str, torch.Tensor]:
        return {"images": torch.from_numpy(clip_pixels(image, side))}

    with Memory() as memory:
        began, cpu = time.perf_counter(), time.process_time()
        split = Dataset.open(folder / "set").split("train")
        opened = time.perf_counter() - began
        labels_mb = memory.above
        if way == "open":
            return {
                "way": way,
                "ready_s": opened,
                "epoch_s": 0.0,
                "cpu_s": time.process_time() - cpu,
                "mb": memory.above,
                "digest": "",
            }
        if way == "features":
            with FeatureWriter(folder / "features.npy", len(split)) as out:
                for first in range(0, len(split), 1024):
                    rows = min(1024, len(split) - first)
                    out.write(first, np.random.default_rng(first).normal(size=(rows, DIM)).astype(np.float32))
            features = load_features(folder / "features.npy", len(split))
            assert features is not None
            batch = lambda rows: features[torch.from_numpy(rows)]  # noqa: E731
        else:
            pixels = (PixelCache if way.startswith("kept") else StreamedPixels)(split, side, prepare)
            batch = pixels.batch
        ready, cpu = time.perf_counter() - began, time.process_time()
        for rows_B in epoch_batches(0, 0, len(split), BATCH):
            digest.update(batch(rows_B).numpy().tobytes())
        seconds, cpu = time.perf_counter() - began - ready, time.process_time() - cpu
    result = {"way": way, "ready_s": ready, "epoch_s": seconds, "cpu_s": cpu, "mb": memory.above, "labels_mb": labels_mb}
    return result | {"digest": digest.hexdigest()}


def main() -> None:
    """Run all ways in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=64, help="of the pictures and of the pixels, a multiple of 4")
    parser.add_argument("--folder", type=Path, help="where the data lie meanwhile")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(one_way(options.way, options.folder, options.side)))
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        make_dataset(folder / "set", options.images, options.side)
        environment = os.environ | {"CZSL_CACHE": str(folder / "cache")}
        print(
            f"{options.images:,} pictures of {options.side} px; {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
        )
        print("| way | ready after | epoch | images/s | processor, epoch | own memory |\n| --- | --- | --- | --- | --- | --- |")
        digests = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--folder", str(folder), "--side", str(options.side)]
            out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            r = json.loads(out.splitlines()[-1])
            rate = options.images / r["epoch_s"] if r["epoch_s"] else 0
            print(
                f"| {way} | {r['ready_s']:.1f} s | {r['epoch_s']:.1f} s | {rate:,.0f} | {r['cpu_s']:.1f} s | {r['mb']:.0f} MB |",
                flush=True,
            )
            digests[way] = r["digest"]
        if len({digests[way] for way in WAYS[1:5]}) != 1:
            raise SystemExit("the ways gave different pixels")
        print("kept and streamed gave the same bytes")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
