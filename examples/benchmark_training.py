"""Measure the parts of a training step, and the other figures of docs/performance.md; shares and ratios of one run.

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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmark_clus_pro import space_of, vit_l_14

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
    if method.needs_initialisation:
        with torch.no_grad():
            features = torch.cat(
                [method.image_features({"images": pixels.batch(r)}) for r in np.array_split(np.arange(len(split)), 40)]
            )
        method.initialise(features, torch.from_numpy(split.attr), torch.from_numpy(split.obj))
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
    """Time saved by the cache: decoding and resizing a batch against copying it."""
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


def bytes_kept(method: Method, action: Callable[[], object]) -> int:
    """Bytes of tensors that an action keeps for the backward pass, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in [*method.clip.parameters(), *method.clip.buffers(), *method.parameters()]}
    kept: dict[int, int] = {}
    held = []  # so that no address is used twice

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = action()
    del out
    return sum(kept.values())


def kept_for_backward(precision: str) -> None:
    """Tensors that a block of ViT-L/14 keeps for the backward pass of ClusPro's step, counted from autograd."""
    word, images_kept = 2 if precision == "bfloat16" else 4, []
    for layers in (2, 3):  # the last one computes only the class token, so the difference is a full block
        clip = vit_l_14(layers)
        method = build("clusPro", space_of("mit-states"), clip, {}).train()
        clip.compute_in(precision)
        batch = {"images": torch.randint(0, 256, (4, 3, clip.image_size, clip.image_size), dtype=torch.uint8)}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            images_kept.append(bytes_kept(method, lambda: method.image_features(batch)))  # noqa: B023
    tokens = (clip.image_size // int(clip.architecture["patch"])) ** 2 + 1
    block = (images_kept[1] - images_kept[0]) / (4 * tokens * clip.visual.width * word)
    row(f"kept by an image's block, {precision}, in streams", f"{block:.1f}")
    space, pairs = method.space, method.train_pairs
    prompts = len(pairs) + space.num_attributes + space.num_objects
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        text = bytes_kept(method, lambda: method.encode_compositions(pairs))
    per_prompt = text / (prompts * len(clip.text.blocks) * clip.text.width * word)
    row(f"kept by a prompt's block, {precision}, in widths", f"{per_prompt:.1f}")


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
    for precision in ("float32", "bfloat16"):
        kept_for_backward(precision)


if __name__ == "__main__":
    main()
