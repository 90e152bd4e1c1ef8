"""The memory of a training step as `czsl train --dry-run` estimates it, against the tensors of a real step on a CPU.

    python examples/benchmark_memory.py
    python examples/benchmark_memory.py --methods csp troika --batches 8 --precisions float32

Counted are the storages that autograd keeps for the backward pass, each once, without weights (torch.autograd.graph.saved_tensors_hooks).
The peak is that of all tensors that a step makes, forward and backward, with gradients (no weights, no optimizer).
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accumulate_memory import Living
from benchmark_training import bytes_kept
from torch import nn

from cluster.work.kept import step_bytes
from czsl.clip.backbone import Clip
from czsl.clip.compat import import_open_clip
from czsl.clip.loading import load_clip
from czsl.compositions import CompositionSpace
from czsl.runs.config import RunConfig
from methods.building import build
from methods.method import Method

METHODS = ("csp", "coop", "troika", "clusPro", "msci", "dfsp", "caila", "vp-cmjl", "clip-pzsl")
SPACES = {200: (20, 30), 800: (40, 60)}  # attributes and objects of spaces with this many training pairs
BATCHES = (8, 32)
PRECISIONS = ("float32", "bfloat16")


def middle() -> Clip:
    """A CLIP between the built-in one and a real one, with random weights: six layers, 37 visual tokens of width 256."""
    vision = {"image_size": 96, "patch_size": 16, "width": 256, "layers": 6, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 6}
    torch.manual_seed(0)
    return Clip(import_open_clip().CLIP(256, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval(), "middle")


def space_of(pairs: int) -> CompositionSpace:
    """A label space with made-up names."""
    A, O = SPACES[pairs]
    places = np.random.default_rng(0).permutation(A * O)[:pairs]
    none = np.empty((0, 2), np.int64)
    names = tuple(f"attribute{i}" for i in range(A)), tuple(f"object{i}" for i in range(O))
    return CompositionSpace(*names, np.stack([places // O, places % O], axis=1), none, none)


def batch_of(method: Method, images: int) -> dict[str, torch.Tensor]:
    """Noise with labels; of a frozen tower its features, which training keeps."""
    size, rows = method.clip.image_size, np.arange(images) % len(method.space.train_pairs)
    pairs = torch.from_numpy(method.space.train_pairs[rows].copy())
    batch = {"images": torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)}
    if method.frozen_images:
        with torch.no_grad():
            batch = {"features": method.image_features(batch)}
    labels = {"attr": pairs[:, 0], "obj": pairs[:, 1], "pair": torch.from_numpy(rows), "index": torch.arange(images)}
    return {**batch, **labels}


def measured(method: Method, images: int, precision: str) -> tuple[int, int]:
    """Bytes that a real step keeps for its backward pass, and the peak of all tensors that it makes."""
    if getattr(method, "prototypes", None) is not None:  # what the first pass over a dataset would find
        bank: Any = method.prototypes.bank  # type: ignore[union-attr]
        bank.copy_(nn.functional.normalize(torch.randn_like(bank), dim=-1))
    method.begin_epoch(0)
    method.comm.batch = images
    batch = batch_of(method, images)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return torch.stack(list(method.training_step(batch).values())).sum()

    kept = bytes_kept(method, loss)
    with Living() as living:
        loss().backward()
    return kept, living.peak


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--pairs", nargs="+", type=int, default=list(SPACES))
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    towers: dict[str, Callable[[], Clip]] = {"tiny": lambda: load_clip("tiny"), "middle": middle}  # type: ignore[dict-item]
    print(f"{platform.machine()}, torch {torch.__version__}, seed 0\n")
    print("| method | CLIP | precision | counted | estimate / counted | peak / estimate with gradients |\n" + "| --- " * 6 + "|")
    for name in options.methods:
        for tower, make in towers.items():
            for precision in options.precisions:
                counts, ratios, peaks = [], [], []
                for pairs in options.pairs:
                    for images in options.batches:
                        torch.manual_seed(0)
                        method = build(name, space_of(pairs), make(), {})
                        config = RunConfig(method=name, batch=images, precision=precision)
                        found = step_bytes(method, config, precision)
                        method.clip.compute_in(precision)
                        kept, peak = measured(method, images, precision)
                        counts.append(kept / 2**20)
                        ratios.append(found.activations / kept)
                        peaks.append(peak / (found.activations + found.trained))
                cells = [f"{min(counts):,.1f} to {max(counts):,.1f} MiB"]
                cells += [f"{min(x):.2f} to {max(x):.2f}" for x in (ratios, peaks)]
                print(f"| {name} | {tower} | {precision} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
