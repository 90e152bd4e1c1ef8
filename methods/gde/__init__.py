"""GDE: directions of attributes and objects in the space of frozen image features; nothing is trained by gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.gde.geometry import Directions, directions

__all__ = ["Directions", "directions"]


def __getattr__(name: str) -> Any:
    """Import :mod:`methods.gde.geometry` on use: commands that only look at settings start without torch."""
    if name not in __all__:
        raise AttributeError(name)
    from methods.gde import geometry

    return getattr(geometry, name)
