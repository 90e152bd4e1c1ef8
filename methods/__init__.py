"""The methods, one folder or file each, with one common interface (`methods.contract`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from czsl_start import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from torch import Tensor

    from czsl.clip.backbone import Clip
    from czsl.reading import PathLike
    from methods.method import Method

__all__ = ["adapt_stream", "adapt_tiles", "from_reference", "load"]

require("czsl", "methods")


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


def adapt_stream(
    name: str, image_features: Any, text_features: Any, logit_scale: float, settings: Mapping[str, Any] | None = None
) -> Tensor:
    """Scores [N, P] of a stream of image features [N, D] that adapts; see :func:`methods.adaptation.stream.adapt_stream`."""
    from methods.adaptation.stream import adapt_stream as adapt

    return adapt(name, image_features, text_features, logit_scale, settings)


def adapt_tiles(
    name: str, images: Iterable[Any], text_features: Any, logit_scale: float, settings: Mapping[str, Any] | None = None
) -> Iterator[Tensor]:
    """The same for blocks of images [B, D], one tile of scores [B, P] each; see :func:`methods.adaptation.stream.adapt_tiles`."""
    from methods.adaptation.stream import adapt_tiles as adapt

    return adapt(name, images, text_features, logit_scale, settings)
