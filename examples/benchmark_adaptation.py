"""Cost of an adaptation at the size of MIT-States' closed world, from drawn features: milliseconds per image and memory.

    python examples/benchmark_adaptation.py tomcat tda --threads 2
    python examples/benchmark_adaptation.py tomcat --whole --threads 2

An image costs the more, the more candidates have cache entries: it is timed at several numbers of these, and the time of the whole stream
follows from the number that each image of it meets. ``--whole`` runs the stream itself.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch

from methods.adaptation.adaptation import Adaptation
from methods.adaptation.cache import ClassCache
from methods.adaptation.stream import start

PAIRS, IMAGES, TEST_PAIRS, DIM, SCALE = 1962, 12995, 800, 768, 100.0
EVERY, PROBED = 1000, 20


def drawn(images: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit image features [N, D], text features [P, D] and the candidate of each image. Texts share a direction, as CLIP's do."""
    draw = torch.Generator().manual_seed(0)
    text_PD = torch.nn.functional.normalize(
        torch.randn(PAIRS, DIM, generator=draw) + 1.5 * torch.randn(DIM, generator=draw), dim=1
    )
    label_N = torch.randint(TEST_PAIRS, (images,), generator=draw)
    images_ND = text_PD[label_N] + noise * torch.randn(images, DIM, generator=draw) / DIM**0.5
    return torch.nn.functional.normalize(images_ND, dim=1), text_PD, label_N


def cache_of(state: Adaptation) -> ClassCache:
    """The cache of images that the state keeps for their own candidates."""
    return state.cache if hasattr(state, "cache") else state.positive


def met(labels_N: list[int]) -> np.ndarray:
    """Candidates with entries that each image meets, if it enters the cache of its most probable one."""
    seen: set[int] = set()
    return np.array([len(seen) for label in labels_N if seen.add(label) is None])


def probe(name: str, given: dict, images_ND: torch.Tensor, text_PD: torch.Tensor) -> None:
    """Time images at several numbers of candidates with entries, and estimate the stream."""
    nearest_N = (images_ND @ text_PD.T).argmax(1).tolist()
    sizes, costs = [1, 250, 500, 1000, 1500, 1900], []
    for size in sizes:
        state = start(name, text_PD, SCALE, given)
        cache = cache_of(state)
        for label in range(size):
            cache.add(label, images_ND[label], 1.0)
        state.shifts(images_ND[:2])
        before = time.perf_counter()
        state.shifts(images_ND[2 : 2 + PROBED])
        costs.append((time.perf_counter() - before) / PROBED)
        print(f"  {name}, {len(cache):>5,} candidates with entries: {1000 * costs[-1]:6.1f} ms per image", flush=True)
    classes_N = met(nearest_N)
    total = float(np.interp(classes_N, sizes, costs).sum())
    print(
        f"{name}: about {total:.0f} s for the stream, whose last image meets {classes_N[-1]:,} candidates with entries",
        flush=True,
    )


def whole(name: str, given: dict, images_ND: torch.Tensor, text_PD: torch.Tensor) -> None:
    """Run the stream."""
    state, begin = start(name, text_PD, SCALE, given), time.perf_counter()
    for part in images_ND.split(EVERY):
        before = time.perf_counter()
        state.shifts(part)
        spent = (time.perf_counter() - before) / len(part)
        entries = f"{len(cache_of(state)):,} candidates with entries"
        print(f"  {name} {state.images:>6,}: {1000 * spent:6.1f} ms per image, {entries}", flush=True)
    print(f"{name}: {time.perf_counter() - begin:.0f} s for the stream", flush=True)


def main() -> None:
    """Print lines per adaptation, and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--noise", type=float, default=3.5)
    parser.add_argument("--recipe")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images_ND, text_PD, label_N = drawn(options.images, options.noise)
    right = float(((images_ND @ text_PD.T).argmax(1) == label_N).float().mean())
    print(f"{options.images:,} images x {PAIRS:,} candidates x {DIM}, {options.threads} threads, top-1 {100 * right:.0f} %")
    for name in options.names:
        given = {"recipe": options.recipe} if options.recipe else {}
        (whole if options.whole else probe)(name, given, images_ND, text_PD)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory of the process: {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
