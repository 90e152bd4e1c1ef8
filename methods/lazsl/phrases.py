"""Phrases about labels: their prompts, their features, and plain sentences for labels without a description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from czsl.clip.towers import Towers
from czsl.data.files.descriptors import match_descriptors
from methods.lazsl.config import LaZSLConfig

PLAIN = {
    "attributes": ("{}", "a photo of something {}", "something that looks {}"),
    "objects": ("{}", "a photo of {}", "a picture of {}"),
    "classes": ("{}", "a photo of {}", "a picture of {}"),
}


@dataclass
class PhraseBank:
    """Phrases of n labels.

    names : n labels as they stand in prompts
    texts : all prompts, label after label
    features : of the prompts, each of length 1, [sum of counts, D]
    first, count : int64 [n], where a label's prompts begin and how many there are
    mean : mean feature of each label's prompts (its length is not 1), [n, D]
    plain : labels that got plain sentences
    """

    names: list[str]
    texts: list[str]
    features: Tensor
    first: Tensor
    count: Tensor
    mean: Tensor
    plain: int


def clause(name: str, phrase: str, stop: bool = False) -> str:
    """A prompt by the released program's rules: "lemur, which has a long tail".

    The rules look only at the phrase's first letters, so that "antennae" reads "which is antennae"; kept for parity.
    """
    name = name.replace("_", " ")
    if phrase.startswith(("a", "used")):
        middle = "which is"
    elif phrase.startswith(("has", "often", "typically", "may", "can")):
        middle = "which"
    else:
        middle = "which has"
    return f"{name}, {middle} {phrase}{'.' if stop else ''}"


def prompts_of(kind: str, name: str, phrases: Sequence[str], style: str) -> list[str]:
    """Prompts of one label; plain sentences if it has no phrases."""
    if not phrases:
        return [sentence.format(name) for sentence in PLAIN[kind]]
    return list(phrases) if style == "plain" else [clause(name, phrase, style == "sentence") for phrase in phrases]


def make_bank(clip: Towers, kind: str, labels: Sequence[str], names: Sequence[str], config: LaZSLConfig) -> PhraseBank:
    """Prompts and features of labels.

    Parameters
    ----------
    clip : Towers
    kind : {"attributes", "objects", "classes"}
        Part of the descriptors, and form of the plain sentences.
    labels, names : sequence of str
        Labels as the data spells them, and as they enter prompts.
    config : LaZSLConfig
    """
    matched = match_descriptors(labels, config.descriptors.get(kind, {}))
    prompts = [prompts_of(kind, name, p, config.prompt) for name, p in zip(names, matched.phrases, strict=True)]
    texts = [text for own in prompts for text in own]
    with torch.no_grad():
        features = clip.text.encode(texts)
    return bank_of(list(names), texts, features, [len(p) for p in prompts], sum(not p for p in matched.phrases))


def bank_of(names: list[str], texts: list[str], features: Tensor, counts: Sequence[int], plain: int = 0) -> PhraseBank:
    """A bank of given features [sum of counts, D]."""
    count = torch.tensor(counts, dtype=torch.long, device=features.device)
    owner = torch.repeat_interleave(torch.arange(len(count), device=features.device), count)
    sums = features.new_zeros(len(count), features.shape[1]).index_add_(0, owner, features)
    return PhraseBank(names, texts, features, count.cumsum(0) - count, count, sums / count[:, None], plain)
