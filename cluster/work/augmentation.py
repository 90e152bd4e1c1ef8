"""Checks of the settings of augmentation and of the public loops for a method: refused, without effect, or expensive."""

from __future__ import annotations

from czsl.errors import UsageError
from czsl.runs.config import RunConfig
from methods.registry import config_class


def check_loop(config: RunConfig, frozen: bool, trains: bool = True, images: int | None = None) -> list[str]:
    """Return warnings about settings of the training loop that have no effect, or one that is dear.

    Parameters
    ----------
    config : RunConfig
    frozen : bool
        Whether the method's image tower is frozen, so that features can be kept.
    trains : bool, default True
        Whether the method trains at all.
    images : int, optional
        Number of training images, for the warning about costs.

    Raises
    ------
    UsageError
        ``augment_copies`` without augmentation, or with a tower that training changes.
    """
    if not trains or not config.epochs:
        given = [f"augment={str(config.augment).lower()}"] if config.augment is not None else []
        given += [f"augment_copies={config.augment_copies}"] if config.augment_copies else []
        why = "needs no training" if not trains else "takes no training steps here"
        return [f"{config.method} {why}: {' and '.join(given)} has no effect"] if given else []
    notes = []
    if config.model.get("train_mode") == "reference" and config.epochs < 2:
        notes.append("train_mode=reference has no effect in one epoch: the public loop leaves training mode after the first")
    if not frozen:
        if config.augment_copies:
            raise UsageError(
                f"augment_copies={config.augment_copies} with an image tower that training changes",
                f"copies are kept features, and the features of {config.method} change in every step (or are too many to keep)",
                "leave augment_copies out: the images are augmented in every epoch anyway",
            )
        return notes
    return [*notes, *_frozen_notes(config, images)]


def _frozen_notes(config: RunConfig, images: int | None) -> list[str]:
    notes, count = [], "all" if images is None else f"{images:,}"
    if config.checkpoint_blocks:
        notes.append("checkpoint_blocks=true has no effect: the image tower is frozen, so it keeps nothing for a backward pass")
    if config.augments(frozen=True):
        if config.augment_copies > config.epochs:
            notes.append(
                f"augment_copies={config.augment_copies} with {config.epochs} epochs: an epoch shows one copy, so only "
                f"{config.epochs} are made"
            )
        elif not config.augment_copies:
            notes.append(
                f"the frozen image tower encodes {count} augmented images in each of {config.epochs} epochs; augment_copies=K keeps K "
                "augmented features of each image instead"
            )
    elif config.augment_copies:
        raise UsageError(
            f"augment_copies={config.augment_copies} without augmentation",
            f"the image tower of {config.method} is frozen here and its features are kept: only augment=true augments its images",
            "set augment=true as well, or leave augment_copies out",
        )
    elif config.augment is None and not config_class(config.method)(**config.model).only_features:
        notes.append(
            "training images are not augmented: the image tower is frozen and its features are kept (augment=true augments them)"
        )
    return notes
