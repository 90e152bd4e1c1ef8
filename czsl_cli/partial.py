"""``czsl data partial``: candidate sets instead of labels for the training images."""

from __future__ import annotations

from pathlib import Path

import click

from czsl_cli.console import percent, print_json, print_table, print_text, warn

MAX_ROWS = 12  # of the law of |S|


@click.command()
@click.argument("folder", metavar="DATA")
@click.option(
    "--kind",
    type=click.Choice(["uniform", "pair", "semantic"]),
    default="uniform",
    show_default=True,
    help="Wrong labels: drawn uniformly, the next one, or those with similar words (by CLIP).",
)
@click.option("-q", "rate", type=click.FloatRange(0, 1), help="Probability of a wrong label.  [default: 0.05]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the draws.")
@click.option("--force-one", is_flag=True, help="Give every image at least one wrong label.")
@click.option(
    "--noise-rate",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of images whose true label is missing among the candidate labels.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Candidate sets of your own: JSON {image: [labels]}, or CSV with image, attr, obj.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.  [default: named, next to DATA's files]"
)
@click.option("--clip", default="tiny", show_default=True, help="CLIP whose text similarity `--kind semantic` uses.")
@click.option("--clip-weights", metavar="TAG|FILE", help="Weights of an open_clip model.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_context
def partial(ctx, folder, kind, rate, seed, force_one, noise_rate, source, out, clip, clip_weights, force, as_json):
    """Give the training images of DATA (a dataset folder, or toy) sets of candidate labels, in a file next to the data.

    \b
      czsl data partial mydata -q 0.05 --seed 0
      czsl data partial mydata --kind semantic -q 0.05 --clip ViT-L-14
      czsl data partial mydata --from candidates.json
      czsl train --method clip-pzsl --data mydata --partial-labels mydata/candidates-uniform-0.05-0.parquet

    Candidate labels are seen pairs. What is drawn for an image depends only on its name and the seed; val and test keep their labels. The
    training that is given the file sees no other labels.
    """
    from czsl.data.files.ambiguity import make_partial_labels
    from czsl.data.files.partial_labels import partial_labels_from_file, write_partial_labels
    from czsl.data.table import open_data
    from czsl.errors import UsageError

    data = open_data(folder)
    if source:
        drawing = ("kind", "rate", "seed", "force_one", "noise_rate")
        if given := [k for k in drawing if ctx.get_parameter_source(k) != click.core.ParameterSource.DEFAULT]:
            raise click.UsageError(f"--from reads existing candidate sets and draws none: leave out {', '.join(given)}")
        labels = partial_labels_from_file(source, data)
    else:
        similarity = _similarity(data.space, clip, clip_weights) if kind == "semantic" else None
        q = 0.05 if rate is None else rate
        labels = make_partial_labels(data, kind, q, seed, force_one=force_one, noise_rate=noise_rate, similarity_CC=similarity)
    # The toy lies in the cache folder, where users would not look for it.
    path = out or (Path() if folder == "toy" else data.folder) / labels.file_name
    if path.exists() and not force:
        raise UsageError(f"{path} exists", "existing runs may depend on this file", "choose another --out, or --force")
    try:
        sha256 = write_partial_labels(path, labels, data.split("train").ids)
    except OSError as error:
        raise UsageError(f"cannot write {path}", error.strerror or str(error), "choose another --out") from None
    law = _law(data, labels)
    if as_json:
        print_json({"file": str(path), "sha256": sha256, **law})
        return
    _print_law(law)
    if law["true_inside"] < 1:
        warn(
            f"the true label is not among the candidate labels of {percent(1 - law['true_inside'])} % of the images, though methods "
            "assume it; label_rescue=0.05 lets training look beyond the candidate labels"
        )
    print_text(path)


def _similarity(space, clip: str, clip_weights: str | None):
    import torch

    from czsl.clip.loading import load_clip
    from czsl_cli.runs import tell_unknown_words
    from methods.building import build

    tell_unknown_words(clip, (*space.attributes, *space.objects))
    text = build("zero-shot", space, load_clip(clip, clip_weights, features=True), {}).encode_compositions(
        torch.from_numpy(space.train_pairs.copy())
    )
    return (text.pair @ text.pair.T).numpy()


def _law(data, labels) -> dict:
    """Describe the sets; whether they hold the true label is reported for all images together."""
    import numpy as np

    split, space, sizes = data.split("train"), data.space, labels.sizes
    true_N = space.locate(split.pairs, space.train_pairs)
    values, counts = np.unique(sizes, return_counts=True)
    origin = labels.origin
    expected = {"uniform": 1 + (len(space.train_pairs) - 1) * (origin.q or 0), "pair": 1 + (origin.q or 0)}.get(origin.kind)
    return {
        "kind": origin.kind, "q": origin.q, "seed": origin.seed, "images": len(sizes), "seen": len(space.train_pairs),
        "labels": space.nouns,
        "candidates": {"mean": float(sizes.mean()), "min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
        "expected_mean": None if origin.force_one or origin.noise_rate else expected,
        "single": float((sizes == 1).mean()),
        "true_inside": float((labels.index == true_N[:, None]).any(1).mean()),
        "sizes": {int(v): int(n) for v, n in zip(values, counts, strict=True)},
    }  # fmt: skip


def _print_law(law: dict) -> None:
    sizes, images = law["sizes"], law["images"]
    step = -(-(max(sizes) - min(sizes) + 1) // MAX_ROWS)
    rows = []
    for first in range(min(sizes), max(sizes) + 1, step):
        inside = sum(n for size, n in sizes.items() if first <= size < first + step)
        rows.append([str(first) if step == 1 else f"{first}-{first + step - 1}", f"{inside:,}", percent(inside / images)])
    print_table(["candidate labels", "images", "%"], rows)
    mean = f"{law['candidates']['mean']:.2f}" + (f" ({law['expected_mean']:.2f} expected)" if law["expected_mean"] else "")
    print_text(
        f"{images:,} training images, {law['seen']} seen {law['labels']}; candidate labels per image: {mean}, "
        f"at most {law['candidates']['max']}; {percent(law['single'])} % have a single one"
    )
