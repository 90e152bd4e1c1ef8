"""A trained method from its run folder."""

from __future__ import annotations

from pathlib import Path

from czsl.clip.backbone import load_clip
from czsl.runs import checkpoint
from czsl.runs.run import Run
from methods.building import build, check_fits
from methods.method import Method


def load(run: str | Path | Run, which: str = "best") -> Method:
    """The method of a run, on the CPU, in evaluation mode.

    Parameters
    ----------
    run : path or Run
        A run folder.
    which : str, default "best"
        ``best``, ``last`` or a step.

    Raises
    ------
    UsageError
        Not a run, no usable checkpoint, or one of another backbone or vocabulary.
    """
    run = run if isinstance(run, Run) else Run(run)
    config = run.config
    clip = load_clip(config.clip, config.clip_weights)
    method = build(config.method, run.space, clip, config.model)
    if method.trains:
        kept = checkpoint.load(checkpoint.find(run.checkpoints, which))
        check_fits(kept, method)
        method.load_state_dict(kept.method)
    return method.eval()
