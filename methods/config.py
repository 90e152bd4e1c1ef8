"""The settings of a method, and what must be known of it before anything is computed.

It imports no torch, nor do the ``config`` modules of methods: commands that only look at settings answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from czsl.errors import UsageError

if TYPE_CHECKING:
    from czsl.compositions import CompositionSpace
    from czsl.data.table import Dataset


@dataclass
class MethodConfig:
    """Fields of every method.

    names: how labels enter prompts: ``clean`` (``_`` becomes a space) or ``reference`` (``_`` stays, as in the public programs).
    """

    # Fields that may be given as a file, with what reads it: a run keeps the content, not the path.
    reads: ClassVar[Mapping[str, Callable[[Path], Any]]] = {}

    # The method in messages, if the class has another name; and a line about it for the list of methods.
    label: ClassVar[str] = ""
    about: ClassVar[str] = ""
    trains: ClassVar[bool] = True
    # Whether labels may be plain classes, which have no attribute; :func:`methods.registry.check_labels` refuses them elsewhere.
    classes: ClassVar[bool] = False
    # Whether an adaptation while testing can move its scores: those of an indexable method, see `Method.adaptable`.
    adaptable: ClassVar[bool] = False
    # Whether training takes gradient steps. Without them :meth:`methods.method.Method.initialise` is all of it, and epochs is 0.
    steps: ClassVar[bool] = True
    # Whether `czsl add` can add images and words to a finished run; the method then has ``add_images``.
    grows: ClassVar[bool] = False

    names: Literal["clean", "reference"] = "clean"

    def __post_init__(self):
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise self.refused(name, f"choose one of {', '.join(map(str, get_args(hint)))}")
            if name.endswith("dropout") and not 0 <= getattr(self, name) <= 1:
                raise self.refused(name, "it is a probability: set it between 0 and 1")

    @property
    def only_features(self) -> bool:
        """True if, with these settings, the method needs only features of images and texts: then any model will do."""
        return False

    @property
    def keeps_features(self) -> bool:
        """True if training does not change the image tower, so that an image's features [D] can be computed once and kept."""
        return False

    @classmethod
    def called(cls) -> str:
        """The method's name in messages."""
        return cls.label or cls.__name__.removesuffix("Config")

    def refused(self, name: str, why: str) -> UsageError:
        """Return the UsageError for an invalid field value."""
        return UsageError(
            f"{self.called()}: {name}={getattr(self, name)!r}", why, "czsl methods NAME lists the fields of a method"
        )

    @classmethod
    def read_files(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings in which files are replaced by what they hold."""
        return {k: cls.reads[k](Path(v)) if k in cls.reads and isinstance(v, str) else v for k, v in settings.items()}

    def notes(self, space: CompositionSpace) -> list[str]:
        """Return warnings about these settings for a label space; raises a `CzslError` if they do not fit it."""
        return []

    def data_notes(self, data: Dataset) -> list[str]:
        """Return warnings about the settings' files that do not match a dataset's images."""
        return []
