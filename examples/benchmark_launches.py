"""Count the kernels and waits of a training step on a GPU, with a CPU only: ``python examples/benchmark_launches.py [--before CHECKOUT]``.

Kernels started, waits of the host for the device and bytes of frozen weights that are converted, per step: the real step of each
method (forward, backward, optimizer) on label spaces of the published sizes, with a CLIP that has ViT-L/14's layers but a small width,
since the number of kernels does not depend on widths. ``--before`` counts the code of another checkout by the same rule in the same run.

Letters: B images, P pairs, A attributes, O objects, D joint width.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from czsl.clip.backbone import Clip
from czsl.clip.compat import import_open_clip
from czsl.compositions import CompositionSpace
from methods.building import build

# Attributes, objects, training pairs and the images of a step.
SPACES = {"mit-states": (115, 245, 1262, 64), "ut-zappos": (16, 12, 83, 128), "cgqa": (413, 674, 5592, 16)}
METHODS = ("clusPro", "troika", "msci", "csp", "caila")
WIDTH = 64

# Operations that start no kernel of their own on a GPU. torch's dropout is one kernel there and three operations on a CPU.
FREE = {"_unsafe_view", "_reshape_alias", "bernoulli_", "div_", "detach_", "_record_function_enter_new", "_record_function_exit"}
# Operations that start several: the backward pass of attention.
SEVERAL = {"_scaled_dot_product_flash_attention_for_cpu_backward": 3}
# What makes the host wait for the device: a value that Python reads, a result whose size depends on values.
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "bincount",
    "equal",
    "is_nonzero",
}

LEAVING = {Tensor.tolist, Tensor.cpu, Tensor.numpy}


@dataclass
class Counts:
    """Kernels, waits and bytes of frozen weights converted; ``by`` counts the kernels of each operation, ``why`` the waits."""

    launches: int = 0
    waits: int = 0
    converted: int = 0
    by: Counter[str] = field(default_factory=Counter)
    why: Counter[str] = field(default_factory=Counter)

    def wait(self, why: str) -> None:
        """Note a wait."""
        self.waits += 1
        self.why[why] += 1


class _Operations(TorchDispatchMode):
    """Counts the operations that reach a device."""

    def __init__(self, counts: Counts, frozen: set[int]):
        super().__init__()
        self.counts, self.frozen = counts, frozen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, counts = func.overloadpacket.__name__, self.counts
        if not (func.is_view or name in FREE or "empty" in name or name == "detach"):
            kernels = SEVERAL.get(name, 1)
            counts.launches += kernels
            counts.by[name] += kernels
        if name in WAITS or (name.startswith("index") and _by_mask(args)):
            counts.wait(name)
        if name == "_to_copy" and args[0].untyped_storage().data_ptr() in self.frozen:
            counts.converted += args[0].nbytes
        return func(*args, **(kwargs or {}))


def _by_mask(args: tuple[Any, ...]) -> bool:
    """Return whether an index is a mask: the number of its rows has to be known before they are read."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)


class _Copies(TorchFunctionMode):
    """Counts copies that wait, which on a CPU reach no device: values that leave it, and arrays of the host that enter it."""

    def __init__(self, counts: Counts, host: set[int]):
        super().__init__()
        self.counts, self.host = counts, host

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in LEAVING and args[0].numel() and args[0].untyped_storage().data_ptr() not in self.host:
            self.counts.wait(func.__name__)
        entering = func is Tensor.to and any(isinstance(a, torch.device) for a in (*args, *kwargs.values()))
        if entering and not kwargs.get("non_blocking") and args[0].untyped_storage().data_ptr() in self.host:
            self.counts.wait("copy to the device")
        return func(*args, **kwargs)


def count(action: Callable[[], Any], frozen: Iterable[Tensor] = (), host: Iterable[Tensor] = ()) -> Counts:
    """Count one call of an action.

    Parameters
    ----------
    frozen : iterable of tensors
        Weights whose conversions are noted.
    host : iterable of tensors
        Tensors that would be in the host's memory although everything here is.
    """
    counts = Counts()
    arrays = {x.untyped_storage().data_ptr() for x in host}
    from_numpy = torch.from_numpy

    def noted(array: np.ndarray) -> Tensor:
        x = from_numpy(array)
        arrays.add(x.untyped_storage().data_ptr())
        return x

    torch.from_numpy = noted
    try:
        with _Copies(counts, arrays), _Operations(counts, {p.untyped_storage().data_ptr() for p in frozen}):
            action()
    finally:
        torch.from_numpy = from_numpy
    return counts


# -- transport -----------------------------------------------------------------------------------------------------
def transport_in_one_kernel() -> None:
    """Count the transport as a GPU with Triton does it: preparation, and one kernel, for which the plain form stands in uncounted.

    A checkout without the kernel keeps the plain form.
    """
    from methods.clus_pro import prototypes
    from methods.parts import transport

    if not hasattr(transport, "kernel_arguments"):
        return

    def solve(cost: Tensor, prior: Tensor, structure: Tensor, numbers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            found = transport.plain_plan(cost, prior, structure, *numbers.tolist(), mask.bool())
        return found.plan.clone(), found.steps  # the copy is counted in the place of the kernel

    def solved(
        cost: Tensor, prior: Tensor, structure: Tensor, eps: float, weight: float, mask: Tensor, solver: str = "log"
    ) -> Any:
        found = transport.kernel.solve(cost, prior, structure, eps, weight, mask) if solver == "log" else None
        return found or transport.plain_plan(cost, prior, structure, eps, weight, mask, solver)

    transport._kernel_module = lambda: SimpleNamespace(solve=solve)
    transport.kernel.state = "good"  # its first plans were compared
    prototypes.structured_plan = solved


# -- torch.compile -------------------------------------------------------------------------------------------------
PLACES = ("czsl.clip.vision", "czsl.clip.text", "methods.parts.adapters")
COMPILED = ("attended", "fed_forward", "before_attention", "rest_of_block", "added")
# Kernels of the operations that compiled code calls; the rest of it is fused.
CALLED = {
    "aten::mm": 1,
    "aten::addmm": 1,
    "aten::bmm": 1,
    "aten::_scaled_dot_product_flash_attention_for_cpu": 1,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": 3,
    "aten::bernoulli_": 1,
}


def saved_by_compiling(action: Callable[[], Any]) -> int:
    """Return the kernels that compiling what is compilable saves an action, forward and backward.

    Each function is counted plain and compiled with the arguments that the action gives it, once for each kind of call.
    """
    calls: Counter[Any] = Counter()
    examples: dict[Any, Any] = {}
    modules = [importlib.import_module(place) for place in PLACES]

    def noting(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            kind = (function.__name__, *(_kind(a) for a in args), *sorted(options.items()))
            calls[kind] += 1
            if kind not in examples:
                kept = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args]
                examples[kind] = (function, kept, options, torch.is_autocast_enabled("cpu"))
            return function(*args, **options)

        return call

    originals = [(m, name, getattr(m, name)) for m in modules for name in COMPILED if hasattr(m, name)]
    for module, name, function in originals:
        setattr(module, name, noting(function))
    try:
        action()
    finally:
        for module, name, function in originals:
            setattr(module, name, function)
    return sum(n * _saved_by_one(*examples[kind]) for kind, n in calls.items())


def _kind(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.requires_grad, argument.dtype
    return type(argument).__name__ if isinstance(argument, nn.Module) else argument


def _saved_by_one(function: Any, args: list[Any], options: dict[str, Any], autocast: bool) -> int:
    from torch.profiler import ProfilerActivity, profile

    from czsl.clip.compiled import compiled_functions

    def call() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = function(*args, **options)
        if out.requires_grad:
            out.backward(seed)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        seed = torch.ones_like(function(*args, **options))
    leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]

    def fresh() -> None:
        for leaf in leaves:
            leaf.grad = None
        call()

    fresh()
    plain = count(fresh).launches
    torch._inductor.config.cpp.enable_kernel_profile = True
    with compiled_functions():
        fresh()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            fresh()
    names = Counter(event.name for event in found.events())
    fused = sum(n for name, n in names.items() if name.startswith("graph_") and "fused" in name)
    return plain - fused - sum(names[name] * kernels for name, kernels in CALLED.items())


# -- the step ------------------------------------------------------------------------------------------------------
def narrow_clip(vision_layers: int = 24, text_layers: int = 12) -> Clip:
    """ViT-L/14's layers at a small width."""
    vision = {"image_size": 28, "patch_size": 14, "width": WIDTH, "layers": vision_layers, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": text_layers}
    torch.manual_seed(0)
    return Clip(import_open_clip().CLIP(WIDTH, vision_cfg=vision, text_cfg=text, quick_gelu=True), "narrow")


def space_of(name: str) -> CompositionSpace:
    """A label space of a benchmark's size with random training pairs."""
    attributes, objects, pairs, _ = SPACES[name]
    keys = np.sort(np.random.default_rng(0).choice(attributes * objects, pairs, replace=False))
    chosen = np.stack(divmod(keys, objects), axis=1)
    none = np.empty((0, 2), np.int64)
    words = ["wet", "old", "red", "big", "new", "hot", "dry", "sad"]
    names = [tuple(f"{words[i % 8]}{i}" for i in range(n)) for n in (attributes, objects)]
    return CompositionSpace(names[0], names[1], chosen, none, none)


def batch_of(space: CompositionSpace, B: int, size: int) -> dict[str, Any]:
    """B random training images as the loader hands them over."""
    rows = np.random.default_rng(1).integers(len(space.train_pairs), size=B)
    pairs = torch.from_numpy(space.train_pairs[rows])
    images = torch.randint(0, 256, (B, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"images": images, "attr": pairs[:, 0], "obj": pairs[:, 1], "pair": torch.from_numpy(rows), "index": torch.arange(B)}


def steps(name: str, space_name: str, clip: Clip, precision: str, compiling: bool = False) -> dict[str, Counts]:
    """Counts of a whole step, and of its parts: image tower and text (forward and backward), transport, optimizer.

    ``compiling`` adds ``compiled``, the kernels of a step with ``compile=auto``, and those of its image tower and text.
    """
    from czsl.runs.optimizers import make_optimizer

    space, B = space_of(space_name), SPACES[space_name][3]
    torch.manual_seed(0)
    method: Any = build(name, space, clip, {})
    clip.compute_in(precision)
    prototypes = getattr(method, "prototypes", None)
    if prototypes is not None:  # what the initialisation from a dataset gives
        prototypes.bank.copy_(nn.functional.normalize(torch.randn_like(prototypes.bank), dim=-1))
        prototypes.seeded.fill_(True)
    method.begin_epoch(0)
    method.comm.batch = B
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = make_optimizer("adam", trained, 1e-4, 1e-5)
    batch, frozen = batch_of(space, B, clip.image_size), list(clip.parameters())
    host = list(batch.values())
    numbers = lambda terms: torch.stack(list(terms.values()))  # noqa: E731

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            terms_n = numbers(method.training_step(batch))
        loss = terms_n.sum()
        torch.cat([loss[None], terms_n]).detach().tolist()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def images() -> None:
        optimizer.zero_grad()  # else each gradient would be added to the one before
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            features = method.image_features(batch)
        if features.requires_grad:
            features.sum().backward()

    def text() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            text = method.encode_compositions(pairs)
        sum(x.sum() for x in (text.pair, text.attribute, text.object) if x is not None).backward()

    step()  # the optimizer's state, and what is kept from the first step on
    pairs = torch.from_numpy(space.train_pairs.copy())
    out = {"step": count(step, frozen, host), "images": count(images, frozen, host), "text": count(text, frozen)}
    if prototypes is not None:
        hidden = torch.randn(2, B, clip.dim)
        out["transport"] = count(lambda: prototypes.step(hidden, batch["attr"], batch["obj"]))
    out["optimizer"] = count(optimizer.step)
    if compiling:
        for part, action, name in (("step", step, ""), ("images", images, " images"), ("text", text, " text")):
            out[f"compiled{name}"] = Counts(out[part].launches - saved_by_compiling(action))
    return out


def counted(methods: Iterable[str], spaces: Iterable[str], precision: str, compiling: bool = False) -> list[dict[str, Any]]:
    """A record for each method and label space."""
    clip, records = narrow_clip(), []
    for space in spaces:
        for name in methods:
            parts = steps(name, space, clip, precision, compiling)
            whole = parts["step"]
            records.append({
                "method": name, "dataset": space, **{part: c.launches for part, c in parts.items()},
                "waits": whole.waits, "converted": whole.converted, "why": dict(whole.why), "by": dict(whole.by.most_common()),
            })  # fmt: skip
    return records


def main() -> None:
    """Print a table, or with --json every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, counted by the same rule")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all")
    parser.add_argument("--space", action="append", choices=tuple(SPACES), help="default: all")
    parser.add_argument("--plain-transport", action="store_true", help="count the transport as a GPU without Triton does it")
    parser.add_argument("--compiled", action="store_true", help="count a step with compile=auto too (needs a C++ compiler)")
    parser.add_argument("--json", action="store_true", help="print every operation and wait as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.plain_transport:
        transport_in_one_kernel()
    after = counted(options.method or METHODS, options.space or SPACES, options.precision, options.compiled)
    before: list[dict[str, Any]] = []
    if options.before:
        chosen = [x for kind in ("method", "space") for value in getattr(options, kind) or () for x in (f"--{kind}", value)]
        chosen += ["--plain-transport"] * options.plain_transport
        command = [sys.executable, __file__, "--json", "--precision", options.precision, *chosen]
        environment = {**os.environ, "PYTHONPATH": str(options.before.resolve())}
        done = subprocess.run(command, cwd=options.before, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        before = json.loads(done.stdout)
    if options.json:
        print(json.dumps(after if not before else {"before": before, "after": after}, indent=1))
        return
    table(after, before)


def table(after: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Print a Markdown table; with figures of before as ``before -> after``."""
    columns = ["step", "images", "text", "transport", "optimizer", "waits", "converted"]
    columns += ["compiled"] * ("compiled" in after[0])
    print("| dataset | method | " + " | ".join(columns) + " |")
    print("| --- " * (len(columns) + 2) + "|")
    for i, now in enumerate(after):
        then = before[i] if before else now
        cells = [f"{now.get(c, '')}" if then is now else f"{then.get(c, '')} -> {now.get(c, '')}" for c in columns]
        print("| " + " | ".join([now["dataset"], now["method"], *(c if c != " -> " else "" for c in cells)]) + " |")


if __name__ == "__main__":
    main()
