"""What a training step is made of, and the other figures of docs/performance.md; shares and ratios of one run.

python examples/benchmark_training.py                                  # everything on built-in data
python examples/benchmark_training.py --source DIR                     # and the import of a dataset in a published layout
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cluster.work.estimate import KEPT_PER_BLOCK
from czsl.clip.loading import load_clip
from czsl.data.batches import PixelCache, epoch_batches
from czsl.data.table import open_data
from methods.building import build
from methods.method import Method

BATCH = 64


def row(name: str, value: str) -> None:
    """A line of the report."""
    print(f"| {name} | {value} |", flush=True)


def start_of_the_command(repeats: int = 5) -> None:
    """Seconds of `czsl --help`, median."""
    czsl = Path(sys.executable).parent / "czsl"
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([czsl, "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    row("`czsl --help`", f"{np.median(times):.2f} s")


def import_of(source: Path) -> None:
    """Wall seconds and peak memory of `czsl data import`."""
    czsl = Path(sys.executable).parent / "czsl"
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([czsl, "data", "import", source, f"{folder}/out"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    row(f"`czsl data import` of {source.name}", f"{seconds:.1f} s, peak {peak:.0f} MiB")


def parts_of_a_step(method: Method, pixels: PixelCache, steps: int) -> None:
    """Shares of loading, augmentation and computation in a training step of images in batches of 64."""
    space, split = method.space, pixels.split
    place = space.locate(split.pairs, space.train_pairs)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-4)
    method.train()
    if method.wants_first_pass:
        with torch.no_grad():
            features = torch.cat(
                [method.image_features({"images": pixels.batch(r)}) for r in np.array_split(np.arange(len(split)), 40)]
            )
        method.first_pass(features, torch.from_numpy(split.attr), torch.from_numpy(split.obj))
    spent = {"copy": 0.0, "augment": 0.0, "compute": 0.0}
    batches = epoch_batches(0, 0, len(split), BATCH)[: steps + 2]
    for i, rows in enumerate(batches):
        began = time.perf_counter()
        pixels.batch(rows)
        copied = time.perf_counter()
        images = pixels.batch(rows, (0, 0))
        augmented = time.perf_counter()
        labels = {k: torch.from_numpy(v[rows]) for k, v in (("attr", split.attr), ("obj", split.obj), ("pair", place))}
        loss = torch.stack(list(method.training_step({"images": images, **labels}).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i >= 2:  # the first two warm up
            spent["copy"] += copied - began
            spent["augment"] += augmented - copied - (copied - began)
            spent["compute"] += time.perf_counter() - augmented
    total = sum(spent.values())
    for part, seconds in spent.items():
        row(f"{method.title} on tiny, batch {BATCH}: {part}", f"{100 * seconds / total:.1f} % of a step")
    row("images a second", f"{BATCH * (len(batches) - 2) / total:.0f}")


def decoding(pixels: PixelCache) -> None:
    """What the cache saves: decoding and resizing a batch against copying it."""
    from czsl.data.images import decode
    from czsl.data.pixels import clip_pixels

    contents = [content for _, content in pixels.split.iter_images(0, BATCH)]
    rows = np.arange(BATCH)
    times = []
    for work in (lambda: [clip_pixels(decode(c), pixels.size) for c in contents], lambda: pixels.batch(rows)):
        work()
        began = time.perf_counter()
        for _ in range(5):
            work()
        times.append(time.perf_counter() - began)
    row("decoding and resizing a batch against copying it from the cache", f"{times[0] / times[1]:.0f} : 1")


def kept_for_backward(method: Method) -> None:
    """Tensors of the stream's width that a block keeps for the backward pass, counted from autograd."""
    clip = method.clip
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in frozen:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    frozen = {p.untyped_storage().data_ptr() for p in [*clip.parameters(), *clip.buffers(), *method.parameters()]}
    method.train()
    images = torch.randint(0, 256, (16, 3, clip.image_size, clip.image_size), dtype=torch.uint8)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x) or pack(x), lambda x: x):
        method.image_features({"images": images})
    tokens = (clip.image_size // int(clip.architecture["patch"])) ** 2 + 1
    stream = 16 * tokens * clip.visual.width * 4
    counted = sum(kept.values()) / stream / len(clip.visual.blocks)
    row(
        "kept for backward a block, in tensors of the stream's width",
        f"{counted:.1f} (the estimate of --dry-run takes {KEPT_PER_BLOCK})",
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, seed 0\n\n| what | value |\n| --- | --- |"
    )
    start_of_the_command()
    if options.source:
        import_of(options.source)
    data = open_data("toy")
    method = build("clusPro", data.space, load_clip("tiny"), {"adapter_dim": 16})
    pixels = PixelCache(data.split("train"), method.clip.image_size, method.prepare)
    decoding(pixels)
    parts_of_a_step(method, pixels, options.steps)
    kept_for_backward(method)


if __name__ == "__main__":
    main()
