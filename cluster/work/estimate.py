"""Estimate counts, steps and memory of a training from shapes; nothing is written."""

from __future__ import annotations

from typing import Any

from cluster.work.placement import Placement
from czsl.clip.backbone import Clip
from czsl.data.batches import steps_per_epoch, stratified
from czsl.data.table import Dataset
from czsl.runs.config import RunConfig
from methods.method import Method

# Numbers that a transformer block keeps for the backward pass, counted from autograd's saved tensors
# (examples/benchmark_training.py prints the counts).
KEPT_PER_BLOCK = 11  # of a token's width in the image tower, when only parallel adapters are trained
KEPT_PER_PROMPT = 40  # of the text width; tokens that prompts share are computed once


def estimate(config: RunConfig, data: Dataset, method: Method, placement: Placement) -> dict[str, Any]:
    """Counts and bytes of a training, by part; memory is per worker and rough: heads, traction and scores are not counted."""
    space, clip = data.space, method.clip
    train = data.split("train")
    images = len(stratified(train.attr, train.obj, config.train_per_pair, config.seed))
    steps = steps_per_epoch(images, config.batch)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    # Only the workers can resolve `auto`; on a GPU it is most probably bfloat16.
    precision = config.precision if config.precision != "auto" else "bfloat16" if placement.gpu else "float32"
    word = 8 if precision == "float64" else 4
    half = 2 if precision == "bfloat16" else word
    share = -(-config.batch // placement.workers)
    parts = min(config.accumulate, share)
    image_bytes = text_bytes = 0
    if isinstance(clip, Clip):  # nothing is trained through towers of other kinds
        tokens = (clip.image_size // int(clip.architecture["patch"])) ** 2 + 1
        stream = -(-share // parts) * tokens * clip.visual.width * half
        layers = len(clip.visual.blocks)
        if not method.frozen_images:
            image_bytes = stream * (layers + KEPT_PER_BLOCK if config.checkpoint_blocks else layers * KEPT_PER_BLOCK)
        prompts = -(-(len(space.train_pairs) + space.num_attributes + space.num_objects) // placement.workers)
        text_bytes = -(-prompts // parts) * clip.text.width * len(clip.text.blocks) * KEPT_PER_PROMPT * half
    memory = {
        "clip": sum(p.numel() for p in clip.parameters()) * half,
        "trained_with_adam": trained * word * 4,
        "image_activations": image_bytes,
        "text_activations": text_bytes,
    }
    return {
        "train_images": images,
        "train_pairs": len(space.train_pairs),
        "val_images": len(data.split("val")),
        "steps_per_epoch": steps if method.trains else 0,
        "steps": steps * config.epochs if method.trains else 0,
        "trainable_parameters": trained,
        "memory_bytes_per_worker": {**memory, "total": sum(memory.values())},
    }
