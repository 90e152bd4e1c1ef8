"""Plain classes out of a dataset of attributes and objects: a folder of images for each object, and a list of unseen ones.

    python examples/article_types.py mydata types --per-class 40 --unseen 10
    czsl data import types/images types-data --unseen types/unseen.txt
    czsl train --method lazsl --data types-data --clip ViT-B-16 num_regions=16 --name types-lazsl
    czsl evaluate runs/types-lazsl

The images of a class are drawn from all splits, as many of each attribute as there are, by a seed that also names the unseen classes.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

from czsl.data.table import Split, open_data


def keyed(seed: int, name: str) -> bytes:
    """A place in an order that is the same on every machine."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def chosen(splits: list[Split], per_class: int, seed: int) -> dict[int, list[tuple[Split, int]]]:
    """Up to ``per_class`` images of each object, one an attribute in turn."""
    by_object: dict[int, dict[int, list[tuple[Split, int]]]] = defaultdict(lambda: defaultdict(list))
    for split in splits:
        for row in sorted(range(len(split)), key=lambda r: keyed(seed, split.ids[r])):
            by_object[int(split.obj[row])][int(split.attr[row])].append((split, row))
    picked = {}
    for obj, by_attribute in by_object.items():
        turns = [(turn, keyed(seed, str(a)), image) for a, images in by_attribute.items() for turn, image in enumerate(images)]
        picked[obj] = [image for _, _, image in sorted(turns, key=lambda t: t[:2])[: per_class or None]]
    return picked


def main() -> None:
    """Write the folders and the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a dataset folder, or toy")
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-class", type=int, default=0, help="images of each class at most; 0: all")
    parser.add_argument("--unseen", type=int, default=10, help="how many classes training does not get")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = open_data(options.data)
    picked = chosen([data.split(name) for name in ("train", "val", "test")], options.per_class, options.seed)
    for obj, images in sorted(picked.items()):
        folder = options.out / "images" / data.space.objects[obj]
        folder.mkdir(parents=True, exist_ok=True)
        for split, row in images:
            name = Path(split.ids[row])
            (folder / f"{name.stem}-{split.name}-{row}{name.suffix}").write_bytes(split.image_bytes(row))
    names = sorted((data.space.objects[obj] for obj in picked), key=lambda n: keyed(options.seed, n))
    unseen = sorted(names[: options.unseen])
    (options.out / "unseen.txt").write_text("\n".join(unseen) + "\n", encoding="utf-8")
    print(f"{sum(map(len, picked.values())):,} images of {len(names)} classes below {options.out / 'images'}")
    print(f"unseen: {', '.join(unseen)}")


if __name__ == "__main__":
    main()
