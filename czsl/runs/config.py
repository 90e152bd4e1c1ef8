"""Settings of a run other than those of its method."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from czsl.data.photographs import DecodeOptions
from czsl.errors import UsageError
from czsl.runs.schedules import check_schedule, factor
from czsl.runs.tracker_names import tracker_names

PRECISIONS = ("auto", "float32", "bfloat16", "float64")
PIXELS = ("auto", "kept", "streamed")
COMPILE = ("off", "auto")
OPTIMIZERS = ("adam", "adamw")
LABEL_INITS = ("clip", "uniform", "multihot")
SELECTIONS = ("auc", "auc20", "hm", "accuracy", "last")


@dataclass
class RunConfig:
    """Settings of a run; ``config.yaml`` holds them in full.

    method: name in the registry.
    preset: named settings of the method (``czsl methods`` lists them).
    recipe: named settings for a dataset's size (learning rate, epochs, batch, weights), a second axis next to the preset.
    data: dataset folder, or ``toy``.
    clip: ``tiny``, an open_clip model, ``hf-hub:org/name``, a model's folder, or a weight file (docs/weights.md).
    clip_weights: published tag or file for an open_clip model.
    seed: of initial weights, sample order, augmentation and dropout.
    epochs: passes over the training images.
    batch: images per step over all workers together.
    accumulate: number of parts in which a worker does its images and prompts of a step. The result is that of the whole batch within
        rounding; memory is that of a part, and the towers run forward twice.
    optimizer: ``adam``, or ``adamw``: decoupled decay in the form of the public programs (see `czsl.runs.optimizers`).
    lr: learning rate.
    weight_decay: L2 added to the gradient with adam, decoupled with adamw.
    schedule: how the learning rate falls after the warm-up: ``step`` (by ``lr_gamma`` after every ``lr_step`` epochs), ``cosine`` (to 0 at
        the last step) or ``constant``.
    warmup: epochs, whole or not, in which the learning rate rises from 0 to its full value, a little in each step.
    lr_step: epochs after which the learning rate falls.
    lr_gamma: by this factor.
    lr_steps_per_epoch: scheduler steps per epoch (2 imitates ClusPro's released loop).
    augment: flip, perspective and rotation of training images, new ones in each epoch. ``null``: if training changes the image tower, but
        not if it is frozen and its features are kept; ``true``: always, so that a frozen tower encodes each image in every epoch.
    augment_copies: for a frozen image tower: keep this many augmented features of each training image, drawn by seed and image, and
        show one after the other, one an epoch. 0: encode each augmented image in the step.
    train_per_pair: use at most this many training images per pair (0: all), drawn with the seed.
    val_per_pair: the same for the validation images that choose the best checkpoint.
    selection: the epoch that counts as best: the one of the largest ``auc`` on the validation images, of the largest ``auc20`` (in 20
        bins, by which the public loops choose), the largest harmonic mean ``hm``, the largest ``accuracy`` over all images without a
        bias, or the ``last``.
    stop_after: end training after this many epochs in a row without a better one by ``selection``; 0: train all epochs.
    log: where the run's metrics are also written: ``tensorboard``, ``mlflow``, ``wandb``, or several with commas between.
    eval_batch: images per batch in evaluation; fixed, so that results do not depend on the number of workers.
    precision: auto, float32, bfloat16 (matrix products of the towers and of training; scores stay in float32) or float64. ``auto``:
        bfloat16 on a GPU of compute capability 8.0 or more, else float32, with TF32 for float32 products of a GPU; the run keeps what it
        began with, in evaluation and prediction as well.
    pixels: decoded images: ``kept`` in a file of the cache folder (150 KB per image at 224 px), ``streamed`` (read and decoded for each
        batch), or ``auto``: kept up to 64 GiB per split and half of the free disk. Results are equal.
    checkpoint_blocks: recompute the image tower's activations in the backward pass: less memory, more time.
    compile: ``auto`` starts fewer kernels, on a GPU without recomputed activations: torch.compile for what towers repeat, and CUDA graphs
        for passes through them; ``off``.
    orientation: how photographs are turned: ``exif``, or ``ignore`` (as stored); by default as the dataset remembers it.
    background: colour below transparent pixels: ``white``, ``grey``, ``black``, ``#rrggbb``, or ``ignore`` (transparency is dropped); by
        default as the dataset remembers it.
    threads: CPU threads per worker (0: what the node offers); part of the result's last bits, so stored with the run.
    partial_labels: file of candidate sets (`czsl data partial`) that training is given instead of labels.
    label_init: initial confidences of an image's candidate labels: ``clip`` (softmax of frozen CLIP's similarity less its mean over
        the images), ``uniform``, or ``multihot`` (ones).
    label_momentum: how far each visit moves the label confidences towards the method's own probabilities; 0 keeps them, 1 replaces them.
    label_temperature: divides the log-probabilities that label confidences follow.
    label_relevance: power of the image's relevance to a label in new confidences, for methods that have one (clip-pzsl).
    label_warmup: epochs before label confidences begin to move.
    label_rescue: share of new confidences spread over all seen pairs, candidate labels or not, for sets that may lack the true label.
    model: the method's own fields.
    """

    method: str = "clusPro"
    preset: str | None = None
    recipe: str | None = None
    data: str = "toy"
    clip: str = "tiny"
    clip_weights: str | None = None
    seed: int = 0
    epochs: int = 10
    batch: int = 64
    accumulate: int = 1
    optimizer: str = "adam"
    lr: float = 1e-4
    weight_decay: float = 1e-5
    schedule: str = "step"
    warmup: float = 0.0
    lr_step: int = 5
    lr_gamma: float = 0.5
    lr_steps_per_epoch: int = 1
    augment: bool | None = None
    augment_copies: int = 0
    train_per_pair: int = 0
    val_per_pair: int = 0
    selection: str = "auc"
    stop_after: int = 0
    log: str | None = None
    eval_batch: int = 64
    precision: str = "auto"
    pixels: str = "auto"
    checkpoint_blocks: bool = False
    compile: str | bool = "off"
    orientation: str | None = None
    background: str | None = None
    threads: int = 0
    partial_labels: str | None = None
    label_init: str = "clip"
    label_momentum: float = 0.1
    label_temperature: float = 1.0
    label_relevance: float = 1.0
    label_warmup: int = 2
    label_rescue: float = 0.0
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name, minimum in (
            ("seed", 0),
            ("epochs", 0),
            ("batch", 1),
            ("accumulate", 1),
            ("eval_batch", 1),
            ("lr", 0),
            ("weight_decay", 0),
            ("warmup", 0),
            ("lr_step", 1),
            ("lr_gamma", 0),
            ("lr_steps_per_epoch", 0),
            ("augment_copies", 0),
            ("train_per_pair", 0),
            ("val_per_pair", 0),
            ("stop_after", 0),
            ("threads", 0),
            ("label_relevance", 0),
            ("label_warmup", 0),
        ):
            if not minimum <= getattr(self, name) < math.inf:  # NaN is neither
                raise UsageError(
                    f"{name} is {getattr(self, name)}", f"it must be at least {minimum}", f"set {name}={minimum} or more"
                )
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(
                f"unknown optimizer {self.optimizer!r}",
                "the optimizers are those listed below",
                f"choose one of {', '.join(OPTIMIZERS)}",
            )
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"unknown precision {self.precision!r}",
                "the precisions are those listed below",
                f"choose one of {', '.join(PRECISIONS)}",
            )
        if self.pixels not in PIXELS:
            raise UsageError(
                f"unknown way of pixels {self.pixels!r}",
                "pixels are kept or streamed; auto chooses by the size of a split",
                f"choose one of {', '.join(PIXELS)}",
            )
        if self.compile is False:  # YAML reads the word off so
            self.compile = "off"
        if self.compile not in COMPILE:
            raise UsageError(
                f"unknown way to compile {self.compile!r}",
                "a step is compiled where it helps, or not",
                f"choose one of {', '.join(COMPILE)}",
            )
        if self.accumulate > self.batch:
            raise UsageError(
                f"accumulate is {self.accumulate}",
                f"a batch of {self.batch} images has no more than {self.batch} parts",
                f"set accumulate={self.batch} or less, or a larger batch",
            )
        check_schedule(self.schedule, self.warmup, self.epochs)
        tracker_names(self.log)
        if self.selection not in SELECTIONS:
            raise UsageError(
                f"unknown selection {self.selection!r}",
                "checkpoints are chosen in one of these ways",
                f"choose one of {', '.join(SELECTIONS)}",
            )
        if self.stop_after and self.selection == "last":
            raise UsageError(
                f"stop_after={self.stop_after} with selection=last",
                "the last epoch always counts as the best, so training would never stop",
                "choose selection=auc, hm or accuracy, or leave stop_after out",
            )
        if self.augment_copies and self.augment is False:
            raise UsageError(
                f"augment_copies={self.augment_copies} without augmentation",
                "the copies are augmented features of the training images, and augment=false makes none",
                "set augment=true, or leave augment_copies out",
            )
        self._check_labels()
        DecodeOptions.from_settings(self.orientation, self.background)  # refuses unknown values

    @property
    def decode(self) -> DecodeOptions:
        """Options for decoding images in training, evaluation and prediction; ``as stored`` for runs older than this choice."""
        return DecodeOptions.from_settings(self.orientation, self.background)

    def remember(self, decode: DecodeOptions) -> None:
        """Take what is not set from the dataset that the run is trained on."""
        self.orientation, self.background = self.orientation or decode.orientation, self.background or decode.background

    def _check_labels(self) -> None:
        if self.label_init not in LABEL_INITS:
            raise UsageError(
                f"unknown label_init {self.label_init!r}",
                "label confidences start in one of these ways",
                f"choose one of {', '.join(LABEL_INITS)}",
            )
        for name in ("label_momentum", "label_rescue"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "it is a share", "set it between 0 and 1")
        if not 0 < self.label_temperature < math.inf:
            raise UsageError(f"label_temperature is {self.label_temperature}", "it must be above 0", "1 is the default")
        if self.partial_labels and self.train_per_pair:
            raise UsageError(
                "train_per_pair cannot be had with partial labels",
                "it chooses images by their true labels",
                "leave one of them out",
            )

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0, in a training of ``epochs`` times ``steps_per_epoch`` steps."""
        falls = step // steps_per_epoch * self.lr_steps_per_epoch // self.lr_step if self.schedule == "step" else 0
        total, rising = self.epochs * steps_per_epoch, self.warmup * steps_per_epoch
        return self.lr * self.lr_gamma**falls * factor(self.schedule, step, total, rising)

    def augments(self, frozen: bool) -> bool:
        """Return whether training images are augmented, with an image tower that is ``frozen`` (its features could be kept) or not."""
        return not frozen if self.augment is None else self.augment

    @classmethod
    def from_file(cls, settings: dict[str, Any]) -> RunConfig:
        """Settings as a run folder keeps them; see :func:`as_made`."""
        return cls(**as_made(settings))

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order of the fields."""
        return asdict(self)

    @classmethod
    def field_names(cls) -> list[str]:
        """Names that ``key=value`` can set."""
        return [f.name for f in fields(cls) if f.name != "model"]


def as_made(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run folder in today's terms: what has another meaning now than when the run was made is translated.

    Fields that the folder lacks have defaults that leave a run as it was.
    """
    if not isinstance(settings, dict):
        return settings
    settings = {"precision": "float32", **settings}  # the default before there was ``auto``
    if "augment_copies" not in settings and settings.get("augment") is True:  # it had no effect on kept features then
        return {**settings, "augment": None}
    return settings
