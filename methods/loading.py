"""A trained method from its run folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from czsl.clip.backbone import load_clip
from czsl.runs import checkpoint
from czsl.runs.run import Run
from methods.building import build, check_fits
from methods.method import Method
from methods.registry import method_class


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


def fingerprint(run: Run, which: str = "best") -> str:
    """SHA-256 of what scores follow from beside the data: the run's settings and, where it trained, the checkpoint's weights."""
    settings = {key: value for key, value in run.config.to_dict().items() if key != "data"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if method_class(run.config.method).trains:
        manifest = checkpoint.find(run.checkpoints, which) / "manifest.json"
        digest.update(json.loads(manifest.read_text(encoding="utf-8"))["method.safetensors"].encode())
    return digest.hexdigest()
