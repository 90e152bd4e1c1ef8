"""Bytes that a training step keeps for its backward pass, from the step itself on tensors that have shapes and no values.

A copy of the method takes a step on torch's fake tensors: every operation gives the shapes that it would give, and nothing is allocated
or computed. Autograd's saved tensors are counted, each storage once, weights excluded. So the count follows every change of a method.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from czsl.clip.prompt_tree import skeleton
from czsl.recompute import watched
from czsl.runs.config import RunConfig
from methods.method import Method
from methods.parts.comm import Communicator
from methods.parts.label_confidences import LabelConfidences


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one worker in a training step.

    clip, trained, buffers : weights of the frozen towers, trained weights, and other state of the method (prototypes, averages)
    batch : images or features, and labels
    activations : kept for the backward pass, with the largest of the parts that it computes again
    """

    clip: int
    trained: int
    buffers: int
    batch: int
    activations: int


def step_bytes(
    method: Method, config: RunConfig, precision: str, workers: int = 1, confidences: LabelConfidences | None = None
) -> StepBytes:
    """Count a worker's share of a step. The method is not changed.

    Parameters
    ----------
    method : Method
        On the CPU, as it is before training.
    config : RunConfig
        Its batch, ``accumulate``, ``checkpoint_blocks`` and augmentation.
    precision : str
        ``float32``, ``bfloat16`` or ``float64``.
    workers : int, default 1
        Number of workers; the last one is counted, as no other has a larger share.
    confidences : LabelConfidences, optional
        Those of a training on candidate labels.

    Raises
    ------
    Exception
        Any, if a method's step depends on values.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    twin = _without_values(method, mode, precision)
    twin.comm, twin.confidences = _Share(workers, config.batch, config.accumulate), confidences
    twin.clip.visual.checkpointing = config.checkpoint_blocks
    parameters, buffers = list(twin.parameters()), list(twin.buffers())
    towers = [*twin.clip.parameters(), *twin.clip.buffers()]
    with warnings.catch_warnings(), _shapes_only(mode):
        warnings.simplefilter("ignore")
        if precision == "bfloat16":
            twin.clip.compute_in(precision)
        twin.begin_epoch(0)
        batch = _batch(twin, config)
        counted = Counted([*parameters, *buffers, *towers])
        cast = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()
        with counted.counting(), cast:
            twin.training_step(batch)
    trained = [p for p in parameters if p.requires_grad]
    held = [] if confidences is None else [confidences.index_NS, confidences.inside_NS, confidences.weight_NS]
    return StepBytes(
        clip=_bytes(towers),
        trained=_bytes(trained),
        buffers=_bytes(buffers) + _bytes(held),
        batch=_bytes(batch.values()),
        activations=counted.total,
    )


@dataclass
class Counted:
    """Storages that autograd keeps, and those of the largest part that the backward pass computes again.

    ``without`` are tensors that are not counted.
    """

    without: list[Tensor]
    kept: dict[int, int] = field(default_factory=dict)
    largest: int = 0
    _held: list[Any] = field(default_factory=list)  # so that no storage's place is used twice
    _excluded: set[int] = field(default_factory=set)

    def __post_init__(self):
        self._excluded |= {t.untyped_storage()._cdata for t in self.without}

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(self.kept.values()) + self.largest

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what the block keeps."""
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda x: x), watched(self._part):
            yield

    def _keep(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self._excluded:
            self.kept[storage._cdata] = storage.nbytes()
            self._held.append(storage)
        return x

    def _part(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A part of which only the arguments are kept until the backward pass comes to it."""
        for x in args:
            if isinstance(x, Tensor):
                self._keep(x)
        inner = Counted([], _excluded=self._excluded | self.kept.keys())
        with inner.counting():
            out = function(*args)
        self.largest = max(self.largest, inner.total)
        self._held.append(inner)
        return out


class _Share(Communicator):
    """The last of several workers, whose others are not there: what they would send has its shape only."""

    def __init__(self, workers: int, batch: int, parts: int):
        self.rank, self.world, self.batch, self.parts = workers - 1, workers, batch, parts

    def gather(self, x: Tensor, rows: int) -> Tensor:
        """All rows."""
        return x if len(x) == rows else torch.cat([x.new_zeros(rows - len(x), *x.shape[1:]), x])


class _Numbers(TorchFunctionMode):
    """Zeros in the place of numbers that are read back from tensors without values; they must not decide about shapes."""

    READ: ClassVar[dict[Any, Any]] = {Tensor.item: 0, Tensor.__int__: 0, Tensor.__float__: 0.0, Tensor.__bool__: False}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.READ and isinstance(args[0], FakeTensor):
            return self.READ[func]
        if func is Tensor.numpy and isinstance(args[0], FakeTensor):
            return np.zeros(args[0].shape)
        return func(*args, **(kwargs or {}))


@contextmanager
def _shapes_only(mode: FakeTensorMode) -> Iterator[None]:
    skeleton.cache_clear()  # indices that are kept between steps: those with and those without values must not mix
    try:
        with mode, _Numbers():
            yield
    finally:
        skeleton.cache_clear()


def _without_values(method: Method, mode: FakeTensorMode, precision: str) -> Method:
    """A copy in training mode whose weights have shapes only; nothing of the method's own is copied or shared for writing."""
    memo: dict[int, Any] = {}
    with mode:
        for tensor in (t for owner in (method, method.clip) for t in (*owner.parameters(), *owner.buffers())):
            dtype = torch.float64 if precision == "float64" and tensor.is_floating_point() else tensor.dtype
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
            memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    memo[id(method.space)] = method.space
    twin = copy.deepcopy(method, memo)
    twin.clip.__dict__["sha256"] = ""  # of weights that are not there
    twin._train_pairs = torch.from_numpy(method.space.train_pairs.copy())
    twin.without_values()
    return twin.train()


def _batch(twin: Method, config: RunConfig) -> dict[str, Any]:
    """The last worker's images of a step and all labels, as the training loop hands them to the method."""
    share = twin.comm.share(config.batch)
    rows = share.stop - share.start
    prepared = twin.prepare(Image.new("RGB", (twin.clip.image_size,) * 2), "0")
    batch = {key: torch.empty(rows, *value.shape, dtype=value.dtype) for key, value in prepared.items()}
    if twin.frozen_images and (config.augment_copies or not config.augments(True)):
        with torch.no_grad():
            batch = {"features": twin.image_features(batch)}
    if twin.confidences is None:
        batch |= {key: torch.zeros(config.batch, dtype=torch.long) for key in ("attr", "obj", "pair")}
    return {**batch, "index": torch.arange(config.batch)}


def _bytes(tensors: Any) -> int:
    """Bytes of the storages of tensors, each once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
