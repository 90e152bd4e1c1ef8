"""Weight files of CLIP: found, downloaded or read, never unpickled."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor

from czsl.clip.compat import import_open_clip
from czsl.errors import SetupError, UsageError

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
HOW_TO_SUPPLY = "supply a file instead: --clip {model} --clip-weights /path/to/weights.safetensors (open_clip or OpenAI names)"
CONNECT_TIMEOUT_S = 4.0


def is_path(text: str) -> bool:
    """Whether this names a weight file rather than a model or a tag."""
    return text.endswith(SUFFIXES) or os.sep in text


def read_state(path: Path, what: str = "CLIP weights") -> dict[str, Tensor]:
    """Tensors of a weight file as float32, under the names it has (for CLIP: OpenAI's).

    Reads safetensors, plain state dicts (``weights_only``) and training checkpoints that hold a ``state_dict`` or ``net``. OpenAI's own
    archives are TorchScript, which can carry code: they are opened only if their SHA-256 is one that OpenAI published. ``what`` is
    said to be in the file, for messages.

    Raises
    ------
    UsageError
        If there is no such file or it holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no {what} at {path}", "there is no such file", "check --clip and --clip-weights")
    state: dict
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except SafetensorError as error:
            raise UsageError(f"{path} is not a safetensors file", str(error), "download it again") from None
    elif _is_torchscript(path):
        state = _read_openai_archive(path)
    else:
        try:
            with torch.serialization.safe_globals(_numbers()):
                state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds here; all mean the same to the user
            raise UsageError(
                f"{path} cannot be read as {what}",
                f"only plain tensors are accepted, nothing is unpickled ({_unpickler_line(error)})",
                "save the model's state_dict() as .safetensors or .pt",
            ) from None
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds no weights", f"it holds a {type(state).__name__}", "save the model's state_dict()")
    nested = [state[key] for key in ("state_dict", "net") if isinstance(state.get(key), dict)]
    state = nested[0] if nested else state
    state = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _numbers() -> list[Any]:
    """What unpickles a NumPy number, under its names in NumPy 1 and 2: training checkpoints keep a metric beside the weights."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("float32", "float64", "int64")]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _unpickler_line(error: Exception) -> str:
    """What torch's restricted unpickler met, without its advice to switch the restriction off."""
    found = re.search(r"WeightsUnpickler error: ([^\n]+?)(?: was not an allowed global| Please|$)", str(error), re.MULTILINE)
    return found[1][:200] if found else "no pickle of tensors" if "weights_only" in str(error) else _first_line(error)


def _read_openai_archive(path: Path) -> dict[str, Tensor]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() not in _published_hashes():
        raise UsageError(
            f"{path} is a TorchScript archive that OpenAI did not publish",
            f"such files can carry code; SHA-256 {digest.hexdigest()[:16]}... is not among the published ones",
            "save the model's state_dict() as .safetensors or .pt",
        )
    return dict(torch.jit.load(str(path), map_location="cpu").state_dict())


def _published_hashes() -> set[str]:
    open_clip = import_open_clip()
    urls = (open_clip.get_pretrained_url(name, "openai") or "" for name in open_clip.list_pretrained_models_by_tag("openai"))
    return {m.group() for url in urls for m in [re.search(r"\b[0-9a-f]{64}\b", url)] if m}


def fetch(name: str, tag: str) -> Path:
    """Path of open_clip's published weights, downloaded on first use.

    Raises
    ------
    SetupError
        Within seconds if the network does not answer; says how to supply a file.
    """
    from open_clip.pretrained import download_pretrained

    config = import_open_clip().get_pretrained_cfg(name, tag)
    cached = _cached(config)
    if cached:
        return cached
    _check_answers(name, tag, config)
    try:
        return Path(download_pretrained(config))
    except Exception as error:  # network libraries raise many kinds
        raise SetupError(f"cannot download {name} ({tag})", _first_line(error), _how_to_supply(name, config)) from None


def find_weights(name: str = "tiny", weights: str | None = None) -> str:
    """Where a CLIP's weights are or would come from, in words; takes seconds and downloads nothing.

    Raises
    ------
    UsageError
        No such file, model or tag.
    SetupError
        They would have to be downloaded and the network does not answer; says how to supply a file.
    """
    open_clip = import_open_clip()
    for path in (weights or "", name):
        if path and is_path(path) and path.replace("/", "-") not in open_clip.list_models():
            if not Path(path).is_file():
                raise UsageError(f"no CLIP weights at {path}", "there is no such file", "check --clip and --clip-weights")
            return f"{path}, {Path(path).stat().st_size / 2**20:.0f} MiB"
    if name == "tiny" or weights == "random":
        return "built in" if name == "tiny" else "random weights"
    name, tag = name.replace("/", "-"), weights or "openai"
    config = open_clip.get_pretrained_cfg(name, tag)
    if not config:
        raise UsageError(
            f"no published weights {tag!r} of {name!r}", "open_clip does not know them", "check --clip and --clip-weights"
        )
    if cached := _cached(config):
        return f"in the cache: {cached}"
    _check_answers(name, tag, config)
    return f"will be downloaded from {_host(config)}"


def _host(config: dict) -> str:
    return "huggingface.co" if config.get("hf_hub") else urlparse(config.get("url", "")).hostname or ""


def _check_answers(name: str, tag: str, config: dict) -> None:
    """SetupError if the host of some weights does not answer within seconds: the hub's own client retries for most of a minute."""
    proxied = any(os.environ.get(v) for v in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if proxied or os.environ.get("HF_ENDPOINT"):
        return
    host = _host(config)
    try:
        socket.create_connection((host, 443), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise SetupError(
            f"cannot download {name} ({tag})", f"{host} does not answer: {error}", _how_to_supply(name, config)
        ) from None


def _how_to_supply(name: str, config: dict) -> str:
    # A file does not tell its activation, the model's name does.
    gelu = f"{name}-quickgelu" if config.get("quick_gelu") else name
    return HOW_TO_SUPPLY.format(model=gelu if gelu in import_open_clip().list_models() else name)


def _cached(config: dict) -> Path | None:
    repository = config.get("hf_hub", "").rstrip("/")
    if not repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    for file in ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"):
        found = try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
    return None
