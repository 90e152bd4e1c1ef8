"""A trained method from its run folder."""

from __future__ import annotations

from dataclasses import asdict

from czsl.clip.towers import Towers
from czsl.errors import UsageError
from czsl.evaluation.operating import seen_names
from czsl.gpus import own_device
from czsl.precision import fitting
from czsl.reading import PathLike
from czsl.runs import checkpoint
from czsl.runs.checkpoint import Checkpoint
from czsl.runs.files import sha256_file
from czsl.runs.run import Run
from methods.building import build, check_fits, clip_for
from methods.method import Method
from methods.points import stored_point
from methods.registry import config_class


def load(run: PathLike | Run, which: str = "best", clip: Towers | None = None, precision: str | None = None) -> Method:
    """The method of a run, on the CPU, in evaluation mode, with the run's operating point if it has one.

    Parameters
    ----------
    run : path or Run
        A run folder.
    which : str, default "best"
        ``best``, ``last`` or a step.
    clip : Clip, optional
        The run's CLIP if it is in memory already; the method stays on its device.
    precision : str, optional
        Precision of the towers' products, for a run without one of its own (``auto``, and nothing was trained); by
        default the one that suits the GPU, or float32.

    Raises
    ------
    UsageError
        Not a run, no usable checkpoint, or one of another backbone or vocabulary.
    """
    run = run if isinstance(run, Run) else Run(run)
    config = run.config
    if clip is None:
        clip = clip_for(config.method, config.model, config.clip, config.clip_weights)
    kept = None
    if config_class(config.method).trains:
        kept = checkpoint.load(checkpoint.find(run.checkpoints, which))
    method = build(config.method, run.space_of(kept.state if kept else {}), clip, config.model)
    if kept:
        check_fits(kept, method)
        method.load_state_dict(kept.method)
    method.decode = config.decode
    method.operating_point, method.stale_point = stored_point(run, which)
    method.trained_on = seen_names(method.space)
    method = method.to(clip.device).eval()
    clip.compute_in(run.precision or precision or fitting(own_device()))
    return method


def starting_point(source: Run, method: Method, data_sha256: str) -> Checkpoint:
    """Starting point of a new run: the weights of another run's best checkpoint on the new run's labels, and no optimizer state.

    What was learned of a name follows it, names that the source does not know start as they do without it.

    Parameters
    ----------
    source : Run
    method : Method
        Method of the new run, as built; it is not changed.
    data_sha256 : str
        SHA-256 of the new run's data.

    Raises
    ------
    UsageError
        Another method, another CLIP, settings by which the weights have other shapes, or no usable checkpoint.
    """
    again = "give the new run the same, or start it without --from"
    if source.config.method != method.name:
        raise UsageError(f"{source.path} trained {source.config.method}", f"the new run trains {method.name}", again)
    if not method.trains:
        raise UsageError(f"{method.name} has no weights to start from", "it needs no training", "leave out --from")
    if not method.steps:
        why = "it takes no steps: everything comes from one pass over the training images"
        raise UsageError(f"{method.name} starts from nothing", why, "leave out --from; czsl add gives images to a finished run")
    path = checkpoint.find(source.checkpoints, "best")
    kept, space, clip = checkpoint.load(path), method.space, method.clip
    if kept.state.get("clip_sha256") != clip.sha256:
        raise UsageError(
            f"{source.path} was trained with another CLIP",
            f"{kept.state.get('clip')} there, {clip.architecture} here, or other weights of it",
            again,
        )
    old = build(method.name, source.space, clip, source.config.model)
    check_fits(kept, old)
    old.load_state_dict(kept.method)
    # Shapes are compared after the move: labels may differ, settings may not.
    moved, own = old.for_space(space).state_dict(), method.state_dict()
    odd = sorted(k for k in moved.keys() | own.keys() if k not in moved or k not in own or moved[k].shape != own[k].shape)
    if odd:
        there, here = asdict(old.config), asdict(method.config)
        fields = ", ".join(f"{k}: {str(there[k])[:40]} there, {str(here[k])[:40]} here" for k in here if there[k] != here[k])
        raise UsageError(f"the weights of {source.path} do not fit: {', '.join(odd[:3])}", fields, again)
    state = {
        "step": 0, "epoch": 0, "place": 0, "best_auc": -1.0, "method": method.name,
        "clip_sha256": clip.sha256, "clip": clip.architecture, "data_sha256": data_sha256,
        "space": {"attributes": list(space.attributes), "objects": list(space.objects)},
        "from": {"run": str(source.path), "checkpoint": path.name, "sha256": sha256_file(path / "method.safetensors")},
    }  # fmt: skip
    return Checkpoint(moved, {}, state)
