"""Work that does not fit into the GPU's memory: who holds it, how much is needed, and what would fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from cluster.work.comm import Group
from czsl.errors import CzslError
from czsl.runs.config import RunConfig

MARGIN = 1.15  # of the estimate, which is within 15 % of what a step keeps
MiB = 2**20


class GpuMemoryError(CzslError):
    """A step does not fit into the GPU's memory; repeating it would not help."""

    exit_code = 4


def out_of_memory(
    error: BaseException, config: RunConfig, precision: str, step: int, workers: int = 1, held: str = ""
) -> GpuMemoryError:
    """The error of a step that did not fit, with the settings that would make it smaller, those first that change no result most.

    ``held`` describes who holds the GPU's memory (:func:`holders`).
    """
    ways = [] if config.checkpoint_blocks else ["checkpoint_blocks=true (the same result, but slower)"]
    parts = min(config.batch, max(2 * config.accumulate, 4))
    ways += [f"accumulate={parts} (the same result within rounding, but slower)"] if parts > config.accumulate else []
    ways += ["more workers (each takes its share of the batch)"]
    ways += [] if precision == "bfloat16" else ["precision=bfloat16"]
    ways += [f"batch={config.batch // 2}"] if config.batch > 1 else []
    share = -(-config.batch // workers)
    said = "; ".join(filter(None, [held, _first(error)]))
    return GpuMemoryError(
        f"the GPU's memory is too small for step {step}",
        f"{share} images per worker in {precision}: {said}",
        f"start a new run with {', '.join(ways)}; czsl train --dry-run estimates the memory; the last checkpoint is kept",
    )


def check_room(
    config: RunConfig, precision: str, device: torch.device, needed: Callable[[RunConfig, str], int], bfloat16: bool
) -> None:
    """Compare what a training needs with what is free on its GPU, before anything is put there.

    Parameters
    ----------
    config : RunConfig
    precision : str
        The precision of the run.
    device : torch device
        Nothing is checked on a CPU.
    needed : callable
        Returns the bytes of a worker for other settings and another precision; they are within 15 % of a real step's.
    bfloat16 : bool
        The card has bfloat16.

    Raises
    ------
    GpuMemoryError
        Even if the estimate is 15 % too large, the training does not fit.
    """
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    asked = needed(config, precision)
    if asked <= free * MARGIN:
        return
    fits = largest_that_fits(config, precision, bfloat16, lambda c, p: needed(c, p) * MARGIN <= free)
    ways = ["end the other processes (nvidia-smi lists them) or use another GPU"] if total - free > total / 20 else []
    ways += [f"this would fit: {fits}" if fits else "no smaller setting fits: use a GPU with more memory, or a smaller CLIP"]
    raise GpuMemoryError(
        f"the GPU has {free / MiB:,.0f} MiB free, and the training needs about {asked / MiB:,.0f} MiB",
        holders(device),
        "; ".join(ways),
    )


def agreed_room(check: Callable[[], None], comm: Group) -> None:
    """Check the memory of all workers; if one of them has too little, all raise its error, and none waits for another."""
    fault = None
    try:
        check()
    except GpuMemoryError as error:
        fault = (error.what, error.why, error.fix)
    for found in comm.gather_objects(fault):
        if found is not None:
            raise GpuMemoryError(*found)


def largest_that_fits(config: RunConfig, precision: str, bfloat16: bool, fits: Callable[[RunConfig, str], bool]) -> str:
    """Return smaller settings that fit, as words, those first that change no result most; empty if none fits.

    Each estimate takes seconds for a large model. More parts, recomputed blocks and bfloat16 need less memory, so a group of settings
    is passed over if its smallest member does not fit.
    """
    formats = [precision, "bfloat16"] if bfloat16 and precision == "float32" else [precision]
    blocks = [True] if config.checkpoint_blocks else [False, True]
    batches = [config.batch // n for n in (1, 2, 4, 8, 16) if config.batch // n]
    known: dict[tuple[int, str, bool, int], bool] = {}

    def parts(batch: int) -> list[int]:
        more = [n for n in (2, 4, 8, 16, 32) if config.accumulate < n <= batch]
        return [config.accumulate, *more] if config.accumulate <= batch else more or [batch]

    def fit(batch: int, p: str, recompute: bool, accumulate: int) -> bool:
        key = (batch, p, recompute, accumulate)
        if key not in known:
            changed = replace(config, batch=batch, accumulate=accumulate, checkpoint_blocks=recompute)
            known[key] = fits(changed, p)
        return known[key]

    if not fit(batches[-1], formats[-1], blocks[-1], parts(batches[-1])[-1]):
        return ""
    batch = next(b for b in batches if fit(b, formats[-1], blocks[-1], parts(b)[-1]))
    groups = [(p, recompute) for p in formats for recompute in blocks]
    p, recompute = next(group for group in groups if fit(batch, *group, parts(batch)[-1]))
    accumulate = next(n for n in parts(batch) if fit(batch, p, recompute, n))
    words = ["checkpoint_blocks=true"] if recompute and not config.checkpoint_blocks else []
    words += [f"accumulate={accumulate}"] if accumulate != config.accumulate else []
    words += [f"precision={p}"] if p != precision else []
    words += [f"batch={batch}"] if batch != config.batch else []
    return " ".join(words)


def holders(device: torch.device) -> str:
    """Return who holds a GPU's memory, as text: this process, and all others together; empty for a CPU."""
    if device.type != "cuda":
        return ""
    try:
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
    except RuntimeError:
        return ""
    others = max(total - free - own, 0)
    return (
        f"{free / MiB:,.0f} of {total / MiB:,.0f} MiB are free, this process holds {own / MiB:,.0f} MiB, "
        f"other processes and the driver {others / MiB:,.0f} MiB"
    )


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise :class:`GpuMemoryError` where the block runs out of the GPU's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise too_full(error) from None


def too_full(error: BaseException) -> GpuMemoryError:
    """The error of work of any kind that ran out of the GPU's memory."""
    held = holders(torch.device("cuda")) if torch.cuda.is_available() else ""
    return GpuMemoryError(
        "the GPU's memory ran out",
        "; ".join(filter(None, [held, _first(error)])),
        "end the other processes (nvidia-smi lists them), use another GPU, or the CPU: CUDA_VISIBLE_DEVICES= (empty)",
    )


def _first(error: BaseException) -> str:
    """The first 200 characters of a message, in one line."""
    return " ".join(str(error).split())[:200]
