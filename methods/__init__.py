"""The science: one method a folder or file, all through one contract (`methods.method`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from czsl.reading import PathLike

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from torch import Tensor

    from czsl.clip.backbone import Clip
    from methods.method import Method

__all__ = ["from_reference", "load"]


def load(run: PathLike, checkpoint: str = "best") -> Method:
    """The trained method of a run folder, on the CPU, ready to predict; see :func:`methods.loading.load`."""
    from methods.loading import load as load_run

    return load_run(run, checkpoint)


def from_reference(
    name: str,
    state: Mapping[str, Tensor],
    attributes: Sequence[str],
    objects: Sequence[str],
    config: Mapping[str, Any] | None = None,
    clip: Clip | None = None,
) -> Method:
    """A method with the weights of a public program's checkpoint; see :func:`methods.reference.from_reference`."""
    from methods.reference import from_reference as read

    return read(name, state, attributes, objects, config, clip)
