"""The error of a training step that does not fit into the GPU's memory."""

from __future__ import annotations

from czsl.errors import CzslError
from czsl.runs.config import RunConfig


class GpuMemoryError(CzslError):
    """A step does not fit into the GPU's memory; repeating it would not help."""

    exit_code = 4


def out_of_memory(error: BaseException, config: RunConfig, precision: str, step: int, workers: int = 1) -> GpuMemoryError:
    """The error of a step that did not fit, with the settings that would make it smaller, those first that change no result most."""
    ways = [] if config.checkpoint_blocks else ["checkpoint_blocks=true (the same result, but slower)"]
    parts = min(config.batch, max(2 * config.accumulate, 4))
    ways += [f"accumulate={parts} (the same result within rounding, but slower)"] if parts > config.accumulate else []
    ways += ["more workers (each takes its share of the batch)"]
    ways += [] if precision == "bfloat16" else ["precision=bfloat16"]
    ways += [f"batch={config.batch // 2}"] if config.batch > 1 else []
    share = -(-config.batch // workers)
    return GpuMemoryError(
        f"the GPU's memory is too small for step {step}",
        f"{share} images a worker in {precision}: {' '.join(str(error).split())[:200]}",
        f"start a new run with {', '.join(ways)}; czsl train --dry-run estimates the memory; the last checkpoint is kept",
    )
