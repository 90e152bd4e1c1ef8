"""The state of an adaptation in a file, so that a later stream continues it. Tensors as safetensors, the rest as JSON; never pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from czsl.errors import DataError
from czsl.reading import PathLike, parse_json, read_safetensors
from czsl.runs.files import write_atomically
from methods.adaptation.adaptation import Adaptation

FORMAT = "czsl adaptation 1"
WORDS = {
    "adaptation": "of another adaptation, or of other settings of it",
    "weights": "of another run, checkpoint or CLIP",
    "candidates": "of other candidates",
}


def save_state(path: PathLike, state: Adaptation, origin: dict[str, str]) -> None:
    """Write the state, whole or not at all.

    Parameters
    ----------
    path : str or path
    state : Adaptation
    origin : dict
        What it belongs to, by the keys of :data:`WORDS`.
    """
    from safetensors.torch import save

    path = Path(path)
    about = torch.frombuffer(bytearray(json.dumps({"format": FORMAT, **origin}).encode()), dtype=torch.uint8)
    tensors = {key: x.detach().cpu().contiguous().clone() for key, x in state.state().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({"about": about, **tensors}))


def load_state(path: PathLike, state: Adaptation, origin: dict[str, str]) -> None:
    """Take over the state of a file; a file that does not exist yet starts a new stream.

    Raises
    ------
    DataError
        A damaged file, or a state that belongs to something else.
    """
    path = Path(path)
    if not path.exists():
        return
    again = "name another --state file, or delete this one to start from nothing"
    tensors = read_safetensors(path, head="{path} holds no state of an adaptation", fix=again)
    try:
        about = parse_json(tensors.pop("about").numpy().tobytes(), path)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError("not written by this program")
        for key, word in WORDS.items():
            if about.get(key) != origin[key]:
                raise DataError(f"the state in {path} cannot be continued", f"it is {word}", again)
        state.restore(tensors)
    except DataError as error:
        raise DataError(f"the state in {path} cannot be continued", error.why, again) from None
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError, OverflowError) as error:
        raise DataError(f"the state in {path} is damaged", f"{type(error).__name__}: {error}", again) from None
