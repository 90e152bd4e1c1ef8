"""Checks of a run's CLIP when the run is created, not hours later."""

from __future__ import annotations

from czsl.clip.loading import load_clip, sketch_clip
from czsl.clip.towers import Towers
from czsl.clip.weights import HUB, find_weights, is_folder, is_path
from czsl.compositions import CompositionSpace, prompt_name
from czsl.runs.config import RunConfig
from methods.building import build, needs_only_features
from methods.registry import config_class

MAX_NAMED = 5


def check_clip(config: RunConfig, space: CompositionSpace) -> list[str]:
    """Check that a run's CLIP is available and usable: kind, weights and their form, network, tokenizer, the labels' words.

    Published weights are not downloaded, and for a method that trains not read: its workers do both. A method that trains nothing is
    built as every later command will build it.

    Returns
    -------
    list of str
        Notes: where weights will come from, names that the text tower does not read to their end.

    Raises
    ------
    UsageError, SetupError
        Something is missing, or of the wrong form or kind.
    """
    features = needs_only_features(config.method, config.model)
    of_ones_own = any(w and (is_path(w) or is_folder(w)) for w in (config.clip, config.clip_weights))
    named = not (of_ones_own or config.clip == "tiny" or config.clip.startswith(HUB) or config.clip_weights == "random")
    if named:
        sketch_clip(config.clip, config.clip_weights, features)  # a wrong kind raises before a download is tried
    where = find_weights(config.clip, config.clip_weights)
    notes = [f"CLIP weights: {config.clip} {where}"] if "will be" in where else []
    trains = config_class(config.method).trains
    if "will be" in where or (named and trains):
        clip = None if config.clip.startswith(HUB) else sketch_clip(config.clip, config.clip_weights, features)
    else:
        clip = load_clip(config.clip, config.clip_weights, features=features)
        if not trains:
            build(config.method, space, clip, config.model)
    return notes + (cut_names(clip, space) if clip is not None else [])


def cut_names(clip: Towers, space: CompositionSpace) -> list[str]:
    """A note on names that end beyond the text tower's context, so that names which differ there look the same to it."""
    names = list(dict.fromkeys((*space.attributes, *space.objects)))
    prompts = {f"a photo of {prompt_name(name)}": name for name in names if name}
    cut = [prompts[p] for p in clip.text.cut(list(prompts))]
    # A pair may be too long where neither word is.
    pairs = {
        " ".join(filter(None, ("a photo of", *(prompt_name(n) for n in space.pair_names(pair))))): space.pair_name(pair)
        for pair in space.closed_pairs.tolist()
        if not set(space.pair_names(pair)) & set(cut)
    }
    cut += [pairs[p] for p in clip.text.cut(list(pairs))]
    if not cut:
        return []
    shown = ", ".join(f"{name[:60]}..." if len(name) > 60 else name for name in cut[:MAX_NAMED])
    more = f" and {len(cut) - MAX_NAMED:,} more" if len(cut) > MAX_NAMED else ""
    context = clip.text.context_length
    return [f"{len(cut):,} names are cut at the {context} tokens that the text tower reads: {shown}{more}"]
