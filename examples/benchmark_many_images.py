"""Measure what evaluation and prediction of many images cost: time and a process's own memory, by the number of images.

    python examples/benchmark_many_images.py --images 10000 100000

Draws small pictures, as the test split of a dataset and as a folder of files, and runs whole commands with zero-shot CLIP (tiny): each
first question, and the same again. Memory is anonymous memory at its highest; mapped files do not count. Seed 0.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from benchmark_commands import CZSL
from benchmark_large_data import MB, anonymous_memory, pictures

from czsl.compositions import CompositionSpace
from czsl.data.importing.writer import Record, write_dataset
from czsl.data.toy.dataset import ATTRIBUTES, OBJECTS

SIDE = 64


def make(folder: Path, number: int) -> None:
    """``set``, a dataset with a test split of this size, and ``photos``, the same pictures as files in folders of 1,000."""
    A, O = len(ATTRIBUTES), len(OBJECTS)
    pairs = np.stack(divmod(np.arange(A * O), O), axis=1)
    labels = {"train": pairs[::2], "val": np.concatenate([pairs[::2], pairs[1::4]])}
    labels["test"] = np.concatenate([pairs[::2], pairs[3::4]])
    space = CompositionSpace(tuple(ATTRIBUTES), tuple(OBJECTS), *labels.values())

    def records() -> Iterator[Record]:
        for i, content in enumerate(pictures(number, SIDE)):
            for split in ("train", "val", "test") if i < 64 else ("test",):
                a, o = labels[split][i % len(labels[split])]
                yield Record(f"{split}{i:07d}.jpg", content, ATTRIBUTES[a], OBJECTS[o], split)
            file = folder / "photos" / f"{i // 1000:04d}" / f"{i:07d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    write_dataset(folder / "set", space, records(), "many")


def run(command: Sequence[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of a command, and its highest anonymous memory in MB."""
    began, peak = time.perf_counter(), 0
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log) as process,
    ):
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(0.02)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}\n{(folder / 'log').read_text()[-2000:]}")
    return time.perf_counter() - began, peak / MB


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where the data lie meanwhile")
    options = parser.parse_args()
    print(f"pictures of {SIDE} px; {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print("| command | images | time | images/s | own memory |\n| --- | --- | --- | --- | --- |")
    for number in options.images:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            environment = os.environ | {"CZSL_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
            make(folder, number)
            local = ["--engine", "local"]
            run([CZSL, "train", "--method", "zero-shot", "--name", "zs", "data=set", *local], folder, environment)
            evaluate = [CZSL, "evaluate", "runs/zs", *local]
            predict = [CZSL, "predict", "runs/zs", "photos", "--out", "found.parquet", *local]
            commands = {
                "evaluate": evaluate,
                "evaluate, another world": [*evaluate, "--open-world"],
                "predict": predict,
                "predict, another question": [*predict, "--top", "3"],
            }
            for name, command in commands.items():
                seconds, memory = run(command, folder, environment)
                print(f"| {name} | {number:,} | {seconds:.1f} s | {number / seconds:,.0f} | {memory:.0f} MB |", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
