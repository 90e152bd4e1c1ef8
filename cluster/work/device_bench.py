"""Throughput and memory of a device at the size of a real model with random weights: encoding, evaluation and training steps."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cluster.work.comm import Group
from cluster.work.scoring import reduce_split
from czsl.clip.backbone import Clip
from czsl.clip.captured import Graphs, replayed_passes
from czsl.clip.compiled import PLAIN, Use, compiled_functions, use_of
from czsl.clip.loading import load_clip
from czsl.compositions import CompositionSpace
from czsl.errors import CzslError
from czsl.evaluation import Candidates
from czsl.precision import fitting
from czsl.runs.optimizers import make_optimizer
from methods.building import build
from methods.features import TextFeatures

# Attributes, objects and training pairs of the published datasets, and the images of a step.
SPACES = {"mit-states": (115, 245, 1262, 64), "cgqa": (413, 674, 5592, 16)}
METHODS = ("csp", "clusPro", "troika", "msci")
# Dense bfloat16 peaks in operations a second, from the makers' data sheets (SXM where there are several).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "L4": 121e12}
REPEATS = 3
EVALUATED, EVAL_BATCH = 256, 64  # images of the measured evaluation, and of a batch of it


@dataclass(frozen=True)
class Row:
    """One measurement; None if the device cannot tell. ``launches``, ``waits`` and ``copies`` are of one call."""

    work: str
    images: int
    images_per_s: float | None
    share_of_peak: float | None = None
    launches: int | None = None
    waits: int | None = None
    copies: int | None = None
    gpu_bytes: int | None = None
    error: str = ""


def space_of(name: str) -> CompositionSpace:
    """A label space of a published dataset's size, with made-up names."""
    A, O, P, _ = SPACES[name]
    places = np.random.default_rng(0).permutation(A * O)[:P]
    pairs = np.stack([places // O, places % O], axis=1)
    none = np.empty((0, 2), np.int64)
    return CompositionSpace(tuple(f"attribute{i}" for i in range(A)), tuple(f"object{i}" for i in range(O)), pairs, none, none)


def step_on(method: Any, device: torch.device, images: int, precision: str, use: Use = PLAIN) -> Callable[[], None]:
    """A training step with its optimizer, ready to be called; ``use``: what ``compile=auto`` does in it."""
    space, size = method.space, method.clip.image_size
    rows = np.arange(images) % len(space.train_pairs)
    pairs = torch.from_numpy(space.train_pairs[rows].copy())
    torch.manual_seed(0)
    batch = {
        "images": torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, device=device),
        "attr": pairs[:, 0],
        "obj": pairs[:, 1],
        "pair": torch.from_numpy(rows),
        "index": torch.arange(images),
    }
    if getattr(method, "prototypes", None) is not None:  # what the initialisation from a dataset would give
        bank = method.prototypes.bank
        bank.copy_(nn.functional.normalize(torch.randn_like(bank), dim=-1))
    method.begin_epoch(0)
    method.comm.batch = images
    optimizer = make_optimizer("adam", [p for p in method.parameters() if p.requires_grad], 1e-4, 1e-5)
    graphs = Graphs(device) if use.replayed else None

    def step() -> None:
        faster = compiled_functions(use.compiled), replayed_passes(graphs)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"), faster[0], faster[1]:
            loss = torch.stack(list(method.training_step(batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def evaluation_on(method: Any, device: torch.device, images: int) -> Callable[[], None]:
    """An evaluation of images with kept features against all compositions (open world), ready to be called.

    Scores are computed in tiles and reduced to a few numbers per image, as ``czsl evaluate --open-world`` does; random features.
    """
    space = method.space
    candidates = Candidates.build(space, open_world=True)
    torch.manual_seed(0)
    texts_PD, images_BD = (nn.functional.normalize(torch.randn(n, method.clip.dim), dim=-1).to(device) for n in
                           (len(candidates.pairs), images))  # fmt: skip
    text = TextFeatures(torch.from_numpy(candidates.pairs[candidates.order]).to(device), texts_PD)
    labels = space.train_pairs[np.arange(images) % len(space.train_pairs)]
    split = SimpleNamespace(pairs=labels, name="random")
    source: Any = SimpleNamespace(split=split, image_features=lambda rows: images_BD[torch.from_numpy(rows).to(device)])

    def evaluate() -> None:
        reduce_split(method, source, candidates, np.arange(images), min(images, EVAL_BATCH), Group(), text=text)

    return evaluate


def measure(work: str, images: int, action: Callable[[], None], device: torch.device) -> Row:
    """Time an action after two calls that warm it up, count what one call starts, and note the largest memory."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with FlopCounterMode(display=False) as flops:
        action()
    action()

    def finished() -> float:
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = finished()
    for _ in range(REPEATS):
        action()
    seconds = (finished() - began) / REPEATS
    name = torch.cuda.get_device_name(device) if cuda else ""
    peak = next((value for card, value in PEAKS.items() if card in name), None)
    share = flops.get_total_flops() / seconds / peak if peak else None
    launches, waits, copies = _counted(action) if cuda else (None, None, None)
    used = torch.cuda.max_memory_allocated(device) if cuda else None
    return Row(work, images, round(images / seconds, 2), share, launches, waits, copies, used)


def _counted(action: Callable[[], None]) -> tuple[int, ...]:
    """Kernels started, waits of the host and copies that one call starts, from torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        action()
    names = [event.name for event in found.events()]
    kinds = (("LaunchKernel", "GraphLaunch"), ("StreamSynchronize",), ("MemcpyAsync",))
    return tuple(sum(any(word in name for word in words) for name in names) for words in kinds)


def bench(device: torch.device, model: str = "ViT-L-14", clip: Clip | None = None) -> Iterator[Row]:
    """Rows for image encoding, for an open-world evaluation on each label space, and for each method's training step there.

    What does not fit is a row with an error.
    """
    precision = fitting(device)
    own = clip
    if own is None:
        own = load_clip(model, "random")
    own = own.to(device)
    own.compute_in(precision)
    faster = use_of("auto", device, recomputes=False)
    size = own.image_size
    images = 64
    batch = torch.zeros(images, 3, size, size, dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def encode() -> None:
        own.visual(own.normalise(batch))

    todo: list[tuple[str, int, Callable[[], Callable[[], None]]]] = [("encoding images", images, lambda: encode)]
    for space_name in SPACES:

        def make_evaluation(space_name: str = space_name) -> Callable[[], None]:
            return evaluation_on(build("csp", space_of(space_name), own, {}).to(device), device, EVALUATED)

        todo.append((f"evaluation, open world, {space_name}", EVALUATED, make_evaluation))
    for space_name, (*_, count) in SPACES.items():
        for name in METHODS:

            def make(name: str = name, space_name: str = space_name, count: int = count, use: Use = PLAIN) -> Callable[[], None]:
                method = build(name, space_of(space_name), own, {}).to(device)
                own.compute_in(precision)
                return step_on(method, device, count, precision, use)

            todo.append((f"training step, {name}, {space_name}", count, make))
            if name == "clusPro" and faster.replayed:
                todo.append((f"training step, {name}, {space_name}, compile=auto", count, functools.partial(make, use=faster)))
    for work, count, make_action in todo:
        try:
            yield measure(work, count, make_action(), device)
        except torch.OutOfMemoryError as error:
            yield Row(work, count, None, error=" ".join(str(error).split())[:200])
        except CzslError as error:
            yield Row(work, count, None, error=f"{error.what} {error.why}".strip())
        if device.type == "cuda":
            torch.cuda.empty_cache()
