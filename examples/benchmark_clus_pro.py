"""Measure the accelerations of a ClusPro step: ``python examples/benchmark_clus_pro.py [transport] [text] ...``.

Random weights at the real shapes of ViT-L/14, label spaces of the published sizes, float32. Each figure is a ratio of two timings of one
run, next to the largest difference between the two results.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from czsl.clip.backbone import Clip
from czsl.clip.compat import import_open_clip
from czsl.clip.prompt_tree import PromptTree
from czsl.compositions import CompositionSpace
from methods.building import build
from methods.clus_pro.model import ClusPro
from methods.clus_pro.prototypes import Problems
from methods.parts.prompts import SoftPrompts
from methods.parts.transport import structured_plan

K, D = 5, 768
SPACES = {"mit-states": (115, 245, 1262), "ut-zappos": (16, 12, 83), "cgqa": (413, 674, 5592)}


def vit_l_14(vision_layers: int = 24) -> Clip:
    """ViT-L/14 with random weights."""
    vision = {"image_size": 224, "patch_size": 14, "width": 1024, "layers": vision_layers}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12}
    return Clip(import_open_clip().CLIP(D, vision_cfg=vision, text_cfg=text, quick_gelu=True), "ViT-L-14 (random)")


def space_of(name: str, share: float = 1.0) -> CompositionSpace:
    """A label space of a benchmark's size with random training pairs, or a share of them."""
    attributes, objects, pairs = SPACES[name]
    rng = np.random.default_rng(0)
    keys = np.sort(rng.choice(attributes * objects, round(pairs * share), replace=False))
    chosen = np.stack(divmod(keys, objects), axis=1)
    none = np.empty((0, 2), np.int64)
    words = ["wet", "old", "red", "big", "new", "hot", "dry", "sad"]  # names of one token, as most labels are
    names = [tuple(f"{words[i % 8]}{i}" for i in range(n)) for n in (attributes, objects)]
    return CompositionSpace(names[0], names[1], chosen, none, none)


def timed(action: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """Result and best wall seconds."""
    best, result = np.inf, None
    for _ in range(repeats):
        began = time.perf_counter()
        result = action()
        best = min(best, time.perf_counter() - began)
    return result, best


# -- transport -----------------------------------------------------------------------------------------------------
def transport() -> dict:
    """All primitives' problems at once against one at a time: whole batch in each problem, as the public program has it."""
    out = {}
    torch.manual_seed(0)
    for name, B, C in (("mit-states, B = 64", 64, 360), ("ut-zappos, B = 128", 128, 28)):
        g_BD = nn.functional.normalize(torch.randn(B, D).relu(), dim=-1)
        bank_CKD = nn.functional.normalize(torch.randn(C, K, D).relu(), dim=-1)
        for solver in ("log", "kernel"):
            similarity_CBK = torch.einsum("bd,ckd->cbk", g_BD, bank_CKD)
            structure_BB = g_BD @ g_BD.T

            def solve(some: slice, similarity_CBK=similarity_CBK, structure_BB=structure_BB, solver=solver) -> Tensor:
                some_CBK = similarity_CBK[some]
                structure_CBB = structure_BB.expand(len(some_CBK), *structure_BB.shape)
                mask_CB = torch.ones(some_CBK.shape[:2], dtype=torch.bool)
                return structured_plan(-some_CBK, some_CBK, structure_CBB, 0.1, 1.0, mask_CB, solver).plan

            together, fast = timed(lambda solve=solve, C=C: solve(slice(0, C)))
            alone, slow = timed(lambda solve=solve, C=C: torch.cat([solve(slice(c, c + 1)) for c in range(C)]), 1)
            difference = float((together - alone).abs().max()) * B
            out[f"{name}, {C} primitives, {solver}"] = {
                "together_s": fast, "one_at_a_time_s": slow, "times": slow / fast, "difference_times_B": difference,
            }  # fmt: skip
    return out


def assignment() -> dict:
    """A step's assignment of images to prototypes: one batched transport against a FAISS call for each primitive of the batch."""
    import faiss

    space, B = space_of("mit-states"), 64
    method = build("clusPro", space, vit_l_14(vision_layers=1), {"adapter_dim": 0})
    prototypes = method.prototypes
    prototypes.bank.copy_(nn.functional.normalize(torch.randn_like(prototypes.bank), dim=-1))
    batch = random_batch(space, B)
    ids_M, g_MD = prototypes.ids(batch["attr"], batch["obj"]), torch.randn(2 * B, D)
    present, bank = ids_M.unique(), prototypes.bank.numpy()

    def with_faiss() -> None:
        for c in present.tolist():
            index = faiss.IndexFlatIP(D)
            index.add(bank[c])
            index.search(g_MD[ids_M == c].numpy(), 1)

    _, transported = timed(lambda: prototypes.plans(g_MD, prototypes.problems(ids_M, batch["attr"])), 5)
    _, searched = timed(with_faiss, 5)
    _, all_searched = timed(lambda: [faiss.knn(g_MD[:8].numpy(), bank[c], 1) for c in range(len(bank))], 5)
    return {
        "primitives_in_the_batch": len(present), "batched_transport_s": transported, "faiss_calls_s": searched,
        "faiss_calls_for_all_360_s": all_searched,
    }  # fmt: skip


# -- text ----------------------------------------------------------------------------------------------------------
def text() -> dict:
    """Prompts with shared tokens computed once against prompts written out: forward and backward."""
    clip, out = vit_l_14(vision_layers=1), {}
    for name, share in (("mit-states", 1.0), ("cgqa", 0.25)):
        space = space_of(name, share)
        prompts = SoftPrompts(clip.text, list(space.attributes), list(space.objects), 0.0, True)
        pairs = torch.from_numpy(space.train_pairs.copy())
        found: dict[str, tuple[Tensor, list[Tensor]]] = {}

        def run(kind: str, encode: Callable[[PromptTree], Tensor], prompts=prompts, pairs=pairs, found=found) -> None:
            prompts.zero_grad()
            features = nn.functional.normalize(encode(prompts.pairs(prompts.words(), pairs)), dim=-1)
            (features * features.detach().roll(1, 0)).sum().backward()
            found[kind] = features.detach(), [p.grad.clone() for p in prompts.parameters() if p.grad is not None]

        _, fast = timed(lambda run=run: run("shared", clip.text.encode_tree), 2)
        _, slow = timed(lambda run=run: run("plain", lambda tree: clip.text.encode_embeddings(*tree.flat())), 1)
        (a, grads_a), (b, grads_b) = found["shared"], found["plain"]
        scale = max(float(g.abs().max()) for g in grads_b)
        out[f"{name}, {len(pairs)} prompts"] = {
            "shared_s": fast, "plain_s": slow, "times": slow / fast, "features_differ": float((a - b).abs().max()),
            "gradients_differ": max(float((x - y).abs().max()) for x, y in zip(grads_a, grads_b, strict=True)) / scale,
        }  # fmt: skip
    return out


# -- a whole step --------------------------------------------------------------------------------------------------
class PlainClusPro(ClusPro):
    """ClusPro without its accelerations: the public program's amount of work for the same numbers (up to rounding)."""

    def image_features(self, batch) -> Tensor:
        """All tokens through the last block, of which one is used."""
        return self.clip.visual(self.clip.normalise(batch["images"]), adapters=self.adapters, tokens=True)[:, 0]

    def encode_prompt_sets(self, sets: Sequence[PromptTree], unit: bool = True) -> list[Tensor]:
        """Every prompt written out, one set after the other."""
        return [self._finished(self.clip.text.encode_embeddings(*tree.flat()), unit) for tree in sets]

    def _prototype_rows(self, ids_2B: Tensor, labels_2B: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of all prototypes for each image passes the MLPs."""
        rows_MD, targets_2B = super()._prototype_rows(ids_2B, labels_2B)
        B, bank, A = labels_2B.shape[1], self.prototypes.bank, self.prototypes.num_attributes
        for mlp, part in zip(self._mlps(self.head_mlps), (bank[:A], bank[A:]), strict=True):
            copies = mlp.activate(part.flatten(0, 1).repeat(B, 1), track=False)
            rows_MD = rows_MD + 0 * copies.sum()  # the same rows; the copies and their gradients are what it costs
        return rows_MD, targets_2B


def one_at_a_time(method: ClusPro) -> None:
    """Let the prototypes solve their transport problems one by one."""
    whole = method.prototypes.plans

    def plans(g_MD: Tensor, problems: Problems) -> Tensor:
        every = range(len(problems.primitives))
        return torch.cat([whole(g_MD, Problems(*(getattr(problems, f)[c : c + 1] for f in ("primitives", "rows", "mask", "filler")),
                                               problems.problem, problems.place)) for c in every])  # fmt: skip

    method.prototypes.plans = plans  # type: ignore[method-assign]


@contextmanager
def parts_timed(method: ClusPro, parts: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of a step's parts."""
    wrapped = ((method, "image_features", "image tower"), (method, "encode_compositions", "text"), (method, "losses", "losses"),
               (method.prototypes, "plans", "of losses: transport"))  # fmt: skip
    before = [getattr(owner, name) for owner, name, _ in wrapped]

    def timing(call: Callable, label: str) -> Callable:
        def inner(*args):
            began = time.perf_counter()
            result = call(*args)
            parts[label] = parts.get(label, 0.0) + time.perf_counter() - began
            return result

        return inner

    for (owner, name, label), call in zip(wrapped, before, strict=True):
        object.__setattr__(owner, name, timing(call, label))
    try:
        yield
    finally:
        for (owner, name, _), call in zip(wrapped, before, strict=True):
            object.__setattr__(owner, name, call)


def random_batch(space: CompositionSpace, B: int) -> dict[str, Tensor]:
    """Images and labels of B random training pairs."""
    rows = np.random.default_rng(1).integers(len(space.train_pairs), size=B)
    pairs = torch.from_numpy(space.train_pairs[rows])
    images = torch.randint(0, 256, (B, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"images": images, "attr": pairs[:, 0], "obj": pairs[:, 1], "pair": torch.from_numpy(rows)}


def one_step(method: ClusPro, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Seconds of a training step and its parts."""
    parts: dict[str, float] = {}
    began = time.perf_counter()
    with parts_timed(method, parts):
        loss = torch.stack(list(method.training_step(batch).values())).sum()
    middle = time.perf_counter()
    loss.backward()
    behind = time.perf_counter()
    optimizer.step()
    end = time.perf_counter()
    return {"step": end - began, **parts, "backward": behind - middle, "optimizer": end - behind, "loss": float(loss.detach())}


def step(share: float, B: int) -> dict:
    """A step at ViT-L/14 shapes with and without the accelerations."""
    clip, out = vit_l_14(), {}
    for name in ("mit-states", "cgqa"):
        space = space_of(name, share)
        batch = random_batch(space, B)
        seconds = {}
        for kind in ("accelerated", "plain"):
            torch.manual_seed(0)
            config = {
                "heads": 2,
                "fusion": "logit",
                "proto_init": "first_samples",
                "adapter_dropout": 0.0,
                "head_dropout": 0.0,
                "attr_dropout": 0.0,
            }
            method = build("clusPro", space, clip, config)
            if kind == "plain":
                method.__class__ = PlainClusPro
                one_at_a_time(method)
            method.train()
            optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-4)
            found = one_step(method, batch, optimizer)
            seconds[kind] = found["step"]
            shares = {k: round(v / found["step"], 3) for k, v in found.items() if k not in ("step", "loss")}
            out[f"{name}, {len(space.train_pairs)} prompts, {B} images, {kind}"] = {
                "images_per_s": B / found["step"], "loss": found["loss"], "shares": shares,
                "peak_gib_so_far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }  # fmt: skip
            del method, optimizer
        out[f"{name}: times faster"] = seconds["plain"] / seconds["accelerated"]
    return out


# -- memory --------------------------------------------------------------------------------------------------------
def kept_bytes(action: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once, without the weights."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter) and not x.is_leaf:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        held = action()
    del held
    return sum(kept.values())


def memory() -> dict:
    """Memory that C-GQA's training keeps for the backward pass at batch 16: text and images on a share, scaled."""
    clip, share = vit_l_14(), 0.1
    space = space_of("cgqa", share)
    method = build("clusPro", space, clip, {"proto_init": "first_samples"}).train()
    pairs = torch.from_numpy(space.train_pairs.copy())
    few = kept_bytes(lambda: method.encode_compositions(pairs[: len(pairs) // 2]))
    many = kept_bytes(lambda: method.encode_compositions(pairs))
    per_prompt = (many - few) / (len(pairs) - len(pairs) // 2)
    primitives = many - per_prompt * len(pairs)
    one, two = (kept_bytes(lambda b=b: method.image_features(random_batch(space, b))) for b in (1, 2))
    weights = sum(p.numel() for p in clip.parameters()) * 4 + 4 * 4 * sum(p.numel() for p in method.parameters())
    total = per_prompt * SPACES["cgqa"][2] + primitives + (two - one) * 16 + weights
    return {
        "a_prompt_mib": per_prompt / 2**20, "primitives_gib": primitives / 2**30, "an_image_gib": (two - one) / 2**30,
        "weights_and_optimizer_gib": weights / 2**30, "cgqa_batch_16_float32_gib": total / 2**30,
        "cgqa_batch_64_float32_gib": (total + (two - one) * 48) / 2**30,
    }  # fmt: skip


def main() -> None:
    """Run the named benchmarks and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", help="transport, assignment, text, step, memory; default: all")
    parser.add_argument("--share", type=float, default=0.25, help="share of the training pairs in `step`")
    parser.add_argument("--images", type=int, default=4, help="images in `step`")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    benchmarks = {
        "transport": transport,
        "assignment": assignment,
        "text": text,
        "step": lambda: step(options.share, options.images),
        "memory": memory,
    }
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for which in options.which or benchmarks:
        print(json.dumps({which: benchmarks[which]()}, indent=1, default=float), flush=True)


if __name__ == "__main__":
    main()
