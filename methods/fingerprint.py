"""One hash of everything that a run's scores follow from. Needs no torch."""

from __future__ import annotations

import hashlib
import json

from czsl.reading import read_json
from czsl.runs import checkpoint
from czsl.runs.run import Run
from methods.registry import config_class


def fingerprint(run: Run, which: str = "best") -> str:
    """SHA-256 of what scores follow from besides the data: the run's settings and, if it was trained, the checkpoint's weights."""
    # As they were written: fields that later versions add say nothing about this run.
    settings = {key: value for key, value in run.settings.items() if key != "data"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if config_class(run.config.method).trains:
        manifest = checkpoint.find(run.checkpoints, which) / "manifest.json"
        digest.update(read_json(manifest)["method.safetensors"].encode())
    return digest.hexdigest()
