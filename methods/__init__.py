"""The science: one method a folder or file, all through one contract (`methods.method`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from methods.method import Method

__all__ = ["load"]


def load(run: str | Path, checkpoint: str = "best") -> Method:
    """The trained method of a run folder, on the CPU, ready to predict; see :func:`methods.loading.load`."""
    from methods.loading import load as load_run

    return load_run(run, checkpoint)
