"""Measure a training step of MSCI at ViT-L/14, written out and accelerated: ``python examples/benchmark_msci.py``.

Random weights, label spaces of the size of MIT-States and C-GQA. Bytes are those that autograd keeps for the backward pass, each
storage once, without weights: counted for the whole step (all prompts, whole batch) with tensors that have shapes and no content, so any
machine can. Then one image and a share of the prompts are computed for real: CPU seconds of each part, forward and backward, and the count
again, which must be the one without content. The form written out is the oracle of the tests (tests/methods/msci_plain.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "methods"))

from msci_plain import plain_branch, plain_images, plain_texts

from czsl.clip.backbone import Clip
from czsl.clip.compat import import_open_clip
from czsl.compositions import CompositionSpace
from methods.msci.config import MSCIConfig
from methods.msci.model import MSCI
from methods.parts import cross_attention
from methods.presets import load_presets

# Attributes, objects, training pairs, batch; and the share of the prompts that is computed in earnest.
SPACES = {"mit-states": (115, 245, 1262, 64, 10), "cgqa": (413, 674, 5592, 48, 32)}
FORMS = ("written out", "accelerated", "and tower again")  # the last with checkpoint_blocks=true
PARTS = ("tower", "text", "stages")
TILE = cross_attention.TILE_ELEMENTS


def make_clip() -> Clip:
    """ViT-L/14 with random weights."""
    vision = {"image_size": 224, "patch_size": 14, "width": 1024, "layers": 24}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12}
    return Clip(import_open_clip().CLIP(768, vision_cfg=vision, text_cfg=text, quick_gelu=True), "ViT-L-14")


def make(clip: Clip, dataset: str, share: int) -> tuple[MSCI, Tensor]:
    """A method in training mode with 1/share of a dataset's prompts, and its pairs."""
    A, O, P = (round(n / share) for n in SPACES[dataset][:3])
    rng, none = np.random.default_rng(0), np.zeros((0, 2), int)
    pairs = np.stack(np.divmod(rng.choice(A * O, P, replace=False), O), axis=1)
    space = CompositionSpace(tuple(f"attribute {i}" for i in range(A)), tuple(f"object {i}" for i in range(O)), pairs, none, none)
    known = {k: v for k, v in load_presets("msci")["recipes"][dataset].items() if k in MSCIConfig.__dataclass_fields__}
    torch.manual_seed(0)
    return MSCI(space, clip, MSCIConfig(**known)).train(), torch.from_numpy(pairs)


class Counter:
    """Gigabytes kept for the backward pass and CPU seconds of a part, the backward pass directly after the forward pass."""

    def __init__(self, weights: list[Tensor]):
        self.known = {x.untyped_storage()._cdata: x for x in weights}

    def run(self, forward: Callable[[], list[Tensor]]) -> dict[str, float]:
        """``gb`` and ``cpu_s``."""
        kept: dict[int, tuple[int, Tensor]] = {}

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in self.known:
                kept[storage._cdata] = (storage.nbytes(), x)
            return x

        began = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = forward()
        torch.autograd.backward([x.square().mean() for x in out])
        return {"gb": sum(size for size, _ in kept.values()) / 1e9, "cpu_s": time.process_time() - began}


def measure(method: MSCI, pairs: Tensor, batch: int, form: str) -> dict[str, dict[str, float]]:
    """The parts of a step, each with inputs of its own."""
    clip, D, plain = method.clip, method.clip.dim, form == FORMS[0]
    tokens = clip.visual.vit.positional_embedding.shape[0]
    clip.visual.checkpointing = form == FORMS[2]
    counter = Counter([*method.parameters(), *method.buffers(), *clip.parameters(), *clip.buffers()])
    images = torch.randn(batch, 3, clip.image_size, clip.image_size)
    text = [torch.randn(n, D).requires_grad_() for n in (len(pairs), method.space.num_attributes, method.space.num_objects)]
    features = torch.randn(batch, 1 + 2 * tokens, D).requires_grad_()
    # Tower and text hold these already.
    counter.known |= {x.untyped_storage()._cdata: x for x in (*text, features)}
    low, high = features[:, 1:].chunk(2, dim=1)

    def tower() -> list[Tensor]:
        if not plain:
            return [method.image_features({"images": images})]
        _, branches, levels = plain_images(method, images)
        return [*branches, *levels.values()]

    def texts() -> list[Tensor]:
        if plain:
            return list(plain_texts(method, pairs))
        text = method.encode_compositions(pairs)
        return [x for x in (text.pair, text.attribute, text.object) if x is not None]

    def stages() -> list[Tensor]:
        if plain:
            return [plain_branch(method, t, features[:, 0], {"low": low, "high": high})[1] for t in text]
        return method.cosines([features[:, 0]] * 3, text, method.memory(features))

    return {part: counter.run(work) for part, work in zip(PARTS, (tower, texts, stages), strict=True)}


def whole_step(dataset: str) -> dict[str, dict[str, float]]:
    """Gigabytes of a step with all prompts and the whole batch, by form and part."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        method, pairs = make(make_clip(), dataset, 1)
        found = {form: measure(method, pairs, SPACES[dataset][3], form) for form in FORMS}
    return {form: {part: x["gb"] for part, x in parts.items()} for form, parts in found.items()}


def in_earnest(dataset: str, clip: Clip) -> dict[str, dict[str, float]]:
    """CPU seconds with one image and a share of the prompts, by form and part; refuses counts that content would change."""
    share = SPACES[dataset][4]
    # As with the whole batch, and small enough that there are several tiles: a single one is not computed again.
    cross_attention.TILE_ELEMENTS = TILE // SPACES[dataset][3] // 4
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            method, pairs = make(make_clip(), dataset, share)
            expected = {form: measure(method, pairs, 1, form) for form in FORMS}
        method, pairs = make(clip, dataset, share)
        found = {form: measure(method, pairs, 1, form) for form in FORMS}
    finally:
        cross_attention.TILE_ELEMENTS = TILE
    for form in FORMS:
        for part in PARTS:
            with_content, without = found[form][part]["gb"], expected[form][part]["gb"]
            if abs(with_content - without) > 0.01 * without:
                raise SystemExit(f"{dataset}, {form}, {part}: {with_content:.3f} GB with content, {without:.3f} GB without")
    return {form: {part: x["cpu_s"] for part, x in parts.items()} for form, parts in found.items()}


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bytes", action="store_true", help="only count bytes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clip, results = None if options.bytes else make_clip(), {}
    for dataset, (A, O, P, batch, share) in SPACES.items():
        gb = whole_step(dataset)
        seconds = {form: dict.fromkeys(PARTS, float("nan")) for form in FORMS} if clip is None else in_earnest(dataset, clip)
        results[dataset] = {form: {"gb": gb[form], "cpu_s": seconds[form]} for form in FORMS}
        if options.json:
            continue
        print(
            f"\n{dataset}, {P} + {A} + {O} prompts: GB kept at batch {batch}; CPU seconds of one image and 1/{share} of the prompts\n"
        )
        print("| form | tower | text | stages | GB kept | seconds: tower | text | stages |\n|---|---|---|---|---|---|---|---|")
        for form in FORMS:
            kept = " | ".join(f"{x:.1f}" for x in (*gb[form].values(), sum(gb[form].values())))
            print(f"| {form} | {kept} | {' | '.join(f'{x:.1f}' for x in seconds[form].values())} |", flush=True)
    if options.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
