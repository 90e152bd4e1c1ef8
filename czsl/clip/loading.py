"""Load a CLIP from any source: the built-in ``tiny``, any open_clip model, a local weight file or folder, or the hub."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from czsl.clip import hugging_face
from czsl.clip.backbone import Clip, check_plain, is_plain
from czsl.clip.compat import import_open_clip
from czsl.clip.features import FeatureClip, side_of
from czsl.clip.kinds import kind_of, strange
from czsl.clip.towers import OPENAI_MEAN, OPENAI_STD, Towers
from czsl.clip.weights import (
    HUB,
    OPEN_CLIP_CONFIG,
    fetch,
    fetch_folder,
    is_folder,
    is_path,
    published_tag,
    read_state,
    refuse_other_folder,
    weight_files,
)
from czsl.data.pixels import Pixels
from czsl.errors import SetupError, UsageError
from czsl.reading import read_json, read_safetensors

TINY = Path(__file__).parent / "tiny"
HEAD_WIDTH = 64  # of OpenAI's models
# Scalars and buffers that published files hold in addition to the weights.
EXTRAS = {"input_resolution", "context_length", "vocab_size", "attn_mask", "text.transformer.embeddings.position_ids"}


@overload
def load_clip(name: str = "tiny", weights: str | None = None, features: Literal[False] = False) -> Clip: ...


@overload
def load_clip(name: str = "tiny", weights: str | None = None, *, features: bool) -> Towers: ...


def load_clip(name: str = "tiny", weights: str | None = None, features: bool = False) -> Towers:
    """Load a CLIP on the CPU in float32.

    Parameters
    ----------
    name : str
        ``tiny`` (built in); an open_clip model (``ViT-L-14``); ``hf-hub:org/name``; a folder with ``config.json`` (Hugging Face's
        ``CLIPModel``) or ``open_clip_config.json``; or the path of a state dict in OpenAI's format, whose architecture is read from its
        shapes (QuickGELU, heads of width 64), or in Hugging Face's, with its ``config.json`` in the same folder.
    weights : str, optional
        For an open_clip model: a published tag (default ``openai``), the path of a weight file or its folder, or
        ``random`` for measurements (the same random weights each time). A file does not contain its activation: it is QuickGELU for
        OpenAI's archives and for models named ``...-quickgelu``, otherwise that of the named model.
    features : bool, default False
        Accept any open_clip architecture; only features of images and texts are then available.

    Raises
    ------
    UsageError
        If the model or tag is unknown (names the nearest), a file is unreadable, or the methods cannot use the architecture.
    SetupError
        If the weights have to be downloaded and the network does not answer, or a tokenizer is not available.
    """
    open_clip = import_open_clip()
    if name.replace("/", "-") in open_clip.list_models():
        return _load_named(name.replace("/", "-"), weights, features)
    own = name == "tiny" or name.startswith(HUB) or is_path(name) or is_folder(name)
    if weights is not None and own:
        raise UsageError(f"{name} brings its own weights", f"and --clip-weights {weights} was given", "leave out one of the two")
    if name == "tiny":
        return _load_tiny()
    if name.startswith(HUB):
        return _load_folder(fetch_folder(name), name, features)
    if is_folder(name):
        return _load_folder(Path(name), name, features)
    refuse_other_folder(name)
    if is_path(name):
        return _load_file(Path(name), features)
    raise _unknown(name)


def _unknown(name: str) -> UsageError:
    """Return the error for a name that no model has; it lists the nearest ones."""
    near = difflib.get_close_matches(name, [*import_open_clip().list_models(), "tiny"], n=3)
    return UsageError(
        f"unknown CLIP model {name!r}",
        f"nearest names: {', '.join(near)}" if near else "open_clip has no model of this name",
        "use tiny, an open_clip model name, hf-hub:org/name, or the path of a weight file or of a model's folder",
    )


def sketch_clip(name: str, weights: str | None = None, features: bool = False) -> Towers:
    """Build an open_clip model without weights on torch's ``meta`` device, to check it before gigabytes are downloaded.

    Raises
    ------
    UsageError
        As in :func:`load_clip`: if the model or tag is unknown, or the methods cannot use the architecture.
    """
    if name.replace("/", "-") not in import_open_clip().list_models():
        refuse_other_folder(name)
        raise _unknown(name)
    name = name.replace("/", "-")
    if weights != "random" and not is_path(weights or ""):
        weights = published_tag(name, weights)
    with torch.device("meta"):
        return _towers(_create(name, device="meta"), name, features, preprocessing(name, weights))


def _load_named(name: str, weights: str | None, features: bool) -> Towers:
    """Load a model of open_clip's list."""
    if weights == "random":
        with torch.random.fork_rng(devices=[]):  # all workers and later loads of the run need the same towers
            torch.manual_seed(0)
            return _towers(_create(name), name, features, preprocessing(name))
    if weights is not None and (is_path(weights) or is_folder(weights)):
        return _load_named_file(name, Path(weights), features)
    tag = published_tag(name, weights)
    published = import_open_clip().get_pretrained_cfg(name, tag)
    sketch_clip(name, tag, features)  # check the architecture before gigabytes are downloaded
    path = fetch(name, tag)
    model = _create(name, force_quick_gelu=bool(published.get("quick_gelu")))
    _fill(model, read_state(path), str(path))
    return _towers(model, name, features, preprocessing(name, tag))


def _load_named_file(name: str, path: Path, features: bool) -> Towers:
    """Load a model of open_clip's list with the weights of a file in any supported format."""
    folder = path if path.is_dir() else path.parent
    state = _read(weight_files(path) if path.is_dir() else [path])
    config = hugging_face.read_config(folder) if hugging_face.is_hugging_face(state) else None
    if config is not None:  # it contains the activation, which a name may not
        model = hugging_face.model_of(config, str(folder))
    else:
        model = _create(name, force_quick_gelu="input_resolution" in state)
    _fill(model, state, str(path))
    return _towers(model, name, features, preprocessing(name))


def _load_file(path: Path, features: bool) -> Towers:
    """Load a weight file without a model name: OpenAI's format, or Hugging Face's with ``config.json`` in the same folder."""
    state = read_state(path)
    if not hugging_face.is_hugging_face(state):
        beside = path.parent / OPEN_CLIP_CONFIG
        if beside.is_file() and ("visual.conv1.weight" not in state or path.name.startswith("open_clip")):
            return _load_folder(path.parent, str(path), features, [path])
        return clip_from_state(state, str(path))
    config = hugging_face.read_config(path.parent)
    if config is None:
        raise UsageError(
            f"{path} is a CLIP as Hugging Face's programs save it, without its config.json",
            "the weights do not determine the number of heads and the activation",
            "put its config.json into the same folder, or name the model: --clip ViT-B-32 --clip-weights FILE",
        )
    return _from_hugging_face(config, state, str(path), path.parent)


def _load_folder(folder: Path, name: str, features: bool, files: list[Path] | None = None) -> Towers:
    """Load a folder with a model's configuration and weights: open_clip's, or those of Hugging Face's ``CLIPModel``."""
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        config = hugging_face.read_config(folder) or {}
        if config.get("model_type", "clip") != "clip" or "vision_config" not in config:
            hugging_face.model_of(config, str(folder))  # raises an error that names its kind
        return _from_hugging_face(config, _read(weight_files(folder)), name, folder)
    error_texts: dict[str, Any] = {"error": UsageError, "fix": "download or copy the folder again"}
    content = read_json(folder / OPEN_CLIP_CONFIG, max_bytes=hugging_face.MAX_BYTES, head="cannot read {path}", **error_texts)
    described = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(described, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= described.keys():
        raise UsageError(f"{folder / OPEN_CLIP_CONFIG} describes no model", "it has no whole model_cfg", error_texts["fix"])
    source = str(folder)
    try:
        model = _create(f"local-dir:{source}", load_weights=False)
    except CREATION_ERRORS as error:
        raise UsageError(f"{folder / OPEN_CLIP_CONFIG} describes no model", _line(error), error_texts["fix"]) from None
    _fill(model, _read(files or weight_files(folder)), source)
    settings = content.get("preprocess_cfg")
    hub = name if name.startswith(HUB) else f"local-dir:{source}"
    return _towers(model, name, features, settings if isinstance(settings, dict) else {}, hub, described)


CREATION_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, AssertionError, ZeroDivisionError)


def _from_hugging_face(config: Mapping[str, Any], state: dict[str, Tensor], name: str, folder: Path) -> Towers:
    if not hugging_face.is_hugging_face(state) and "visual.conv1.weight" not in state:
        raise strange(name, state, "it is not the CLIPModel that config.json describes")
    model = hugging_face.model_of(config, name)
    _fill(model, state, name)
    return _towers(model, name, False, hugging_face.preprocessing(folder), config={})


def _read(files: Sequence[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_state(file)
    return state


def preprocessing(name: str, tag: str | None = None) -> dict[str, Any]:
    """Return how images are prepared for a model of open_clip's list, under open_clip's names.

    These are the settings of its published weights; for other weights those that all published ones share. Empty: CLIP's settings.
    """
    open_clip = import_open_clip()
    known = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    tags = open_clip.list_pretrained_tags_by_model(name)
    found = [
        {k: v for k in known if (v := open_clip.get_pretrained_cfg(name, t).get(k)) is not None}
        for t in ([tag] if tag in tags else tags)
    ]
    return found[0] if found and all(other == found[0] for other in found) else {}


def _towers(
    model: Any,
    name: str,
    features: bool,
    settings: Mapping[str, Any],
    tokenizer_of: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Towers:
    """Wrap a model as Clip if it is plain, otherwise as FeatureClip; UsageError if it is not plain and ``features`` is False."""
    try:
        pixels = Pixels(
            side_of(model, name),
            settings.get("interpolation") or "bicubic",
            settings.get("resize_mode") or "shortest",
            int(settings.get("fill_color") or 0),
        )
        mean, std = ([float(x) for x in settings.get(k) or d] for k, d in (("mean", OPENAI_MEAN), ("std", OPENAI_STD)))
        if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
            raise ValueError("mean and std are three numbers, std above 0")
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{name} prepares images in an unknown way", str(error), "check its preprocess_cfg or preprocessor_config.json"
        ) from None
    if config is None:  # a name of open_clip's list
        config = import_open_clip().get_model_config(name) or {}
    if is_plain(model) and not config.get("text_cfg", {}).get("hf_tokenizer_name"):
        return Clip(model, name, mean, std, pixels)
    if not features:
        check_plain(None, name)
    return FeatureClip(model, name, _tokenizer(tokenizer_of or name), pixels, mean, std)


def _tokenizer(name: str) -> Any:
    """Return open_clip's tokenizer of a model. Raises SetupError if a package or the tokenizer's files are missing."""
    logging.disable(logging.WARNING)
    try:
        return import_open_clip().get_tokenizer(name)
    except ImportError as error:
        raise SetupError(
            f"the tokenizer of {name} needs another package",
            f"it belongs to Hugging Face's transformers: {_line(error)}",
            "pip install transformers sentencepiece",
        ) from None
    except Exception as error:  # the hub's client and tokenizers raise many kinds
        raise SetupError(
            f"the tokenizer of {name} could not be loaded",
            _line(error),
            "it comes from the hub on first use; offline give a folder that holds it: --clip FOLDER",
        ) from None
    finally:
        logging.disable(logging.NOTSET)


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _create(name: str, **options: Any) -> Any:
    """Create an open_clip model with random weights, without open_clip's warning about them."""
    logging.disable(logging.WARNING)
    try:
        return import_open_clip().create_model(name, pretrained=None, pretrained_text=False, **options)
    except ImportError as error:
        raise SetupError(f"{name} needs another package", _line(error), "pip install transformers sentencepiece") from None
    finally:
        logging.disable(logging.NOTSET)


def _fill(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy a state into a model; UsageError unless every name and shape fits. Names of other programs are converted."""
    names = list(state)
    state = _as_named(model, {k: v for k, v in state.items() if k not in EXTRAS})
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        kind = kind_of(names)
        why, fix = (f"it is {kind.what}; {reason}", kind.fix) if kind else (reason, "name the model these weights belong to")
        raise UsageError(f"{source} does not fit the model", why, fix) from None


def _as_named(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state to the names of the model: from Hugging Face's, from MobileCLIP's, and for both places of open_clip's text tower."""
    open_clip = import_open_clip()
    own = model.state_dict()
    if hugging_face.is_hugging_face(state):
        state = hugging_face.renamed(state)
    if any(k.startswith("image_encoder.model.") for k in state):
        state = open_clip.convert.convert_state_dict(model, state)
    words, custom = "token_embedding.weight", "text.token_embedding.weight"
    if words in state and custom in own:
        state = {k if k.startswith(("visual.", "logit_")) else f"text.{k}": v for k, v in state.items()}
    elif custom in state and words in own:
        state = {k.removeprefix("text."): v for k, v in state.items()}
    for name in ("logit_scale", "logit_bias"):  # a number, or a vector of one
        if name in state and name in own and state[name].numel() == own[name].numel():
            state[name] = state[name].reshape(own[name].shape)
    return state


def _load_tiny() -> Clip:
    config = read_json(TINY / "config.json")
    mean, std = config.pop("image_mean"), config.pop("image_std")
    state = {k: v.float() if v.is_floating_point() else v for k, v in read_safetensors(TINY / "weights.safetensors").items()}
    # The file keeps the embeddings of trained tokens only; the others are zero.
    ids, rows_nW = state.pop("token_embedding.ids"), state.pop("token_embedding.rows")
    state["token_embedding.weight"] = torch.zeros(config["text_cfg"]["vocab_size"], rows_nW.shape[1])
    state["token_embedding.weight"][ids.long()] = rows_nW
    model = import_open_clip().CLIP(**config)
    _fill(model, state, "the built-in tiny CLIP")
    return Clip(model, "tiny", mean, std)


def clip_from_state(state: dict[str, Tensor], source: str) -> Clip:
    """Build a CLIP from a state dict in OpenAI's format; the shapes determine the architecture (QuickGELU, heads of width 64).

    Raises
    ------
    UsageError
        If the state has another format or is incomplete; names ``source``.
    """

    def layers(prefix: str) -> int:
        return len({k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)})

    try:
        width, _, _, patch = state["visual.conv1.weight"].shape
        tokens, _ = state["visual.positional_embedding"].shape
        (text_width,) = state["ln_final.weight"].shape
        vocab_size, _ = state["token_embedding.weight"].shape
        context_length, _ = state["positional_embedding"].shape
        _, dim = state["text_projection"].shape
        if width % HEAD_WIDTH or text_width % HEAD_WIDTH:
            raise ValueError(f"its widths {width} and {text_width} are not multiples of {HEAD_WIDTH}")
    except (KeyError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise strange(source, state, reason, "give the model's name: --clip ViT-L-14 --clip-weights FILE") from None
    vision = {
        "image_size": round((tokens - 1) ** 0.5) * patch,
        "patch_size": patch,
        "width": width,
        "layers": layers("visual.transformer.resblocks."),
    }
    text = {
        "context_length": context_length,
        "vocab_size": vocab_size,
        "width": text_width,
        "heads": text_width // HEAD_WIDTH,
        "layers": layers("transformer.resblocks."),
    }
    model = import_open_clip().CLIP(dim, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    _fill(model, state, source)
    return Clip(model, source)
