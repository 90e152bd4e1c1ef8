"""From a name and fields to a method, and from a run to a trained one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from czsl.clip.backbone import Clip
from czsl.clip.loading import load_clip
from czsl.clip.towers import Towers
from czsl.compositions import CompositionSpace
from czsl.errors import UsageError, did_you_mean
from czsl.runs.checkpoint import Checkpoint
from czsl.runs.settings import typed
from methods.method import Method
from methods.registry import check_labels, config_class, method_class


def clip_for(name: str, settings: dict[str, Any], clip: str, weights: str | None = None) -> Towers:
    """The CLIP that a method with these settings works on: of any kind where features are enough for it.

    Raises
    ------
    UsageError, SetupError
        As :func:`czsl.clip.loading.load_clip`.
    """
    return load_clip(clip, weights, features=needs_only_features(name, settings))


def needs_only_features(name: str, settings: dict[str, Any]) -> bool:
    """Return whether a method with these settings needs only features of images and texts from CLIP."""
    own = config_class(name)
    return own(**typed(own.read_files(settings), own)).only_features


def build(name: str, space: CompositionSpace, clip: Towers, settings: dict[str, Any]) -> Method:
    """A method with its own fields set; the rest take their defaults.

    Raises
    ------
    UsageError
        Unknown method or field (with the nearest name), labels or a value that the method refuses, a CLIP of another kind than it needs.
    """
    cls = method_class(name)
    check_labels(name, space)
    known = [f.name for f in fields(cls.Config)]
    for key in settings:
        if key not in known:
            raise UsageError(f"{cls.name} has no field {key!r}", did_you_mean(key, known), f"its fields: {', '.join(known)}")
    config = cls.Config(**typed(cls.Config.read_files(settings), cls.Config))
    if not isinstance(clip, Clip) and not config.only_features:
        raise UsageError(
            f"{cls.name} cannot use {clip.name}",
            "with these settings it opens the towers of a plain CLIP ViT",
            "choose a ViT model, e.g. --clip ViT-B-16 or ViT-L-14",
        )
    try:
        return cls(space, clip, config)
    except (ValueError, RuntimeError, OverflowError, ZeroDivisionError, MemoryError) as error:  # sizes that are impossible
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UsageError(f"{cls.name} cannot be built with these settings", why, f"czsl methods {cls.name} lists them") from error


def check_fits(kept: Checkpoint, method: Method, data_sha256: str | None = None) -> None:
    """Refuse a checkpoint of another method, backbone, vocabulary or data.

    Raises
    ------
    UsageError
        Names what differs.
    """
    state, space = kept.state, method.space
    here = {
        "method": (state.get("method"), method.name),
        "CLIP architecture": (state.get("clip"), method.clip.architecture),
        "CLIP weights (SHA-256)": (state.get("clip_sha256"), method.clip.sha256),
        "attributes": (state.get("space", {}).get("attributes"), list(space.attributes)),
        "objects": (state.get("space", {}).get("objects"), list(space.objects)),
    }
    if data_sha256 is not None:
        here["data (SHA-256)"] = (state.get("data_sha256"), data_sha256)
    for what, (then, now) in here.items():
        if then != now:
            raise UsageError(
                f"the checkpoint was made with other {what}",
                f"checkpoint: {str(then)[:160]}; here: {str(now)[:160]}",
                "use the run's own data and --clip, or train again",
            )
    there, own = {k: v.shape for k, v in kept.method.items()}, {k: v.shape for k, v in method.state_dict().items()}
    if there != own:
        odd = sorted(k for k in there.keys() | own.keys() if there.get(k) != own.get(k))
        raise UsageError(
            "the checkpoint does not fit the method", f"differing tensors: {', '.join(odd[:5])}", "use the run's own config.yaml"
        )
