"""The contract of a method: single-device science, no Ray, no file system, no argument parsing, no global state.

A method is built from a label space and a CLIP. An image's way is ``prepare`` (in the loader) -> ``encode_images`` ->
``scores`` against the text side of ``encode_compositions``. Letters: B images, P pairs, A attributes, O objects, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from czsl.clip.backbone import Clip
from czsl.compositions import CompositionSpace
from methods.parts.comm import Communicator


@dataclass
class MethodConfig:
    """Fields every method has; each method's own config adds its documented fields.

    names: how labels enter prompts, ``clean`` (``_`` becomes a space) or ``reference`` (``_`` stays).
    """

    names: str = "clean"


class Method(nn.Module):
    """Base class of all methods; see the module's text for the way of an image.

    Parameters
    ----------
    space : CompositionSpace
    clip : Clip
        Frozen towers; a method registers only what it trains beside it.
    config : MethodConfig
    """

    name: ClassVar[str]
    title: ClassVar[str]  # as printed: "ClusPro"
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    trains: ClassVar[bool] = True

    def __init__(self, space: CompositionSpace, clip: Clip, config: MethodConfig):
        super().__init__()
        self.space, self.config = space, config
        # Not a registered module: the frozen CLIP is neither trained nor saved with the method.
        object.__setattr__(self, "clip", clip)
        self.comm = Communicator()
"""
