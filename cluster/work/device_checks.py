"""Checks of a device against the CPU: every method's step and scores, the optimizer, a resumed training, FAISS, memory that runs out.

Each is a function of a device, so that tests run them with the CPU against itself. No Ray, no network, no files but a temporary folder.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cluster.work.ahead import prepared_ahead, side_of
from czsl.clip.backbone import Clip
from czsl.clip.captured import Graphs, replayed_passes
from czsl.clip.compat import import_open_clip
from czsl.clip.compiled import can_compile, compiled_functions
from czsl.compositions import CompositionSpace
from czsl.data.augment import augment, id_keys
from czsl.errors import CzslError
from czsl.gpus import onto
from czsl.precision import fitting
from czsl.runs import checkpoint
from czsl.runs.checkpoint import Checkpoint
from czsl.runs.optimizers import make_optimizer
from methods.building import build
from methods.method import Method
from methods.registry import METHODS, config_class

# Largest difference from the CPU: of losses and scores relative to their size, of gradients as 1 - cosine.
TOLERANCE = {"float32": (1e-3, 1e-4), "bfloat16": (8e-2, 8e-2)}
NEWER = "update the driver, or install the torch build that fits it: https://pytorch.org"
CPU = torch.device("cpu")
BATCH = 8


@dataclass(frozen=True)
class Check:
    """One result. ``level``: ``ok``, ``skip`` or ``fail``; ``fix``: what to do about a failure."""

    level: str
    subject: str
    found: str
    fix: str = ""
    seconds: float = 0.0


def small_clip(image_size: int = 64) -> Clip:
    """A CLIP of two layers with random weights, the same each time."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        vision = {"image_size": image_size, "patch_size": 16, "width": 64, "layers": 2}
        text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
        model = import_open_clip().CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text, quick_gelu=True)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return Clip(model.eval(), "a small CLIP with random weights")


def small_space() -> CompositionSpace:
    """Six attributes, five objects, 20 seen pairs."""
    words = ("wet", "dry", "old", "new", "sliced", "red"), ("dog", "cat", "table", "boots", "apple")
    pairs = np.array([(a, o) for a in range(6) for o in range(5) if (a + o) % 3])
    return CompositionSpace(*words, pairs, pairs[:4], pairs[4:8])


def method_on(name: str, device: torch.device, precision: str) -> Method:
    """A method with fixed weights and without dropout, whose draws differ between devices."""
    settings = {field: 0.0 for field in config_class(name).__dataclass_fields__ if field.endswith("dropout")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = build(name, small_space(), small_clip(), settings)
        for parameter in method.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.02)  # what begins at zero would hide what follows from it
        if method.needs_initialisation:
            with torch.inference_mode():
                features, attr, obj = method.image_features(batch_of(method)), *_labels(method, 4 * BATCH)
                method.initialise(features.repeat(4, *[1] * (features.ndim - 1)) + 0.01, attr, obj)
    method = method.to(device)
    method.clip.compute_in(precision)
    return method


def _labels(method: Method, count: int) -> tuple[Tensor, Tensor]:
    pairs = torch.from_numpy(method.space.train_pairs[np.arange(count) % len(method.space.train_pairs)].copy())
    return pairs[:, 0], pairs[:, 1]


def batch_of(method: Method) -> dict[str, Tensor]:
    """A prepared batch of noise with labels."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8)) for _ in range(BATCH)]
    prepared = [method.prepare(picture, str(i)) for i, picture in enumerate(pictures)]
    attr, obj = _labels(method, BATCH)
    labels = {"attr": attr, "obj": obj, "pair": torch.arange(BATCH) % len(method.space.train_pairs), "index": torch.arange(BATCH)}
    return {**{key: torch.stack([p[key] for p in prepared]) for key in prepared[0]}, **labels}


def step_of(name: str, device: torch.device, precision: str, compiled: bool = False) -> tuple[Tensor, Tensor]:
    """Loss terms [n] and the gradient of all that is trained, flat, of one training step; on the CPU in float32."""
    method = method_on(name, device, precision)
    method.begin_epoch(0)
    method.comm.batch = BATCH
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"), compiled_functions(compiled):
        terms = torch.stack(list(method.training_step(batch_of(method)).values()))
    terms.sum().backward()
    gradients = [p.grad.flatten() for p in method.parameters() if p.grad is not None]
    return terms.detach().float().cpu(), torch.cat(gradients).float().cpu()


@torch.inference_mode()
def scores_of(name: str, device: torch.device, precision: str) -> Tensor:
    """Scores [B, P] of all pairs, on the CPU in float32."""
    method = method_on(name, device, precision).eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        features = method.image_features(batch_of(method))
    text = method.encode_compositions(torch.from_numpy(method.space.open_pairs.copy()).to(device))
    return method.scores(method.embed_images(features), text).float().cpu()


def off_by(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value; infinite if a value is not finite."""
    if not found.isfinite().all():
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def check_method(name: str, device: torch.device, precision: str) -> Check:
    """Step (if the method takes steps) and scores against the CPU in float32."""
    most, most_gradient = TOLERANCE[precision]
    found = {"scores": off_by(scores_of(name, device, precision), scores_of(name, CPU, "float32"))}
    # Partial labels are what clip-pzsl learns from; with labels its step is that of ordinary training.
    if config_class(name).trains and config_class(name).steps:
        (terms, gradient), (plain_terms, plain_gradient) = step_of(name, device, precision), step_of(name, CPU, "float32")
        found["loss terms"] = off_by(terms, plain_terms)
        cosine = torch.nn.functional.cosine_similarity(gradient.double(), plain_gradient.double(), dim=0)
        found["gradient, 1 - cosine"] = 1.0 - float(cosine)
    bad = [k for k, v in found.items() if not v <= (most_gradient if "gradient" in k else most)]
    words = ", ".join(f"{k} {v:.1e}" for k, v in found.items())
    return Check("fail" if bad else "ok", f"{name}, {precision}", f"{words} (at most {most:g}; gradient {most_gradient:g})",
                 NEWER if bad else "")  # fmt: skip


def check_compile(device: torch.device) -> Check:
    """ClusPro's step with compiled parts (``compile=auto``) against the same step without, on the device, in float32."""
    if not can_compile(device):
        return Check("skip", "compiled step", "torch.compile does not work here: compile=auto leaves the step as it is")
    (terms, gradient), (plain_terms, plain_gradient) = (step_of("clusPro", device, "float32", c) for c in (True, False))
    cosine = float(torch.nn.functional.cosine_similarity(gradient.double(), plain_gradient.double(), dim=0))
    most, most_gradient = TOLERANCE["float32"]
    words = f"loss terms {off_by(terms, plain_terms):.1e} (at most {most:g}), gradient, 1 - cosine {1 - cosine:.1e} ({most_gradient:g})"
    good = off_by(terms, plain_terms) <= most and 1 - cosine <= most_gradient
    return Check("ok" if good else "fail", "compiled step", words, "" if good else "train with compile=off")


def check_replay(device: torch.device, graphs: Graphs | None = None) -> Check:
    """Steps of ClusPro whose passes through the towers are CUDA graphs (``compile=auto``) against plain steps, in float32."""
    graphs = graphs or Graphs(device)
    found, plain = _losses(device, graphs), _losses(device, None)
    if not graphs.count:
        return Check("skip", "replayed passes", "CUDA graphs do not work here (see the log): compile=auto starts each kernel")
    off, most = off_by(found, plain), TOLERANCE["float32"][0]
    words = f"{graphs.count} passes are replayed; losses of {len(found)} steps off by {off:.1e} (at most {most:g})"
    return Check("ok" if off <= most else "fail", "replayed passes", words, "" if off <= most else "train with compile=off")


def _losses(device: torch.device, graphs: Graphs | None) -> Tensor:
    """The losses of five steps of ClusPro, each on another batch; the second one records the passes."""
    method, optimizer = _begin(device, "clusPro")
    losses, batch = [], batch_of(method)
    for step in range(5):
        rolled = {key: value.roll(step, 0) if key == "images" else value for key, value in batch.items()}
        with replayed_passes(graphs):
            loss = torch.stack(list(method.training_step(rolled).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def check_ahead(device: torch.device) -> Check:
    """Batches that are copied and augmented on a stream of their own, while the device computes, against the CPU's."""
    images = torch.randint(0, 256, (4, BATCH, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    keys = id_keys([str(i) for i in range(BATCH)])

    def prepared(n: int, on: torch.device) -> dict[str, Tensor]:
        return {"images": augment(onto(images[n], on), keys, 0, n)}

    busy, found = torch.randn(512, 512, device=device), []
    for batch in prepared_ahead(lambda n: prepared(n, device), range(len(images)), side_of(device)):
        for _ in range(20):
            busy = (busy @ busy).tanh()
        found.append(batch["images"].clone())
    differ = [(one.cpu().int() - prepared(n, CPU)["images"].int()).abs() for n, one in enumerate(found)]
    share, most = float(torch.stack(differ).ne(0).float().mean()), int(torch.stack(differ).max())
    good = share < 0.01 and most <= 1  # a value in the middle of two may be rounded either way
    return Check("ok" if good else "fail", "batches made ahead", f"{100 * share:.2f} % of the values differ, by {most} at most",
                 "" if good else NEWER)  # fmt: skip


def check_optimizer(device: torch.device) -> Check:
    """Three steps of each optimizer from the same gradients."""
    worst = 0.0
    for kind in ("adam", "adamw"):
        ends = []
        for where in (CPU, device):
            torch.manual_seed(0)
            weights = [torch.randn(50, 7), torch.randn(3)]
            gradients = [[torch.randn_like(w) for w in weights] for _ in range(3)]
            parameters = [torch.nn.Parameter(w.to(where)) for w in weights]
            optimizer = make_optimizer(kind, parameters, 1e-2, 1e-3)
            for step in gradients:
                for p, g in zip(parameters, step, strict=True):
                    p.grad = g.to(where)
                optimizer.step()
            ends.append(torch.cat([p.detach().cpu().flatten() for p in parameters]))
        worst = max(worst, off_by(ends[1], ends[0]))
    level = "ok" if worst <= 1e-5 else "fail"
    return Check(level, "optimizers", f"off by {worst:.1e} (at most 1e-05)", NEWER if level == "fail" else "")


def check_resume(device: torch.device) -> Check:
    """A step after a checkpoint that was written and read again, against the same step without it."""
    whole, resumed = (_three_steps(device, resume) for resume in (False, True))
    same = all(torch.equal(whole[k], resumed[k]) for k in whole)
    worst = max(off_by(resumed[k].float(), whole[k].float()) for k in whole)
    found = "bit-equal" if same else f"off by {worst:.1e} (at most 1e-05: kernels of this device add in no fixed order)"
    level = "ok" if same or worst <= 1e-5 else "fail"
    return Check(level, "checkpoint and resume", found, NEWER if level == "fail" else "")


def _three_steps(device: torch.device, resume: bool) -> dict[str, Tensor]:
    method, optimizer = _begin(device)
    for step in range(3):
        if resume and step == 2:
            with tempfile.TemporaryDirectory() as folder:
                state = {"step": step, "epoch": 0, "place": step}
                moments = {
                    f"{key}.{name}": value
                    for name, p in method.named_parameters()
                    for key, value in optimizer.state[p].items()
                    if isinstance(value, Tensor)
                }
                kept = checkpoint.load(checkpoint.save(Path(folder), Checkpoint(method.state_dict(), moments, state)))
            method, optimizer = _begin(device)
            method.load_state_dict(kept.method)
            for name, p in method.named_parameters():
                own = {key.split(".", 1)[0]: v for key, v in kept.optimizer.items() if key.split(".", 1)[1] == name}
                optimizer.state[p] = {key: value.to(p.device) for key, value in own.items()}
        optimizer.zero_grad()
        torch.stack(list(method.training_step(batch_of(method)).values())).sum().backward()
        optimizer.step()
    return {key: value.detach().cpu() for key, value in method.state_dict().items()}


def _begin(device: torch.device, name: str = "csp") -> tuple[Method, torch.optim.Optimizer]:
    method = method_on(name, device, "float32")
    method.begin_epoch(0)
    method.comm.batch = BATCH
    return method, make_optimizer("adam", method.parameters(), 1e-2, 0.0)


def check_faiss(device: torch.device) -> Check:
    """An exact search on the GPU against the CPU's, if the wheel has GPUs."""
    import faiss

    if device.type != "cuda" or not getattr(faiss, "get_num_gpus", lambda: 0)():
        return Check("skip", "FAISS on the GPU", "this FAISS uses the CPU only: indexes and clusters are computed there")
    rng = np.random.default_rng(0)
    base, asked = rng.standard_normal((5000, 64), np.float32), rng.standard_normal((50, 64), np.float32)
    index = faiss.IndexFlatIP(64)
    index.add(base)
    expected, places = index.search(asked, 5)
    found, found_places = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index).search(asked, 5)
    same = float((places == found_places).mean())
    good = same > 0.99 and bool(np.allclose(found, expected, rtol=1e-3, atol=1e-3))
    return Check("ok" if good else "fail", "FAISS on the GPU", f"{100 * same:.1f} % of the neighbours are the CPU's",
                 "" if good else "pip install faiss-cpu")  # fmt: skip


def check_memory(device: torch.device) -> Check:
    """An allocation that cannot fit ends as an error, and the device works on after it."""
    subject = "memory that runs out"
    try:
        torch.empty(2**50, dtype=torch.uint8, device=device)
    except (torch.OutOfMemoryError, RuntimeError):
        after = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
        if float(after.sum()) == 64**3:
            return Check("ok", subject, "an error, and the device works on")
        return Check("fail", subject, "the device computes wrongly after it", "restart the machine")
    return Check("fail", subject, "a petabyte was granted", "turn off memory overcommitment")


def checks(device: torch.device) -> Iterator[Check]:
    """All checks, as they end; a check that raises counts as failed."""
    precisions = ["float32"] + (["bfloat16"] if fitting(device) == "bfloat16" or device.type == "cpu" else [])
    todo: list[tuple[str, Callable[[], Check]]] = []
    for precision in precisions:
        todo += [(f"{n}, {precision}", lambda n=n, p=precision: check_method(n, device, p)) for n in METHODS]  # type: ignore[misc]
    todo += [
        ("compiled step", lambda: check_compile(device)),
        ("replayed passes", lambda: check_replay(device)),
        ("batches made ahead", lambda: check_ahead(device)),
        ("optimizers", lambda: check_optimizer(device)),
        ("checkpoint and resume", lambda: check_resume(device)),
        ("FAISS on the GPU", lambda: check_faiss(device)),
        ("memory that runs out", lambda: check_memory(device)),
    ]
    if len(precisions) == 1:
        yield Check("skip", "bfloat16", "this card has none of its own: precision=auto is float32 here")
    for subject, work in todo:
        began = time.perf_counter()
        try:
            result = work()
        except CzslError as error:
            result = Check("fail", subject, f"{error.what} {error.why}".strip(), error.fix)
        except Exception as error:  # what is broken must not hide the other checks
            result = Check("fail", subject, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", NEWER)
        yield replace(result, seconds=round(time.perf_counter() - began, 2))
