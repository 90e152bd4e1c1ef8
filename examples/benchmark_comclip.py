"""ComCLIP's two savings, measured: encoding everything once against a pass for each word of each pair, and scoring pairs from inner
products against composing an image for each. Prints Markdown; a minute on one core.

    python examples/benchmark_comclip.py [--images 32] [--clip tiny]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity, normalize

from czsl.clip.backbone import Clip
from czsl.clip.loading import load_clip
from czsl.compositions import CompositionSpace
from czsl.data.pixels import clip_pixels
from czsl.data.toy import dataset as toy
from methods.building import build
from methods.comclip.algebra import Rule, compose, fits, weigh
from methods.comclip.fills import sub_image
from methods.comclip.matching import Match, Matcher
from methods.comclip.model import word_features
from methods.comclip.parse import Composition, from_triplet

VERBS = ("hold", "carry", "touch", "see")
PAIRS = 2000  # of attribute and object


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return its result and the processor time that it takes."""
    start = time.process_time()
    out = work()
    return out, time.process_time() - start


def pictures(count: int) -> dict[str, Image.Image]:
    """Drawn images of the toy data, by name."""
    rng = np.random.default_rng(0)
    return {
        f"{i}.png": toy.draw(str(rng.choice(toy.ATTRIBUTES)), str(rng.choice(toy.OBJECTS)), seed=i).resize((160, 120))
        for i in range(count)
    }


def sentences() -> list[Composition]:
    """Triplets of the toy's objects, three words each, as ComVG has them."""
    objects = toy.OBJECTS[:4]
    return [from_triplet(f"a {s} {verb}s a {o}", (s, verb, o)) for verb in VERBS for s in objects[:2] for o in objects[2:]]


@torch.inference_mode()
def pair_by_pair(
    clip: Clip, images: dict[str, Image.Image], asked: list[Composition], found: dict[str, list[Match]]
) -> list[float]:
    """The order of the paper's program: for each pair the image, the caption, each word and each sub-image, one at a time."""

    def encode(picture: Image.Image) -> torch.Tensor:
        return clip.visual(clip.normalise(torch.from_numpy(clip_pixels(picture, clip.image_size))[None]))[0]

    scores = []
    for name, image in images.items():
        for sentence, match in zip(asked, found[name], strict=True):
            g, t = normalize(encode(image), dim=0), word_features(clip, [sentence.sentence], True)[0]
            views = [encode(image if w.mask is None else sub_image(image, w.mask)) for w in match.words]
            words = [word_features(clip, [w.text], True)[0] for w in match.words]
            v, e = normalize(torch.stack(views), dim=-1), normalize(torch.stack(words), dim=-1)
            w, _ = weigh(*fits(e, v, Rule()), torch.ones(len(v), dtype=torch.bool), Rule())
            scores.append(float(cosine_similarity(compose(g, v, w), t, dim=0)))
    return scores


def encoding(clip: Clip, count: int) -> None:
    """Everything once against a loop over pairs, on the same sub-images."""
    images, asked = pictures(count), sentences()
    heads = (
        "image passes of the loop",
        "here",
        "ratio",
        "text passes of the loop",
        "here",
        "seconds of the loop",
        "here",
        "ratio",
    )
    print(f"| regions | pairs | {' | '.join(heads)} | difference |")
    print("|---" * (len(heads) + 3) + "|")
    for regions in ("patch", "grid"):
        matcher = Matcher(clip, regions)

        def ours(matcher: Matcher = matcher) -> dict[str, list[Match]]:
            features, _ = matcher.whole(list(images), images.__getitem__)
            return matcher.matches(dict.fromkeys(images, asked), features, images.__getitem__, masks=True)

        found, seconds = timed(ours)
        loop, slow = timed(lambda found=found: pair_by_pair(clip, images, asked, found))
        pairs = len(images) * len(asked)
        passes = sum(len(m.words) + 1 for ms in found.values() for m in ms)
        own = sum(n for what, n in matcher.passes.items() if what != "texts")
        texts = matcher.passes["texts"]
        off = max(abs(a - m.score) for a, m in zip(loop, (m for ms in found.values() for m in ms), strict=True))
        print(
            f"| {regions} | {pairs:,} | {passes:,} | {own:,} | {passes / own:.1f} | {passes:,} | {texts:,} | {slow:.1f} | {seconds:.1f} | "
            f"{slow / seconds:.1f} | {off:.0e} |"
        )


@torch.inference_mode()
def algebra(clip: Clip) -> None:
    """Scores of attribute-object pairs of one image with 34 windows, from given features."""
    rng = np.random.default_rng(0)
    names = [f"word{i}" for i in range(115)], [f"thing{i}" for i in range(245)]
    space = CompositionSpace(tuple(names[0]), tuple(names[1]), *([np.zeros((0, 2), np.int64)] * 3))
    method = build("comclip", space, clip, {})
    pairs = torch.from_numpy(rng.permutation(space.open_pairs)[:PAIRS])
    text = method.encode_compositions(pairs)
    features = method.embed_images(torch.from_numpy(rng.standard_normal((1, 35 * clip.dim), dtype=np.float32)))
    whole, regions = features.whole[0], features.regions[0]

    def loop() -> torch.Tensor:
        out = []
        for p, (a, o) in enumerate(pairs.tolist()):
            words = torch.stack([text.attribute[a], text.object[o]])
            choice = (cosine_similarity(words[:, None], regions, dim=-1) / 0.01).softmax(-1)
            views = normalize(choice @ regions, dim=-1)
            w, _ = weigh(*fits(words, views, Rule()), torch.ones(2, dtype=torch.bool), Rule())
            out.append(cosine_similarity(compose(whole, views, w), text.pair[p], dim=0))
        return clip.logit_scale * torch.stack(out)

    fast, seconds = timed(lambda: method.scores(features, text)[0])
    slow, long = timed(loop)
    print(f"\n{PAIRS:,} pairs of 115 attributes and 245 objects, 34 windows, D = {clip.dim}, one image, from given features:")
    print("\n| | seconds | largest difference |\n|---|---|---|")
    print(f"| an image composed for each pair | {long:.3f} | |")
    off = float((fast - slow).abs().max())
    print(f"| inner products, all pairs at once | {seconds:.3f} ({long / seconds:.0f} times faster) | {off:.0e} |")


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--clip", default="tiny")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip = load_clip(options.clip)
    encoding(clip, options.images)
    algebra(clip)


if __name__ == "__main__":
    main()
