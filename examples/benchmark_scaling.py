"""Compute the costs of more workers: ``python examples/benchmark_scaling.py [wire] [count] [predict]``.

wire      bytes a training step of ClusPro moves, from shapes
count     the same counted in real processes, next to the formula's result
predict   cost of a step by part on GPUs: a model from counted work and stated rates, not a measurement

``benchmark_workers.py`` measures real trainings with several workers.

Letters: B images, P pairs, A attributes, O objects, D joint width.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from benchmark_clus_pro import SPACES, D, K, random_batch, space_of, vit_l_14
from benchmark_launches import narrow_clip, transport_in_one_kernel
from benchmark_launches import steps as launches_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cluster.work.comm import Group
from cluster.work.gradients import BUCKET_BYTES, GradientAverage
from czsl.clip.vision import REPLAYED_PARTS
from methods.building import build
from methods.clus_pro.model import ClusPro, ClusProText
from methods.features import Targets
from methods.parts.comm import Communicator

BATCHES = {"mit-states": 64, "ut-zappos": 128, "cgqa": 16}
WORKERS = (1, 4, 16, 64)
VISION_LAYERS = 24
ADAM_LAUNCHES = 2  # of the fused optimizer, as benchmark_launches.py counts them
GATHERING_LAUNCHES = 2  # buffer and copy of a gathering


# -- bytes on the wire ---------------------------------------------------------------------------------------------
class Message(NamedTuple):
    """A collective of tensors: what a worker receives in a gathering, the length of the buffer in a reduction."""

    what: str
    nbytes: int
    reduces: bool = False

    def wire(self, workers: int) -> float:
        """Bytes that a worker receives; a ring moves a buffer that is reduced twice."""
        return self.nbytes * 2 * (workers - 1) / workers if self.reduces else self.nbytes


def messages(
    B: int, pairs: int, attributes: int, objects: int, dim: int, buckets: Sequence[int], workers: int, text_word: int = 4
) -> list[Message]:
    """The collectives of a training step, in their order; those of gradients run while the backward pass continues.

    ``buckets``: trained numbers whose gradients are sent together. ``text_word``: bytes of a number of a text embedding: 4, or 2 with
    ``precision=bfloat16``. Shares are padded to the largest.
    """
    if workers == 1:
        return []

    def gathered(what: str, rows: int, row_bytes: int) -> Message:
        return Message(what, (workers - 1) * -(-rows // workers) * row_bytes)

    text = gathered("text", pairs + attributes + objects, dim * text_word)
    *first, last = buckets
    flag = 1  # the request to stop travels with the last gradients
    gradients = [Message("gradients", 4 * n, reduces=True) for n in (*first, last + flag)]
    return [gathered("image features", B, dim * 4), text, *gradients]


def buckets_of(trainables: int) -> list[int]:
    """Trained numbers in buckets of the usual size; real ones end with a whole parameter."""
    size = BUCKET_BYTES // 4
    return [size] * (trainables // size) + [trainables % size]


class Model(NamedTuple):
    """The real model at ViT-L/14 shapes, without memory, its trainable numbers, and those of the image tower's adapters."""

    method: ClusPro
    trainables: int
    adapters: int


def model_of(name: str, clip: Any) -> Model:
    """ClusPro with the defaults for a label space of a benchmark's size."""
    with torch.device("meta"):
        method = build("clusPro", space_of(name), clip, {})
    trained, adapters = (sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (method, method.adapters))  # type: ignore[union-attr]
    return Model(method.train(), trained, adapters)  # type: ignore[arg-type]


def without_memory() -> Any:
    """ViT-L/14 as shapes without content."""
    with torch.device("meta"):
        return vit_l_14()


def table(head: list[str], rows: list[list[Any]]) -> None:
    """A Markdown table."""
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)
    print()


def wire() -> None:
    """Bytes a worker receives in a step, by part."""
    clip, rows = without_memory(), []
    for name, B in BATCHES.items():
        A, O, P = SPACES[name]
        trainables = model_of(name, clip).trainables
        for workers in WORKERS[1:]:
            parts: dict[str, float] = {}
            for m in messages(B, P, A, O, D, buckets_of(trainables), workers):
                parts[m.what] = parts.get(m.what, 0.0) + m.wire(workers) / 1e6
            total = sum(parts.values())
            rows.append(
                [name, B, f"{trainables:,}", workers, *(f"{v:.4f}" if v < 0.01 else f"{v:.2f}" for v in (*parts.values(), total))]
            )
    table(["dataset", "batch", "trainables", "workers", "image features, MB", "text", "gradients", "together"], rows)


# -- the same counted ----------------------------------------------------------------------------------------------
COUNTED = {"attributes": 5, "objects": 4, "pairs": 11, "dim": 32}
COUNTED_BUCKET_BYTES = 4096


def small_model() -> ClusPro:
    """ClusPro with adapters on a CLIP of two layers."""
    from czsl.clip.backbone import Clip
    from czsl.clip.compat import import_open_clip
    from czsl.compositions import CompositionSpace

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    clip = Clip(import_open_clip().CLIP(COUNTED["dim"], vision_cfg=vision, text_cfg=text, quick_gelu=True), "small")
    A, O, P = (COUNTED[k] for k in ("attributes", "objects", "pairs"))
    chosen = np.stack(divmod(np.arange(P), O), axis=1)
    none = np.empty((0, 2), np.int64)
    names = tuple(f"a{i}" for i in range(A)), tuple(f"o{i}" for i in range(O))
    return build("clusPro", CompositionSpace(*names, chosen, none, none), clip, {"adapter_dim": 4, "proto_init": "first_samples"})  # type: ignore[return-value]


def count_in_process(rank: int, workers: int, B: int, precision: str, folder: str) -> None:
    """Two steps of one of several workers; rank 0 writes what the second one handed to torch.distributed."""
    from cluster.work.feature_loader import autocast

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    method, group = small_model().train(), Group(rank, workers)
    method.comm, group.batch, seen = group, B, []
    gather, reduce = dist.all_gather, dist.all_reduce

    def count_gather(parts: list[Tensor], x: Tensor, **more: Any) -> Any:
        seen.append((sum(p.nbytes for p in parts) - x.nbytes, False))
        return gather(parts, x, **more)

    def count_reduce(x: Tensor, **more: Any) -> Any:
        seen.append((x.nbytes, True))
        return reduce(x, **more)

    dist.all_gather, dist.all_reduce = count_gather, count_reduce
    own = group.share(B)
    pair = torch.arange(B) % COUNTED["pairs"]
    attr, obj = torch.from_numpy(method.space.train_pairs.copy())[pair].T
    images = torch.randint(0, 256, (own.stop - own.start, 3, 32, 32), dtype=torch.uint8)
    trained = [p for p in method.parameters() if p.requires_grad]
    average = GradientAverage(trained, group, COUNTED_BUCKET_BYTES)
    for _ in range(2):  # from the second step on gradients are sent during the backward pass
        seen.clear()
        method.zero_grad()
        with autocast(torch.device("cpu"), precision):
            terms = method.training_step({"images": images, "attr": attr, "obj": obj, "pair": pair})
        torch.stack(list(terms.values())).sum().backward()
        average.finish()
    if rank == 0:
        sizes = [sum(trained[i].numel() for i in bucket if trained[i].grad is not None) for bucket in average._buckets]
        result = {"seen": seen, "buckets": sizes}
        Path(folder, "seen.json").write_text(json.dumps(result), encoding="utf-8")
    dist.destroy_process_group()


def count(workers: int = 2) -> None:
    """Print counted next to computed bytes as JSON lines: an odd batch, one with fewer images than workers, and bfloat16."""
    for B, precision in ((7, "float32"), (1, "float32"), (7, "bfloat16")):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(count_in_process, (workers, B, precision, folder), workers)
            found = json.loads(Path(folder, "seen.json").read_text(encoding="utf-8"))
        word = 2 if precision == "bfloat16" else 4
        said = messages(B, *(COUNTED[k] for k in ("pairs", "attributes", "objects", "dim")), found["buckets"], workers, word)
        computed = [[m.nbytes, m.reduces] for m in said]
        facts = {"batch": B, "precision": precision, "workers": workers, "counted": found["seen"], "computed": computed}
        print(json.dumps(facts), flush=True)


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
    """Run the named parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help="wire, count, predict; default: all")
    parser.add_argument("--launch-us", type=float, default=5.0, help="assumed microseconds of a kernel's start in `predict`")
    parser.add_argument(
        "--in-graph-us", type=float, default=1.5, help="assumed microseconds from kernel to kernel in a CUDA graph"
    )
    parser.add_argument("--auto", action="store_true", help="`predict` with compile=auto (needs a C++ compiler)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "wire": wire,
        "count": count,
        "predict": lambda: predict(
            Machine(launch_s=options.launch_us * 1e-6, in_graph_s=options.in_graph_us * 1e-6), options.auto
        ),
    }
    for which in options.which or parts:
        if which not in parts:
            parser.error(f"{which!r}: choose from {', '.join(parts)}")
    if set(options.which or parts) != {"count"}:
        print(f"{platform.machine()}, torch {torch.__version__}, K = {K}\n", flush=True)
    for which in options.which or parts:
        parts[which]()


if __name__ == "__main__":
    main()
