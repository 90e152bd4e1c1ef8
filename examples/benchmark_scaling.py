"""Predict the costs of a training step of ClusPro on several GPUs: ``python examples/benchmark_scaling.py [--auto]``.

It is a model from counted work and stated rates, not a measurement. ``benchmark_wire.py`` computes and counts what workers send,
``benchmark_launches.py`` counts kernels, and ``benchmark_workers.py`` measures real trainings with several workers.

Letters: B images, P pairs, A attributes, O objects, D joint width.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmark_clus_pro import SPACES, D, K, random_batch, space_of, vit_l_14
from benchmark_launches import narrow_clip, transport_in_one_kernel
from benchmark_launches import steps as launches_of
from benchmark_wire import BATCHES, WORKERS, buckets_of, messages, model_of, table, without_memory
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from czsl.clip.vision import REPLAYED_PARTS
from methods.building import build
from methods.clus_pro.model import ClusProText
from methods.features import Targets
from methods.parts.comm import Communicator

VISION_LAYERS = 24
ADAM_LAUNCHES = 2  # of the fused optimizer, as benchmark_launches.py counts them
GATHERING_LAUNCHES = 2  # buffer and copy of a gathering


# -- work of a step, counted ---------------------------------------------------------------------------------------
@dataclass
class Work:
    """Floating point operations of matrix products, and kernels started; ``graphs``: parts that are replayed, forth and back."""

    flops: float = 0.0
    launches: int = 0
    graphs: int = 0


def work_of(action: Callable[[], Any]) -> Work:
    """Count the operations of an action."""
    with FlopCounterMode(display=False) as flops:
        action()
    return Work(flops.get_total_flops())


class OneOf(Communicator):
    """One worker of several, whose gathering brings zeros: for counting its own share."""

    def __init__(self, world: int):
        self.world = world

    def gather(self, x: Tensor, rows: int) -> Tensor:
        """All rows, those of the other workers zero."""
        return x if self.world == 1 else torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


@dataclass
class Step:
    """Work of a training step by part: of one image, of a worker's text at each number of workers, and what every worker repeats.

    ``backward`` is the share of the image tower's work that its backward pass is.
    """

    image: Work
    backward: float
    text: dict[int, Work]
    repeated: Work
    transport: Work
    trainables: int
    adapters: int


def work_of_a_step(name: str, clip: Any, small: Any) -> Step:
    """Counted from the real model, forward and backward; ``clip`` without memory, ``small`` with few layers and memory."""
    method, *trained = model_of(name, clip)
    image = torch.empty(1, 3, 224, 224, dtype=torch.uint8, device="meta")
    image_work = work_of(lambda: method.image_features({"images": image}).sum().backward())
    backward = 1 - work_of(lambda: method.image_features({"images": image})).flops / image_work.flops
    pairs = torch.from_numpy(method.space.train_pairs.copy())

    def encode() -> None:
        text = method.encode_compositions(pairs)
        torch.cat([text.pair, text.attribute, text.object]).sum().backward()  # type: ignore[list-item]

    text = {}
    for workers in WORKERS:
        method.comm = OneOf(workers)
        text[workers] = work_of(encode)
    return Step(image_work, backward, text, *repeated_work(name, small), *trained)


def repeated_work(name: str, small: Any) -> tuple[Work, Work]:
    """Work of every worker on the whole global batch, and of its transport; on random features."""
    torch.manual_seed(0)
    space, B = space_of(name), BATCHES[name]
    method: Any = build("clusPro", space, small, {"adapter_dim": 0}).train()
    bank = method.prototypes.bank
    bank.copy_(nn.functional.normalize(torch.randn_like(bank), dim=-1))
    batch = random_batch(space, B)
    rows = [
        nn.functional.normalize(torch.randn(n, D), dim=-1).requires_grad_() for n in (len(space.train_pairs), *SPACES[name][:2])
    ]
    text = ClusProText(torch.from_numpy(space.train_pairs.copy()), *rows, whole=rows[0])  # type: ignore[misc]
    features = torch.randn(B, D, requires_grad=True)
    targets = Targets(batch["attr"], batch["obj"], batch["pair"])

    def losses() -> None:
        torch.stack(list(method.losses(method.embed_images(features), text, targets).values())).sum().backward()

    return work_of(losses), work_of(lambda: method.prototypes.step(torch.randn(2, B, D), batch["attr"], batch["obj"]))


# -- prediction ----------------------------------------------------------------------------------------------------
@dataclass
class Machine:
    """Assumed rates of nodes of 8 H100-class GPUs; seconds, bytes, operations."""

    flops: float = 0.4 * 989e12  # 40 % of the dense bfloat16 peak
    flops_32: float = 0.4 * 67e12  # float32, for what is repeated
    memory: float = 3.35e12
    launch_s: float = 5e-6
    graph_s: float = 10e-6  # start of a CUDA graph
    in_graph_s: float = 1.5e-6  # from one small kernel of a graph to the next
    per_node: int = 8
    nvlink: float = 0.8 * 450e9  # a GPU, one direction
    collective_s: float = 20e-6  # start of a collective
    hop_inside_s: float = 2e-6

    def seconds(self, work: Work, times: float = 1.0, rate: float | None = None) -> float:
        """The longer of computing and starting kernels; no work takes no time."""
        starts = (
            2 * work.graphs * self.graph_s + work.launches * self.in_graph_s if work.graphs else work.launches * self.launch_s
        )
        return max(work.flops * times / (rate or self.flops), starts) if times else 0.0


@dataclass
class Network:
    """Between nodes, one connection a node."""

    name: str
    bytes_per_s: float
    hop_s: float


NETWORKS = (Network("100 Gb/s Ethernet", 0.8 * 12.5e9, 25e-6), Network("400 Gb/s InfiniBand", 0.8 * 50e9, 5e-6))


def communication(step: Step, name: str, workers: int, machine: Machine, network: Network, images: float) -> float:
    """Seconds of a step's collectives in rings, of gradients what is left when the backward pass ends.

    Gradients of what comes after the image tower are there before its backward pass, those of its adapters as it proceeds: with each
    part that is replayed, or each block. ``images``: seconds of the image tower.
    """
    if workers == 1:
        return 0.0
    A, O, P = SPACES[name]
    nodes = -(-workers // machine.per_node)
    inside, between = workers - nodes, nodes - 1
    ring = inside * machine.hop_inside_s + between * network.hop_s
    speed = machine.nvlink if nodes == 1 else network.bytes_per_s
    buckets, parts = buckets_of(step.trainables), step.image.graphs or VISION_LAYERS
    backward, before = images * step.backward, step.trainables - step.adapters
    sent, come, free = 0.0, 0, 0.0  # seconds of gatherings, numbers whose gradients came, when the network is free
    for m in messages(BATCHES[name], P, A, O, D, buckets, workers, text_word=2):
        seconds = machine.collective_s + ring * (1 + m.reduces) + m.wire(workers) / speed
        if not m.reduces:
            sent += seconds
            continue
        come = min(come + m.nbytes // 4, step.trainables)
        ready = math.ceil(parts * max(come - before, 0) / step.adapters) / parts * backward
        free = max(free, ready) + seconds
    return sent + max(free - backward, 0.0)


def predicted(step: Step, name: str, workers: int, machine: Machine, network: Network) -> dict[str, float]:
    """Seconds of a step by part on the slowest worker."""
    share = -(-BATCHES[name] // workers)
    optimizer = max(step.trainables * 4 * 7 / machine.memory, ADAM_LAUNCHES * machine.launch_s)
    if workers > 1:  # gradients are joined and divided
        optimizer += max(2 * step.trainables * 4 * 2 / machine.memory, 2 * len(buckets_of(step.trainables)) * machine.launch_s)
    images = machine.seconds(step.image, share)
    gathering = GATHERING_LAUNCHES * machine.launch_s if workers > 1 else 0.0
    return {
        "images": images,
        "text": machine.seconds(step.text[workers]) + gathering,
        "repeated": machine.seconds(step.repeated, rate=machine.flops_32),
        "optimizer": optimizer,
        "communication": communication(step, name, workers, machine, network, images),
    }


def count_kernels(steps: dict[str, Step], auto: bool) -> None:
    """Write into each step the kernels that `benchmark_launches.py` counts in a real one, with or without ``compile=auto``."""
    transport_in_one_kernel()
    narrow, suffix = narrow_clip(), "compiled " if auto else ""
    for name, step in steps.items():
        found = {part: c.launches for part, c in launches_of("clusPro", name, narrow, "bfloat16", auto).items()}
        images, text = found[f"{suffix}images"], found[f"{suffix}text"]
        step.image.launches, step.image.graphs = images, REPLAYED_PARTS * auto
        step.transport.launches = found["transport"]
        for work in step.text.values():
            work.launches, work.graphs = text, int(auto)
        step.repeated.launches = found["step"] - found["images"] - found["text"] - found["optimizer"]


def predict(machine: Machine, auto: bool = False) -> None:
    """Tables of counted work, of predicted milliseconds and of predicted efficiency."""
    clip, small = without_memory(), vit_l_14(vision_layers=1)
    steps = {name: work_of_a_step(name, clip, small) for name in BATCHES}
    count_kernels(steps, auto)
    one = next(iter(steps.values())).image
    print(f"an image, forward and backward: {one.flops / 1e12:.3f} TFLOP; launches of the image tower: {one.launches}\n")
    head = [
        "dataset",
        "images, TFLOP",
        "text, TFLOP",
        "text launches",
        "repeated, TFLOP",
        "repeated launches",
        "of these transport",
    ]
    table(head, [[n, s.image.flops * BATCHES[n] / 1e12, s.text[1].flops / 1e12, s.text[1].launches, s.repeated.flops / 1e12,
                  s.repeated.launches, s.transport.launches] for n, s in steps.items()])  # fmt: skip
    print(f"Prediction, not measurement (a launch: {machine.launch_s * 1e6:g} us); milliseconds of a step\n")
    rows: list[list[Any]] = []
    whole: dict[str, float] = {}
    for name, step in steps.items():
        for workers in WORKERS:
            by = [predicted(step, name, workers, machine, network) for network in NETWORKS]
            seconds = [sum(parts.values()) for parts in by]
            whole[name] = seconds[0] if workers == 1 else whole[name]
            efficiency = [f"{whole[name] / (workers * s):.0%}" for s in seconds]
            parts = [f"{1e3 * v:.1f}" for k, v in by[0].items() if k != "communication"]
            rows.append([name, workers, *parts, *(f"{1e3 * b['communication']:.1f}" for b in by),
                         f"{BATCHES[name] / seconds[-1]:.0f}", *efficiency])  # fmt: skip
    networks = [n.name for n in NETWORKS]
    table(["dataset", "GPUs", "images", "text", "repeated", "optimizer", *(f"sent, {n}" for n in networks), "images/s (InfiniBand)",
           *(f"efficiency, {n}" for n in networks)], rows)  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch-us", type=float, default=5.0, help="assumed microseconds of a kernel's start")
    parser.add_argument(
        "--in-graph-us", type=float, default=1.5, help="assumed microseconds from kernel to kernel in a CUDA graph"
    )
    parser.add_argument("--auto", action="store_true", help="with compile=auto (needs a C++ compiler)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, K = {K}\n", flush=True)
    predict(Machine(launch_s=options.launch_us * 1e-6, in_graph_s=options.in_graph_us * 1e-6), options.auto)


if __name__ == "__main__":
    main()
