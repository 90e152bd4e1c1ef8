"""A batch in parts: the losses and gradients of the whole batch, with less memory for the backward pass."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from methods.building import build
from methods.registry import METHODS, config_class

BATCH = 7  # no multiple of the parts
TRAINED = sorted(name for name in METHODS if config_class(name).trains and config_class(name).steps)


def still(method) -> None:
    """Without dropout, whose draws are others for a part than for the whole."""
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def made(name, clip, space, **settings):
    torch.manual_seed(0)
    known = set(config_class(name).__dataclass_fields__)
    off = {k: 0.0 for k in known if k.endswith("dropout")}
    method = build(name, space, copy.deepcopy(clip), {**off, **{k: v for k, v in settings.items() if k in known}})
    still(method)
    return method


def batch_of(method) -> dict:
    generator = torch.Generator().manual_seed(1)
    size = method.clip.image_size
    pairs = method.space.train_pairs[np.arange(BATCH) % len(method.space.train_pairs)]
    labels = {"attr": pairs[:, 0], "obj": pairs[:, 1], "pair": method.space.locate(pairs, method.space.train_pairs)}
    batch = {"images": torch.randint(0, 256, (BATCH, 3, size, size), generator=generator, dtype=torch.uint8)}
    batch |= {k: torch.from_numpy(v.copy()) for k, v in labels.items()}
    if method.frozen_images:
        with torch.no_grad():
            batch["features"] = method.image_features({"images": batch.pop("images")})
    return batch


class Saved:
    """Counts the largest number of bytes that are saved for the backward pass at the end of the forward pass."""

    def __init__(self):
        self.storages = {}

    def __enter__(self):
        def pack(x):
            self.storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error):
        self._hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


def step(method, parts: int):
    method.comm.parts, method.comm.batch, method.comm.step_seed = parts, BATCH, 3
    method.begin_epoch(0)
    method.zero_grad()
    with Saved() as saved:
        terms = method.training_step(batch_of(method))
        loss = torch.stack(list(terms.values())).sum()
    kept = saved.bytes
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}, kept


@pytest.mark.parametrize("parts", [3, BATCH])
@pytest.mark.parametrize("name", TRAINED)
def test_parts_give_the_gradients_of_the_whole_batch(name, parts, small_clip, small_space):
    method = made(name, small_clip, small_space, adapter_dim=8).double()
    state = copy.deepcopy(method.state_dict())
    loss, gradients, kept = step(method, 1)
    method.load_state_dict(state)
    again, others, less = step(method, parts)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)
    assert others.keys() == gradients.keys() and gradients
    for key, value in gradients.items():
        torch.testing.assert_close(others[key], value, rtol=1e-9, atol=1e-12, msg=key)
    if name == "clip-pzsl":  # trains heads on kept features: neither tower has a backward pass
        assert less == kept
    else:
        assert less < kept


def test_draws_of_a_part_are_the_same_when_it_is_computed_again(small_clip, small_space):
    """With dropout in the tower: the gradient is that of the loss which was computed, by finite differences."""
    torch.manual_seed(0)
    method = build("csp", small_space, copy.deepcopy(small_clip), {"adapter_dim": 8, "adapter_dropout": 0.5}).double()
    _, gradients, _ = step(method, 3)
    name = max((n for n in gradients if "adapter" in n), key=lambda n: float(gradients[n].abs().max()))
    place, change = int(gradients[name].abs().argmax()), 1e-6
    flat = dict(method.named_parameters())[name].data.view(-1)
    sides = []
    state = {k: v.clone() for k, v in method.state_dict().items()}
    for sign in (1, -1):
        method.load_state_dict(state)
        flat[place] += sign * change
        sides.append(float(step(method, 3)[0]))
    assert (sides[0] - sides[1]) / (2 * change) == pytest.approx(float(gradients[name].view(-1)[place]), rel=1e-4)
