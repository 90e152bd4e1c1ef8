"""Find, download and read weight files of CLIP, without unpickling arbitrary objects."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor

from czsl.clip.compat import import_open_clip
from czsl.clip.kinds import program_of
from czsl.errors import SetupError, UsageError
from czsl.filekinds import archive_names
from czsl.reading import PathLike, read_safetensors, read_torch

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
HOW_TO_SUPPLY = "supply a file instead: --clip {model} --clip-weights /path/to/weights.safetensors (open_clip or OpenAI names)"
CONNECT_TIMEOUT_S = 4.0
HUB = "hf-hub:"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
WEIGHTS = (*OPEN_CLIP_WEIGHTS, "model.safetensors", "pytorch_model.bin")  # as programs name them, the preferred first
log = logging.getLogger("czsl")


def is_path(text: str) -> bool:
    """Return whether this is the path of a weight file or its folder, not the name of a model or a tag."""
    return not text.startswith(HUB) and (text.endswith(SUFFIXES) or os.sep in text)


def is_folder(text: str) -> bool:
    """Return whether this is a folder with a model's configuration, in Hugging Face's or open_clip's form."""
    return not text.startswith(HUB) and any((Path(text) / name).is_file() for name in (OPEN_CLIP_CONFIG, "config.json"))


def refuse_other_folder(text: str) -> None:
    """Raise UsageError for the path of a folder that holds no model's configuration."""
    if Path(text).is_dir() and not is_folder(text):
        raise UsageError(
            f"{text} is a folder without a model",
            f"it holds neither {OPEN_CLIP_CONFIG} nor config.json",
            "give the folder of a whole model, a weight file, or a model's name: --clip ViT-L-14",
        )


def absolute(text: str) -> str:
    """Return the absolute path of a weight file or a model's folder; names are returned unchanged."""
    there = Path(text).is_file() or is_folder(text)
    return str(Path(text).resolve()) if there and not text.startswith(HUB) else text


def weight_files(folder: PathLike) -> list[Path]:
    """Return the weight files in a model's folder: one, or all parts of a split one; safetensors are preferred.

    Raises
    ------
    UsageError
        If the folder holds no weight file.
    """
    folder = Path(folder)
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
    for pattern in ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"):
        if parts := sorted(folder.glob(pattern)):
            return _whole(parts)
    if found := sorted(folder.glob("*.safetensors"))[:1]:
        return found
    lora = (folder / "adapter_config.json").is_file()
    split = next(folder.glob("*.index.json"), None)
    parts_gone = f"{split.name} lists parts, but none of them is there" if split else f"looked for {', '.join(WEIGHTS[:3])}, ..."
    why = "it holds a LoRA" if lora else parts_gone
    raise UsageError(f"{folder} holds no weights", why, "give the folder of the whole model, or a weight file")


def _whole(parts: list[Path]) -> list[Path]:
    """Return the parts of split weights; UsageError if their names promise more of them."""
    promised = re.search(r"-of-0*(\d+)\.", parts[0].name)
    if promised and int(promised[1]) != len(parts):
        raise UsageError(
            f"{parts[0].parent} holds {len(parts)} of {promised[1]} parts of its weights",
            f"there: {', '.join(part.name for part in parts[:5])}",
            "download or copy the other parts, too",
        )
    return parts


def read_state(path: PathLike, what: str = "CLIP weights") -> dict[str, Tensor]:
    """Tensors of a weight file as float32, under the names it has (for CLIP: OpenAI's).

    Reads safetensors, plain state dicts (``weights_only``) and training checkpoints that hold a ``state_dict`` or ``net``. OpenAI's own
    archives are TorchScript, which can carry code: they are opened only if their SHA-256 is one that OpenAI published. ``what``
    describes the content in messages.

    Raises
    ------
    UsageError
        If no such file exists or it holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no {what} at {path}", "there is no such file", "check --clip and --clip-weights")
    state: Any
    if path.suffix == ".safetensors":
        state = read_safetensors(path, error=UsageError, head="{path} is not a safetensors file", fix="download it again")
    elif _is_torchscript(path):
        state = _read_openai_archive(path)
    else:
        fix = "save the model's state_dict() as .safetensors or .pt"
        with torch.serialization.safe_globals(_numbers()):
            state = read_torch(path, error=UsageError, head=f"{{path}} cannot be read as {what}", fix=fix)
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds no weights", f"it holds a {type(state).__name__}", "save the model's state_dict()")
    nested = next((state[key] for key in ("state_dict", "net") if isinstance(state.get(key), dict)), None)
    tensors = {str(k).removeprefix("module."): v for k, v in _plain(nested if isinstance(nested, dict) else state).items()}
    if not tensors:
        raise _without_tensors(path, state)
    if len(nested or ()) and (program := program_of(state)) not in ("", "a training program"):
        log.warning("%s is a training checkpoint of %s; its state_dict is read", path, program)
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _plain(state: dict) -> dict[Any, Tensor]:
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.layout is torch.strided and not v.is_quantized}


def _without_tensors(path: Path, state: dict) -> UsageError:
    """Return the error for a mapping without tensors at its top level; it names the kind of file if that is recognised."""
    inner = next((key for key, value in state.items() if isinstance(value, dict) and _plain(value)), None)
    program = program_of(state)
    known = "" if program == "a training program" else f" of {program}"
    what = f"a training checkpoint{known}" if program else "no state dict"
    if inner is None:
        why = f"it holds {', '.join(str(key)[:40] for key in list(state)[:5]) or 'nothing'}, but no tensor"
        return UsageError(f"{path} is {what}: it holds no weights", why, "save the model's state_dict()")
    return UsageError(
        f"{path} is {what}",
        f"its tensors are in its entry {str(inner)[:40]!r}",
        f"save only these: torch.save(torch.load(FILE, weights_only=True)[{str(inner)[:40]!r}], 'weights.pt')",
    )


def _numbers() -> list[Any]:
    """The types needed to unpickle a NumPy number, in NumPy 1 and 2: training checkpoints often hold a metric, too."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("float32", "float64", "int64")]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _is_torchscript(path: Path) -> bool:
    return any(name.endswith("constants.pkl") for name in archive_names(path))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


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
        If the network does not answer within seconds; explains how to supply a file.
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


def published_tag(name: str, weights: str | None) -> str:
    """Return the tag of the requested published weights of an open_clip model; OpenAI's by default.

    Raises
    ------
    UsageError
        If the model has no weights of that name; names the nearest.
    """
    tags = import_open_clip().list_pretrained_tags_by_model(name)
    tag = weights or "openai"
    if tag not in tags:
        near = difflib.get_close_matches(tag, tags, n=3) or tags[:3]
        raise UsageError(
            f"{name} has no published weights {tag!r}",
            f"nearest tags: {', '.join(near)}" if near else "open_clip lists no weights for it",
            "give a tag or the path of a weight file: --clip-weights",
        )
    return tag


def find_weights(name: str = "tiny", weights: str | None = None) -> str:
    """Describe where a CLIP's weights are or would be downloaded from. Takes seconds and downloads nothing.

    Raises
    ------
    UsageError
        If no such file, model or tag exists.
    SetupError
        If the weights have to be downloaded and the network does not answer; explains how to supply a file.
    """
    open_clip = import_open_clip()
    if name.startswith(HUB):
        return f"in the cache: {found}" if (found := cached_folder(name)) else _reachable(name)
    for path in (weights or "", name):
        if path and path.replace("/", "-") in open_clip.list_models():
            continue
        if path and is_folder(path):
            files = weight_files(Path(path))
            return f"{path}, {sum(file.stat().st_size for file in files) / 2**20:.0f} MiB"
        if is_path(path) or path == name != "tiny":
            refuse_other_folder(path)
        if path and is_path(path):
            if not Path(path).is_file():
                raise UsageError(f"no CLIP weights at {path}", "there is no such file", "check --clip and --clip-weights")
            return f"{path}, {Path(path).stat().st_size / 2**20:.0f} MiB"
    if name == "tiny" or weights == "random":
        return "built in" if name == "tiny" else "random weights"
    name = name.replace("/", "-")
    tag = published_tag(name, weights)
    config = open_clip.get_pretrained_cfg(name, tag)
    if cached := _cached(config):
        return f"in the cache: {cached}"
    _check_answers(name, tag, config)
    return f"will be downloaded from {_host(config)}"


def files_of(name: str, weights: str | None = None) -> list[Path]:
    """Return the files that a CLIP was loaded from, weights and configurations; empty for random weights."""
    open_clip = import_open_clip()
    if weights == "random":
        return []
    if name == "tiny":
        return sorted((Path(__file__).parent / "tiny").iterdir())
    if name.startswith(HUB):
        folder = cached_folder(name)
        return [] if folder is None else sorted(p for p in folder.iterdir() if p.is_file())
    for path in (weights or "", name):
        if not path or path.replace("/", "-") in open_clip.list_models():
            continue
        if is_folder(path) or is_path(path):
            folder = Path(path) if is_folder(path) else Path(path).parent
            beside = [folder / f for f in (OPEN_CLIP_CONFIG, "config.json", "preprocessor_config.json")]
            return [*(weight_files(Path(path)) if is_folder(path) else [Path(path)]), *(f for f in beside if f.is_file())]
    name = name.replace("/", "-")
    return [fetch(name, published_tag(name, weights))]


def cached_folder(name: str) -> Path | None:
    """The folder in the local Hugging Face cache with configuration and weights of ``hf-hub:org/name``; None if it is incomplete."""
    from huggingface_hub import try_to_load_from_cache

    repository = _repository(name)
    for config in (OPEN_CLIP_CONFIG, "config.json"):
        if isinstance(found := try_to_load_from_cache(repository, config), str):
            folder = Path(found).parent
            if any((folder / file).is_file() for file in WEIGHTS) or [*folder.glob("*model-*-of-*")]:
                return folder
    return None


def fetch_folder(name: str) -> Path:
    """Return the local folder of ``hf-hub:org/name``, downloaded on first use; only from the cache if ``HF_HUB_OFFLINE`` is set.

    Raises
    ------
    UsageError
        If no such repository exists, or it holds no readable model.
    SetupError
        If the network does not answer, or ``HF_HUB_OFFLINE`` forbids its use.
    """
    if found := cached_folder(name):
        return found
    _reachable(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        patterns = [OPEN_CLIP_CONFIG, "config.json", "preprocessor_config.json", *WEIGHTS, "*model-*-of-*", "*token*", "*.model"]
        folder = Path(snapshot_download(_repository(name), allow_patterns=patterns))
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise UsageError(
            f"cannot access {name} on the hub", _first_line(error), "check the name, and request access if the model is gated"
        ) from None
    except Exception as error:  # network libraries raise many kinds
        raise SetupError(
            f"cannot download {name}", _first_line(error), "download its folder and give that: --clip FOLDER"
        ) from None
    return folder


def _repository(name: str) -> str:
    repository = name.removeprefix(HUB)
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repository) or ".." in repository:
        raise UsageError(
            f"{name} is not a name on the Hugging Face hub",
            "such a name has two parts",
            "write hf-hub:organisation/name, e.g. hf-hub:timm/ViT-B-16-SigLIP",
        )
    return repository


def _reachable(name: str) -> str:
    """Describe where a model of the hub would be downloaded from. Raises SetupError if the hub is not available."""
    fix = "download its folder elsewhere and give that: --clip FOLDER"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise SetupError(f"{name} is not in the local cache", "HF_HUB_OFFLINE forbids the download", fix)
    _check_answers(name, "hub", {"hf_hub": _repository(name)}, fix)
    return "will be downloaded from huggingface.co"


def _host(config: dict) -> str:
    return "huggingface.co" if config.get("hf_hub") else urlparse(config.get("url", "")).hostname or ""


def _check_answers(name: str, tag: str, config: dict, fix: str = "") -> None:
    """Raise SetupError if the host of some weights does not answer within seconds; the hub's own client retries for most of a minute."""
    proxied = any(os.environ.get(v) for v in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if proxied or os.environ.get("HF_ENDPOINT"):
        return
    host = _host(config)
    try:
        socket.create_connection((host, 443), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise SetupError(
            f"cannot download {name} ({tag})", f"{host} does not answer: {error}", fix or _how_to_supply(name, config)
        ) from None


def _how_to_supply(name: str, config: dict) -> str:
    # A weight file does not contain the activation; the model's name determines it.
    gelu = f"{name}-quickgelu" if config.get("quick_gelu") else name
    return HOW_TO_SUPPLY.format(model=gelu if gelu in import_open_clip().list_models() else name)


def _cached(config: dict) -> Path | None:
    repository = config.get("hf_hub", "").rstrip("/")
    if not repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    for file in OPEN_CLIP_WEIGHTS:
        found = try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
    return None
