"""Pre-train the built-in CLIP `tiny`: draw captioned scenes, train both towers with CLIP's contrastive loss, write the weights.

    python examples/pretrain_tiny.py --out weights.safetensors

The scenes are made of the toy data's drawings in a style of their own (one or two objects, busier or emptier backgrounds, blur,
noise, other sizes). No scene and no caption holds a pair that the toy data keep for testing (`toy.space(0)`, unseen pairs).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ImageFilter

from czsl.data.toy import dataset as toy
from czsl.data.toy.objects import SHAPES
from czsl.data.toy.scene import Pose, background, finish, place

CONFIG = Path(__file__).parent.parent / "czsl" / "clip" / "tiny" / "config.json"
SIZE = 64
MAX_TOKENS = 20  # tokens of the longest caption
HIDDEN = 0.7  # share of the patches that training leaves out: three times the pictures in the same time (as FLIP does)
CAPTIONS = 2  # of each picture in a batch
EASY = 0.5  # of the steps, the first ones, see pictures of one object only
WHOLE = 0.08  # of the steps, the last ones, see whole pictures

PAIR_FORMS = (
    "a photo of {a} {o}",
    "a photo of a {a} {o}",
    "a photo of a {a} {o}.",
    "a photo of the {a} {o}",
    "a picture of a {a} {o}",
    "a drawing of a {a} {o}",
    "an image of one {a} {o}",
    "a {a} {o}",
    "{a} {o}",
    "the {o} is {a}",
    "a photo of a {o} that is {a}",
)
OBJECT_FORMS = (
    "a photo of a {o}",
    "a photo of {o}",
    "a picture of a {o}",
    "a drawing of some {o}",
    "a {o}",
    "{o}",
    "this is a {o}",
)
ATTRIBUTE_FORMS = (
    "a photo of something {a}",
    "a photo of {a}",
    "a photo of a {a} object",
    "a picture of a {a} thing",
    "something {a}",
    "{a}",
    "this looks {a}",
)
JOINS = ("{0} and {1}", "{0} with {1}", "{0} next to {1}")
STARTS = ("", "a photo of ", "a picture of ", "an image that shows ")


@dataclass(frozen=True)
class Caption:
    """A text and its content: (attribute, object) indices of each thing that it names, -1 for what it leaves out."""

    text: str
    says: tuple[tuple[int, int], ...]


def allowed_pairs() -> np.ndarray:
    """Every pair but those that the toy data keep for testing, index pairs [P, 2]."""
    space = toy.space(0)
    held_out = np.concatenate([space.val_pairs, space.test_pairs])
    held_out = held_out[~space.seen_mask(held_out)]
    return space.open_pairs[~np.isin(space.key(space.open_pairs), space.key(held_out))]


def scene(rng: np.random.Generator, pairs: np.ndarray) -> list[tuple[int, int]]:
    """Content of a picture: one object (two in three pictures) or two; one object in twelve is plain (attribute -1)."""
    chosen = pairs[rng.integers(len(pairs), size=1 if rng.random() < 0.67 else 2)]
    return [(-1 if rng.random() < 1 / 12 else int(a), int(o)) for a, o in chosen]


def paint(content: list[tuple[int, int]], rng: np.random.Generator) -> np.ndarray:
    """Draw a scene in the style of pre-training, uint8 [64, 64, 3]."""
    picture = background(rng, SIZE, shapes=(0, 14))
    if rng.random() < 0.3:  # a calm background
        picture = 0.15 * picture + 0.85 * rng.uniform(0, 1, 3).astype(np.float32)
    for number, (a, o) in enumerate(content):
        shape = SHAPES[toy.OBJECTS[o]]
        if len(content) == 1:
            pose = Pose.random(rng, shape, extent=(0.2, 0.48))
        else:
            x, y = 0.27 + 0.46 * number + rng.uniform(-0.05, 0.05), rng.uniform(0.3, 0.7)
            loose = Pose.random(rng, shape, extent=(0.2, 0.28))
            pose = Pose(x, y, loose.extent, loose.angle, loose.flip, loose.aspect, loose.shear)
        place(picture, shape, toy.ATTRIBUTES[a] if a >= 0 else None, pose, rng)
    picture = np.clip(picture * rng.uniform(0.6, 1.25) + rng.uniform(-0.12, 0.12), 0, 1).astype(np.float32)
    image = finish(picture, rng, noise=rng.uniform(0, 0.09))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    return np.asarray(image)


def phrase(thing: tuple[int, int]) -> str:
    """`a red fish`, or `a fish` where the fish is plain (always `a`, as the prompts of the field have it)."""
    a, o = thing
    return f"a {toy.ATTRIBUTES[a]} {toy.OBJECTS[o]}" if a >= 0 else f"a {toy.OBJECTS[o]}"


def caption(content: list[tuple[int, int]], rng: np.random.Generator) -> Caption:
    """A text that is true of the scene: both things, one of them, only its object, or only its attribute."""
    if len(content) == 2 and rng.random() < 0.5:
        order = [content[i] for i in rng.permutation(2)]
        both = JOINS[rng.integers(len(JOINS))].format(*(phrase(thing) for thing in order))
        return Caption(STARTS[rng.integers(len(STARTS))] + both, tuple(order))
    a, o = content[rng.integers(len(content))]
    kind = rng.random()
    forms: tuple[str, ...]
    if a < 0 or kind < 0.2:
        forms, says = OBJECT_FORMS, (-1, o)
    elif kind < 0.4:
        forms, says = ATTRIBUTE_FORMS, (a, -1)
    else:
        forms, says = PAIR_FORMS, (a, o)
    text = forms[rng.integers(len(forms))].format(a=toy.ATTRIBUTES[a], o=toy.OBJECTS[o])
    return Caption(text, (says,))


def matches(captions: list[Caption], scenes: list[list[tuple[int, int]]]) -> np.ndarray:
    """Return which caption is true of which scene, bool [B, C captions]: each thing it names must be there."""
    said = np.array([[*c.says, c.says[0]][:2] for c in captions])  # [B, 2, 2]; a single thing stands twice
    seen = np.array([[*s, s[0]][:2] for s in scenes])
    holds = (said[None, :, :, None] == seen[:, None, None]) | (said[None, :, :, None] < 0)  # [images, captions, said, seen, 2]
    return holds.all(-1).any(-1).all(-1)


def draw_block(job: tuple[int, int, int]) -> tuple[np.ndarray, list[list[tuple[int, int]]]]:
    """Pictures number `start` to `stop` of the pre-training set and what is in them; each has a seed of its own."""
    seed, start, stop = job
    pairs = allowed_pairs()
    images, scenes = [], []
    for number in range(start, stop):
        rng = np.random.Generator(np.random.PCG64([seed, number]))
        scenes.append(scene(rng, pairs))
        images.append(paint(scenes[-1], rng))
    return np.stack(images), scenes


def draw_pool(seed: int, number: int, workers: int, block: int = 500) -> tuple[np.ndarray, list[list[tuple[int, int]]]]:
    """The whole pre-training set: uint8 [N, 64, 64, 3] and the scenes."""
    jobs = [(seed, start, min(start + block, number)) for start in range(0, number, block)]
    with ProcessPoolExecutor(workers) as pool:
        blocks = list(pool.map(draw_block, jobs))
    return np.concatenate([images for images, _ in blocks]), [s for _, scenes in blocks for s in scenes]


def vocabulary(tokenize) -> np.ndarray:
    """Ids of all tokens that captions can use, ascending (the end token stays the largest)."""
    texts = [*PAIR_FORMS, *OBJECT_FORMS, *ATTRIBUTE_FORMS, *JOINS, *STARTS, *toy.ATTRIBUTES, *toy.OBJECTS]
    return np.unique(tokenize([t.replace("{", " ").replace("}", " ") for t in texts]).numpy())


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine to zero."""
    warm = max(1, steps // 20)
    return peak * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))))


def encode_text(model, tokens):
    """`model.encode_text` over the positions in use only, L2-normalised."""
    import torch

    n = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:n]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:n, :n]))
    x = x[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection
    return torch.nn.functional.normalize(x, dim=-1)


def divergence(logits, target):
    """KL divergence of the softmax over each row of logits from the uniform distribution over the row's true entries, averaged."""
    share = target / target.sum(1, keepdim=True)
    return (share * (share.clamp(min=1e-9).log() - logits.log_softmax(1))).sum(1).mean()


def shift(images, rng: np.random.Generator, reach: int = 5):
    """Move each picture a few pixels and mirror half of them; the border is repeated."""
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    out = np.empty_like(images)
    for i, (x, y, mirror) in enumerate(
        zip(*rng.integers(2 * reach + 1, size=(2, len(images))), rng.random(len(images)) < 0.5, strict=True)
    ):
        view = padded[i, y : y + SIZE, x : x + SIZE]
        out[i] = view[:, ::-1] if mirror else view
    return out


def grid_code(side: int, width: int):
    """Sines and cosines of a patch's row and column, [side * side, width]: a better start than noise for a short training."""
    import torch

    rate = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    wave = torch.arange(side)[:, None] * rate
    line = torch.cat([wave.sin(), wave.cos()], dim=1)
    return torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=2).flatten(0, 1)


def write(model, ids: np.ndarray, path: str) -> None:
    """Store the weights in half precision; of the token embeddings only the trained rows and their ids."""
    import torch
    from safetensors.torch import save_file

    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    state["token_embedding.rows"] = state.pop("token_embedding.weight")
    state["token_embedding.ids"] = torch.from_numpy(ids).int()
    save_file(state, path)


def build(config: dict, vocab_size: int):
    """The model of a config, for the tokens in use (tokens that never occur would only slow the optimiser down)."""
    import torch

    from czsl.clip.compat import import_open_clip

    vision = {**config["vision_cfg"], "patch_dropout": HIDDEN}
    text = {**config["text_cfg"], "vocab_size": vocab_size}
    model = import_open_clip().CLIP(config["embed_dim"], vision, text, config["quick_gelu"])
    with torch.no_grad():
        code = grid_code(vision["image_size"] // vision["patch_size"], vision["width"])
        model.visual.positional_embedding[1:] = 0.5 * code
    return model


def batches(scenes: list[list[tuple[int, int]]], size: int, steps: int, seed: int):
    """For each step: places of its pictures, `CAPTIONS` captions of each, and the generator for what else is random."""
    rng = np.random.Generator(np.random.PCG64([seed, 1 << 40]))
    alone = np.array([i for i, content in enumerate(scenes) if len(content) == 1])
    order = np.zeros(0, dtype=int)
    for step in range(steps):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(alone if step < EASY * steps else len(scenes))])
        chosen, order = order[:size], order[size:]
        yield chosen, [caption(scenes[i], rng) for i in chosen for _ in range(CAPTIONS)], rng


def train(args: argparse.Namespace) -> None:
    """Draw, train, write."""
    import torch

    from czsl.clip.compat import import_open_clip

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    images, scenes = draw_pool(args.seed, args.images, args.threads)
    print(f"drew {len(images)} scenes in {time.perf_counter() - start:.0f} s", flush=True)

    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("image_mean", "image_std"))
    tokenize = import_open_clip().tokenizer.SimpleTokenizer(context_length=MAX_TOKENS)
    ids = vocabulary(tokenize)
    compact = torch.zeros(config["text_cfg"]["vocab_size"], dtype=torch.long)
    compact[ids] = torch.arange(len(ids))
    model = build(config, len(ids))
    groups = [[p for p in model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False)]
    decays = [{"params": group, "weight_decay": decay} for group, decay in zip(groups, (0.05, 0.0), strict=True)]
    optimiser = torch.optim.AdamW(decays, betas=(0.9, 0.98))

    for step, (chosen, captions, rng) in enumerate(batches(scenes, args.batch, args.steps, args.seed)):
        if step == int(args.steps * (1 - WHOLE)):
            model.visual.patch_dropout.prob = 0.0
        target = torch.from_numpy(matches(captions, [scenes[i] for i in chosen])).float()
        texts, place_in_texts = np.unique([c.text for c in captions], return_inverse=True)
        tokens = compact[tokenize(texts.tolist())]
        tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]
        pixels = (torch.from_numpy(shift(images[chosen], rng)).permute(0, 3, 1, 2).float() / 255 - mean) / std
        text = encode_text(model, tokens)[torch.from_numpy(place_in_texts)]
        logits = model.logit_scale.exp() * model.encode_image(pixels, normalize=True) @ text.T
        loss = (divergence(logits, target) + divergence(logits.T, target.T)) / 2
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            print(f"step {step + 1}/{args.steps}  loss {loss.item():.3f}  {time.perf_counter() - start:.0f} s", flush=True)
            write(model, ids, args.out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Pre-train the built-in CLIP `tiny` on drawn scenes.")
    parser.add_argument("--out", required=True, help="file to write (.safetensors)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--images", type=int, default=32_000, help="scenes to draw")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
