"""Checkpoints of a training: written by the first worker, restored by all."""

from __future__ import annotations

from typing import Any

import torch

from cluster.work.trainer import Trainer
from czsl.errors import UsageError
from czsl.runs import checkpoint
from czsl.runs.checkpoint import Checkpoint
from methods.building import check_fits


def save(t: Trainer) -> Any:
    """Write a checkpoint on rank 0; its path there, None elsewhere."""
    if t.comm.rank:
        return None
    moments = {
        f"{key}.{name}": value
        for name, p in t.parameters.items()
        for key, value in t.optimizer.state.get(p, {}).items()
        if isinstance(value, torch.Tensor)
    }
    state = {
        "step": t.step, "epoch": t.epoch, "place": t.place, "best_auc": t.best_auc, "waited": t.waited, "method": t.config.method,
        "clip_sha256": t.method.clip.sha256, "clip": t.method.clip.architecture, "data_sha256": t.data.sha256,
        "partial_labels_sha256": t.labels.sha256 if t.labels else None,
        "space": {"attributes": list(t.data.space.attributes), "objects": list(t.data.space.objects)},
    }  # fmt: skip
    labels = {} if t.method.confidences is None else {"weight": t.method.confidences.weight_NS}
    return checkpoint.save(t.run.checkpoints, Checkpoint(t.method.state_dict(), moments, state, labels))


def restore(t: Trainer) -> None:
    """Go on from the newest checkpoint that verifies, or from what the run starts with; rank 0 chooses for all."""
    newest = [checkpoint.newest_valid(folder) for folder in (t.run.checkpoints, t.run.start) if t.comm.rank == 0]
    path = t.comm.from_first(next(filter(None, newest), None))
    if path is None:
        return
    kept = checkpoint.load(path)
    check_fits(kept, t.method, t.data.sha256)
    t.method.load_state_dict({k: v.to(t.device) for k, v in kept.method.items()})
    if t.method.confidences is not None and "weight" in kept.labels:  # not in the weights of another run
        if kept.labels["weight"].shape != t.method.confidences.weight_NS.shape:
            raise UsageError(
                f"checkpoint {path} does not fit the run", "labels.safetensors is of other labels", "start a new run"
            )
        t.method.confidences.weight_NS.copy_(kept.labels["weight"])
    parameters = t.parameters
    if odd := [key for key in ("epoch", "place", "best_auc") if key not in kept.state]:
        raise UsageError(f"checkpoint {path} cannot be continued", f"state.json has no {', '.join(odd)}", "start a new run")
    for name, value in kept.optimizer.items():
        key, _, parameter = name.partition(".")
        if parameter not in parameters or (key != "step" and value.shape != parameters[parameter].shape):
            raise UsageError(f"checkpoint {path} does not fit the run", f"optimizer.safetensors has {name}", "start a new run")
        # Step counters are on the CPU, but for the fused kernels, which count where they work.
        on_device = key != "step" or t.optimizer.defaults.get("fused")
        t.optimizer.state[parameters[parameter]][key] = value.to(t.device) if on_device else value
    t.step, t.epoch, t.place, t.best_auc = (kept.state[k] for k in ("step", "epoch", "place", "best_auc"))
    t.waited = kept.state.get("waited", 0)
    if t.waited_enough and t.run.history and t.run.history[-1]["step"] == t.step:  # it had stopped, and is continued from here
        t.waited = 0
    if t.comm.rank == 0:
        t.run.cut_metrics(t.step)
        mark = checkpoint.best(t.run.checkpoints)
        marked = mark.get("figure", mark.get("auc"))  # runs that know only one selection have no figure of their own
        if t.best_auc > (-1.0 if marked is None else marked):  # died between saving it and marking it
            auc = next((e.get("auc") for e in t.run.metrics("epoch") if e["epoch"] == t.epoch), t.best_auc)
            checkpoint.mark_best(t.run.checkpoints, path, step=t.step, epoch=t.epoch, auc=auc, figure=t.best_auc)
