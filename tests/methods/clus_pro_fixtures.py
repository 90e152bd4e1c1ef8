"""ClusPro as tests build it: from presets, from the public program's checkpoint, and on features with known clusters."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml

from czsl.clip.loading import clip_from_state
from czsl.compositions import CompositionSpace
from methods.clus_pro.model import ClusPro, ClusProConfig
from methods.clus_pro.reference import PUBLIC

PRESETS = yaml.safe_load((Path(__file__).parents[2] / "methods/clus_pro/presets.yaml").read_text())


def preset(name, **changes):
    """A config of presets.yaml, method fields only."""
    known = {k: v for k, v in PRESETS["presets"][name].items() if k in ClusProConfig.__dataclass_fields__}
    return ClusProConfig(**{**known, **changes})


def public_state(arrays):
    return {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}


def public_method(shared, reference, **changes):
    """The preset `released` with the public checkpoint's weights and rings, dropout off; and the batch of the fixture."""
    arrays, parts = reference("cluspro_reference"), reference("cluspro_parts")
    about = json.loads((shared / "fixtures/cluspro_reference.json").read_text())
    state, none = public_state(arrays), np.zeros((0, 2), int)
    clip = clip_from_state({k.removeprefix("clip."): v for k, v in state.items() if k.startswith("clip.")}, "fixture")
    space = CompositionSpace(tuple(about["attributes"]), tuple(about["objects"]), arrays["pairs/train"].numpy(), none, none)
    off = {"attr_dropout": 0.0, "adapter_dropout": 0.0, "head_dropout": 0.0, "adapter_dim": 8}
    weights = {"attr_loss_weight": 0.7, "obj_loss_weight": 0.4}
    method = ClusPro(space, clip, preset("released", **(off | weights | changes)))
    left_out = method.load_state_dict(PUBLIC.translate(state).tensors, strict=False)
    assert set(left_out.missing_keys) <= {"prototypes.ring", "prototypes.ring_place"}
    assert not left_out.unexpected_keys
    if method.config.bn_mode == "released":
        rings = torch.cat([parts["ring_attr"], parts["ring_obj"]])
        method.prototypes.ring.copy_(rings.view_as(method.prototypes.ring))
    return method, {k: arrays[f"inputs/{k}"] for k in ("images", "attr", "obj", "pair")}


def own_noise(reference):
    """Of the recorded Gumbel noise [primitive, B, K] what each image's own attribute, then object, gets: [2B, K]."""
    arrays = reference("cluspro_reference")
    rows = torch.arange(len(arrays["inputs/attr"]))
    return torch.cat([arrays[f"tensors/noise_{k}"][arrays[f"inputs/{k}"], rows] for k in ("attr", "obj")])


def clustered(space, dim, images=400, modes=3, seed=0):
    """Image features of the training pairs, each primitive with some modes: features, attr, obj, pair."""
    make = np.random.default_rng(seed)
    centres = [
        make.normal(size=(n, 1, dim)) + make.normal(size=(n, modes, dim)) for n in (space.num_attributes, space.num_objects)
    ]
    pair = make.integers(0, len(space.train_pairs), images)
    attr, obj = space.train_pairs[pair].T
    parts = [c[k, make.integers(0, modes, images)] for c, k in zip(centres, (attr, obj), strict=True)]
    x = sum(parts) + 0.5 * make.normal(size=(images, dim))
    return torch.tensor(x, dtype=torch.float32), *(torch.from_numpy(v.copy()) for v in (attr, obj, pair))
