"""Feasibility of unseen pairs from CLIP's text features: no file of word vectors is needed."""

from __future__ import annotations

import numpy as np
import torch

from czsl.clip.towers import Towers
from czsl.compositions import CompositionSpace, prompt_name
from czsl.evaluation.feasibility import feasibility_from_vectors


@torch.inference_mode()
def feasibility_from_clip(clip: Towers, space: CompositionSpace) -> np.ndarray:
    """Feasibility [A * O], attribute-major, float32, from the text features of "a photo of {name}" of each primitive.

    Parameters
    ----------
    clip : Towers
        Its frozen text tower is used; learned parts of a method have no effect.
    space : CompositionSpace
        Its training pairs are the seen ones.
    """
    names = [prompt_name(name) for name in (*space.attributes, *space.objects)]
    vectors = clip.text.encode([f"a photo of {name}" for name in names]).double().cpu().numpy()
    return feasibility_from_vectors(vectors[: space.num_attributes], vectors[space.num_attributes :], space)
