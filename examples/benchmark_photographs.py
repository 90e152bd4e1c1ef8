"""Measure `czsl predict` on photographs: read by threads, reduced while decoded, and predicted a second time.

    python examples/benchmark_photographs.py --before ../before/.venv/bin/czsl
    python examples/benchmark_photographs.py --only again --weights vit-b-16 [--rclip rclip]

Large photographs are compared with another checkout's czsl, commands in turn. Second questions are compared with the first, with starting
Python and importing torch, and with rclip, which searches photographs with CLIP. Seeds are those of the pictures (0, 1, ...).
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmark_commands import CZSL, WORDS, make_photographs, make_weights, seconds
from PIL import Image

LARGE = (4000, 3000)


def make_large(folder: Path, number: int) -> None:
    """JPEG files of 12 megapixels with noise of several scales; ten pictures, repeated under other names with another comment each."""
    folder.mkdir()
    for i in range(number):
        rng = np.random.default_rng(i % 10)
        if i < 10:
            layers = [np.asarray(Image.fromarray(rng.integers(0, 256, (s, s, 3), np.uint8)).resize(LARGE)) for s in (8, 64, 1024)]
            picture = Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))
            picture.save(folder / f"{i:04d}.jpg", quality=90)
        else:
            content = (folder / f"{i % 10:04d}.jpg").read_bytes()
            (folder / f"{i:04d}.jpg").write_bytes(content + b"%d" % i)  # another content for the cache, the same picture


def processor_seconds() -> float:
    """Processor time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of a command."""
    before = processor_seconds()
    return seconds(command, folder, environment), processor_seconds() - before


def large(folder: Path, options: argparse.Namespace, common: list[str], environment: dict[str, str]) -> None:
    """Large photographs: now, reduced, and by the code of before, in turn."""
    photographs = folder / "large"
    make_large(photographs, options.large)
    ways = {"now": [CZSL, "predict", str(photographs), *common, "--no-keep"]}
    ways["now, --fast-jpeg"] = [*ways["now"], "--fast-jpeg"]
    if options.before:
        ways["before"] = [options.before, "predict", str(photographs), *common]
    times = np.array([[measured(c, folder, environment) for c in ways.values()] for _ in range(options.rounds)])
    for i, name in enumerate(ways):
        wall, cpu = np.median(times[:, i], axis=0)
        ratio = np.median(times[:, -1, 0] / times[:, i, 0]) if options.before else float("nan")
        print(f"| {options.large} of 12 megapixels, {name} | {wall:.1f} s | {cpu:.1f} s | {ratio:.2f} |", flush=True)


def again(folder: Path, options: argparse.Namespace, common: list[str], environment: dict[str, str]) -> None:
    """A first question, the same again, and another one about the same photographs; rclip's, if it is there; the start of torch."""
    photographs = folder / "small"
    make_photographs(photographs, options.number)
    for file in photographs.iterdir():
        os.utime(file, (10**9, 10**9))
    time.sleep(3)  # files that changed a moment ago may change again: nothing would be kept for them
    ask = [CZSL, "predict", str(photographs), *common]
    rclip = [[options.rclip, words] for words in ("wet dog", "dry cat")] if options.rclip else []
    if rclip:
        models, own = Path(os.environ["RCLIP_DATADIR"]).resolve(), folder / "rclip"
        own.mkdir()
        for model in models.iterdir():
            if model.is_dir():  # the models, but not what it remembers of photographs
                (own / model.name).symlink_to(model)
        environment = {**environment, "RCLIP_DATADIR": str(own)}
    first = {"first question": measured(ask, folder, environment)}
    if rclip:
        first["rclip, first question"] = measured(rclip[0], photographs, environment)
    ways: dict[str, tuple[list[str], Path]] = {
        "the same question again": (ask, folder),
        "another question": (ask, folder),
        "only `import torch`": ([sys.executable, "-c", "import torch"], folder),
    }
    if rclip:
        ways["rclip, another question"] = (rclip[1], photographs)
    rows = []
    for n in range(options.rounds):
        ways["another question"] = ([*ask, "--bias", str(n + 1)], folder)  # one that was not asked before
        rows.append([measured(command, where, environment) for command, where in ways.values()])
    for name, (wall, cpu) in first.items():
        print(f"| {options.number} of 500 x 375, {name} | {wall:.2f} s | {cpu:.2f} s | |")
    for i, name in enumerate(ways):
        wall, cpu = np.median(np.array(rows)[:, i], axis=0)
        print(f"| {name} | {wall:.2f} s | {cpu:.2f} s | |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=200, help="photographs of 12 megapixels")
    parser.add_argument("--number", type=int, default=500, help="photographs of web size")
    parser.add_argument("--before", help="czsl of another checkout, to compare with")
    parser.add_argument("--only", choices=["large", "again"], help="one part")
    parser.add_argument("--weights", default="tiny", help="tiny, vit-b-16 (random weights of that size), or a file")
    parser.add_argument("--rclip", help="the program rclip, with its models in $RCLIP_DATADIR, to compare with")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "CZSL_CACHE": str(folder / "cache")}
        clip = "tiny"
        if Path(options.weights).is_file():
            clip = str(Path(options.weights).resolve())
        elif options.weights != "tiny":
            clip = str(folder / "clip.pt")
            make_weights(folder / "clip.pt")
        for kind, words in WORDS.items():
            (folder / f"{kind}.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        lists = ["--attributes", str(folder / "attributes.txt"), "--objects", str(folder / "objects.txt")]
        common = ["--zero-shot", "--clip", clip, *lists, "--engine", "local", "--json"]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        print(f"{platform.processor() or platform.machine()}, {cores} cores, CLIP {options.weights}, {options.rounds} rounds\n")
        print("| photographs | wall | processor | before : this |\n| --- | --- | --- | --- |")
        for part, work in (("large", large), ("again", again)):
            if options.only in (None, part):
                work(folder, options, common, environment)


if __name__ == "__main__":
    main()
