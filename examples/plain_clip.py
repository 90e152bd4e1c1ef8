"""Zero-shot CLIP as a script that one writes in ten minutes: the yardstick of benchmark_commands.py.

It loads a weight file in OpenAI's format with open_clip, encodes the compositions of two lists and all images of a folder, and prints the
best composition of each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from czsl.clip.compat import import_open_clip

BATCH = 32


def main() -> None:
    """Name what is in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--attributes", type=Path, required=True)
    parser.add_argument("--objects", type=Path, required=True)
    options = parser.parse_args()
    open_clip = import_open_clip()
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-16-quickgelu", pretrained=None)
    state = torch.load(options.weights, map_location="cpu", weights_only=True)
    model.load_state_dict({k: v.float() for k, v in state.items()})
    model.eval()
    names = [file.read_text(encoding="utf-8").split() for file in (options.attributes, options.objects)]
    pairs = [(a, o) for a in names[0] for o in names[1]]
    tokens = open_clip.get_tokenizer("ViT-B-16")([f"a photo of {a} {o}" for a, o in pairs])
    files = sorted(options.folder.iterdir())
    with torch.inference_mode():
        texts = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            images = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in batch])
            scores = torch.nn.functional.normalize(model.encode_image(images), dim=-1) @ texts.T
            for file, best in zip(batch, scores.argmax(1).tolist(), strict=True):
                print(file.name, *pairs[best])


if __name__ == "__main__":
    main()
