"""Checkpoints of the public ClusPro program under this project's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from czsl.errors import UsageError

MLPS = {
    "attr_disentangler": "hidden_mlps.attribute",
    "obj_disentangler": "hidden_mlps.object",
    "attr1": "head_mlps.attribute",
    "obj1": "head_mlps.object",
}
RENAMED = {
    "soft_att_obj": "prompts.table",
    "comp_ctx_vectors": "prompts.context.pair",
    "attr_ctx_vectors": "prompts.context.attribute",
    "obj_ctx_vectors": "prompts.context.object",
}
# Frozen towers, and tensors that the public program saves and never reads.
IGNORED = (
    r"clip\..*",
    r"text_encoder\..*",
    r"token_ids",
    r"(attr|obj)_token",
    r"(attr|obj)_queue_ptr\d+",
    r"(attr|obj)_cluter\d+",
    r"lamda",
    r"patch_norm\.(weight|bias)",
)


def state_from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors and prototypes of a public checkpoint, as ``ClusPro.load_state_dict`` wants them.

    Ring buffers are not in public checkpoints: with ``bn_mode=released`` the method's own (random) ones stay, so load with
    ``strict=False`` there.

    Parameters
    ----------
    state : mapping of str to Tensor
        The public state dict.

    Returns
    -------
    dict
        ``prototypes.bank`` [A + O, K, D] and all trained tensors; ``prototypes.seeded`` is set.

    Raises
    ------
    UsageError
        Keys that are neither mapped nor known to be unused, or no prototypes.
    """
    out: dict[str, Tensor] = {}
    banks: dict[str, dict[int, Tensor]] = {"attr": {}, "obj": {}}
    unknown = []
    for key, value in state.items():
        head, _, tail = key.partition(".")
        if key in RENAMED:
            out[RENAMED[key]] = value
        elif head in MLPS:
            out[f"{MLPS[head]}.{tail}"] = value
        elif head == "additional_visual_params":
            out[f"adapters.{tail}"] = value
        elif found := re.fullmatch(r"(attr|obj)_queue(\d+)", key):
            banks[found[1]][int(found[2])] = value
        elif not any(re.fullmatch(pattern, key) for pattern in IGNORED):
            unknown.append(key)
    if unknown:
        raise UsageError(
            "this is not a checkpoint of the public ClusPro program",
            f"unknown tensors: {', '.join(sorted(unknown)[:5])}" + (" ..." if len(unknown) > 5 else ""),
            "give the state dict that its training saved",
        )
    rows = [bank[k] for bank in banks.values() for k in sorted(bank)]
    gaps = [side for side, bank in banks.items() if not bank or sorted(bank) != list(range(len(bank)))]
    if gaps:
        raise UsageError("the checkpoint's prototypes are not complete", f"missing rows of: {', '.join(gaps)}_queue", "")
    out["prototypes.bank"], out["prototypes.seeded"] = torch.stack(rows), torch.tensor(True)
    return out
