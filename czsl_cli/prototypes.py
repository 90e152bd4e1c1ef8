"""``czsl prototypes``: what the prototypes of a run stand for, with the training images nearest to each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from czsl_cli.console import print_json, print_table, progress_bar, say
from czsl_cli.options import named_run

if TYPE_CHECKING:
    from cluster.prototypes import Inspection


@click.command()
@named_run()
@click.option("--checkpoint", default="best", show_default=True, help="best, last or a step.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [default: RUN/prototypes.html]")
@click.option(
    "--images", "shown", type=click.IntRange(1, 50), default=8, show_default=True, help="Images to show of each prototype."
)
@click.option(
    "--per-pair", type=click.IntRange(0), default=0, help="Number of training images per pair to look at.  [default: all]"
)
@click.option("--counts", metavar="FROM-TO", help="Also judge these numbers of clusters on the run's features, e.g. 2-8.")
@click.option("--json", "as_json", is_flag=True, help="Print sizes, nearest images and health as JSON (no page unless --html).")
def prototypes(run, checkpoint, html, shown, per_pair, counts, as_json) -> None:
    """Show the prototypes of RUN (the newest one by default): sizes, health and nearest training images, as a page.

    Health compares the prototypes with balanced k-means centres of the same features: a ratio of 0.8 or more is healthy, collapsed
    prototypes come near to 1 / K.
    """
    from czsl_cli.runs import chosen_run, usable_checkpoint

    asked = _counts(counts)
    chosen = chosen_run(run)
    usable_checkpoint(chosen, checkpoint)
    from cluster.prototypes import inspect_prototypes

    with progress_bar() as bar:
        found = inspect_prototypes(chosen, checkpoint, per_pair=per_pair, shown=shown, counts=asked, progress=bar.update)
        page = html or (None if as_json else chosen.path / "prototypes.html")
        if page:
            _write_page(page, chosen.path.name, found, bar.update)
    if as_json:
        print_json(_content(found))
    else:
        _print(found)
    if page:
        say(f"page: {page}")


def _counts(text: str | None) -> range | tuple[()]:
    from czsl.errors import UsageError

    if text is None:
        return ()
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 2 <= int(first) <= int(last) <= 64):
        raise UsageError(
            f"--counts {text!r} is not a range", "it holds numbers of clusters from 2 to 64", "write for example --counts 2-8"
        )
    return range(int(first), int(last) + 1)


def _content(found: Inspection) -> dict[str, Any]:
    ids = found.split.ids
    primitives = [
        {
            "name": p.name,
            "kind": p.kind,
            "images": p.images,
            "effective_k": p.effective_k,
            "cosine": p.cosine,
            "prototypes": [
                {"size": size, "nearest": [{"image": ids[found.rows[i]], "cosine": c} for i, c in zip(rows, near, strict=True)]}
                for size, rows, near in zip(p.sizes, p.nearest, p.cosines, strict=True)
            ],
        }
        for p in found.primitives
    ]
    return {"health": found.health, "silhouette": found.counts, "primitives": primitives}


def _print(found: Inspection) -> None:
    rows = [
        [p.kind, p.name, p.images, " ".join(map(str, p.sizes)), f"{p.effective_k:.2f}", f"{p.cosine:.2f}"]
        for p in found.primitives
    ]
    print_table(["kind", "name", "images", "nearest to each prototype", "effective K", "cosine"], rows)
    say(health_in_words(found.health))
    if found.counts:
        best = max(found.counts, key=lambda k: found.counts[k])
        listed = ", ".join(f"{k}: {value:.3f}" for k, value in found.counts.items())
        say(f"silhouette by number of clusters: {listed}; clearest at {best}")


def health_in_words(health: dict[str, float]) -> str:
    """One sentence on :func:`methods.clus_pro.prototypes.health`."""
    if "ratio" not in health:
        return "no primitive has enough images to judge the prototypes' health"
    verdict = "healthy" if health["ratio"] >= 0.8 else "collapsing" if health["ratio"] >= 0.5 else "collapsed"
    return (
        f"{verdict}: effective K {health['effective_k']:.2f}, {100 * health['ratio']:.0f} % of what balanced k-means reaches on these "
        f"features ({health['ceiling']:.2f}); mean cosine {health['cosine']:.2f}; {100 * health['idle']:.0f} % of the prototypes idle "
        f"(over {health['primitives']:.0f} primitives)"
    )


def _write_page(path: Path, name: str, found: Inspection, progress) -> None:
    from czsl.data.images import BadImage, decode
    from czsl_cli.pages import Card, Gallery, Table, picture, write_page

    sections: list[Any] = []
    columns = ["kind", "name", "images", "effective K", "mean cosine"]
    rows = [[p.kind, p.name, p.images, f"{p.effective_k:.2f}", f"{p.cosine:.2f}"] for p in found.primitives]
    sections.append(
        Table("Attributes and objects", columns, rows, "Effective K: K if all prototypes differ, 1 if all are equal.")
    )
    pictures: dict[int, str] = {}
    wanted = sorted({i for p in found.primitives for rows in p.nearest for i in rows})
    for done, i in enumerate(wanted, 1):  # in the order of the file, which is read by groups of rows
        try:
            pictures[i] = picture(decode(found.split.image_bytes(int(found.rows[i])), options=found.split.decode), size=96)
        except BadImage:
            pictures[i] = ""
        progress("drawing the page", done, len(wanted))
    for p in found.primitives:
        for k, (size, rows_n, near) in enumerate(zip(p.sizes, p.nearest, p.cosines, strict=True)):
            cards = [
                Card(pictures[i], found.split.space.pair_name(found.split.pairs[found.rows[i]]), f"{c:.2f}")
                for i, c in zip(rows_n, near, strict=True)
            ]
            share = f"{size} of {p.images} images are nearest to it"
            sections.append(Gallery(f"{p.name} ({p.kind}), prototype {k + 1}", cards, share))
    intro = [f"Run {name}.", health_in_words(found.health) + "."]
    write_page(path, "Prototypes", sections, intro)
