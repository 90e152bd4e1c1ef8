"""Compute what more workers send: ``python examples/benchmark_wire.py [wire] [count]``.

wire      bytes a training step of ClusPro moves, from shapes
count     the same counted in real processes, next to the formula's result

``benchmark_scaling.py`` predicts from them what steps cost on several GPUs.

Letters: B images, P pairs, A attributes, O objects, D joint width.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from benchmark_clus_pro import SPACES, D, K, space_of, vit_l_14
from torch import Tensor

from cluster.work.comm import Group
from cluster.work.gradients import BUCKET_BYTES, GradientAverage
from methods.building import build
from methods.clus_pro.model import ClusPro

BATCHES = {"mit-states": 64, "ut-zappos": 128, "cgqa": 16}
WORKERS = (1, 4, 16, 64)


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


def main() -> None:
    """Run the named parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help="wire, count; default: both")
    parts = {"wire": wire, "count": count}
    chosen = parser.parse_args().which or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(parts)}")
    torch.set_num_threads(1)
    if chosen != ["count"]:
        print(f"{platform.machine()}, torch {torch.__version__}, K = {K}\n", flush=True)
    for which in chosen:
        parts[which]()


if __name__ == "__main__":
    main()
