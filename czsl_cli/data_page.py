"""The page of ``czsl data stats --html``: splits, counts, sizes, duplicates, problems and sample images of a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from czsl_cli.pages import COLOURS, Card, Gallery, Plot, Table, legend_below, picture, plot_svg, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from czsl.data.table import Dataset

MAX_COMPOSITIONS = 200  # with sample images
MAX_PROBLEMS = 300
SAMPLE = 96  # pixels


def write_data_page(
    path: Path,
    data: Dataset,
    found: dict[str, Any],
    samples: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
        File of the page.
    data : Dataset
    found : dict
        What :func:`czsl.data.stats.stats` returned for it.
    samples : int
        Images shown per composition.
    progress : callable
        Called with the compositions done and their number.
    """
    noun, nouns = data.space.noun, data.space.nouns
    rows = []
    for name, part in found["splits"].items():
        images, labels = part["images"], part[nouns]
        rows.append([name, images["all"], images["seen"], images["unseen"], labels["all"], labels["seen"], labels["unseen"]])
    columns = ["split", "images", f"of seen {nouns}", f"of unseen {nouns}", nouns, "seen", "unseen"]
    figure = counts_figure(data)
    alt = "; ".join(f"{s.name}: {_spread(found['splits'][s.name][f'images_a_{noun}'])} images per {noun}" for s in _splits(data))
    sizes = [[k, *(_spread(found["image"][k], True))] for k in ("width", "height", "bytes") if found["image"][k]]
    twins = found["duplicates"]
    sections: list[Any] = [
        Table("Splits", columns, rows),
        Plot(f"Images per {noun}, from the most to the fewest", plot_svg(figure), "The long tail, in logarithmic scale.", alt),
        *_count_tables(data),
        Table("Image sizes", ["", "min", "median", "max"], sizes),
        Table("Identical images", ["", "groups"], [[k.replace("_", " "), v] for k, v in twins.items()]),
        _problems(data),
        *_samples(data, samples, progress),
    ]
    vocabulary = ", ".join(f"{len(names):,} {kind}" for kind, names in data.space.vocabulary.items())
    intro = [f"{found['images']:,} images, {vocabulary}.", f"{found['folder']}; SHA-256 {found['sha256']}."]
    write_page(path, f"Dataset {found['name']}", sections, intro)


def _splits(data: Dataset) -> list[Any]:
    from czsl.compositions import SPLITS

    return [data.split(name) for name in SPLITS if len(data.split(name))]


def _spread(values: dict[str, Any] | None, cells: bool = False) -> Any:
    shown = ["-"] * 3 if values is None else [f"{values[k]:,.0f}" for k in ("min", "median", "max")]
    return shown if cells else " / ".join(shown)


def counts_figure(data: Dataset) -> Figure:
    """Draw the images per composition (or class) of each split, sorted, in logarithmic scale."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.add_subplot()
    for i, split in enumerate(_splits(data)):
        counts = np.sort(np.unique(split.pairs, axis=0, return_counts=True)[1])[::-1]
        axes.plot(np.arange(1, len(counts) + 1), counts, color=COLOURS[i], label=split.name, drawstyle="steps-mid", linewidth=1.6)
    axes.set(xlabel=f"{data.space.nouns}, sorted", ylabel="images", yscale="log")
    axes.grid(alpha=0.25)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x == round(x) else "")
    axes.yaxis.set_minor_formatter(NullFormatter())
    legend_below(axes, 3)
    return figure


def _count_tables(data: Dataset) -> list[Table]:
    """Images of each attribute and object (or class) in each split."""
    tables, splits = [], _splits(data)
    kinds = {"attributes": 0, "objects": 1, "classes": 1}
    for kind, names in data.space.vocabulary.items():
        counts = [np.bincount(split.pairs[:, kinds[kind]], minlength=len(names)) for split in splits]
        rows = [[name, *(int(c[i]) for c in counts)] for i, name in enumerate(names)]
        tables.append(Table(f"Images per {kind.removesuffix('es') if kind == 'classes' else kind[:-1]}",
                            [kind, *(s.name for s in splits)], rows, sortable=True))  # fmt: skip
    return tables


def _problems(data: Dataset) -> Table:
    from czsl.data.importing.problems import duplicate_problems, space_problems

    rows = [row for split in _splits(data) for row in split.rows()]
    found = [*duplicate_problems(rows), *space_problems(data.space, rows)]
    shown = [[p.kind, ", ".join(p.where[:6]) + (", ..." if len(p.where) > 6 else ""), p.detail] for p in found[:MAX_PROBLEMS]]
    text = "None were found." if not found else ""
    if len(found) > MAX_PROBLEMS:
        text = f"The first {MAX_PROBLEMS:,} of {len(found):,}; czsl data verify lists all, and decodes every image."
    return Table("Problems", ["kind", "where", "detail"], shown, text, sortable=True)


def _samples(data: Dataset, samples: int, progress: Callable[[int, int], None]) -> list[Gallery]:
    """Sample images, spread over a composition's images, by split."""
    from czsl.data.images import BadImage, decode

    galleries, splits = [], _splits(data) if samples else []
    left, total = MAX_COMPOSITIONS, sum(len(np.unique(s.pairs, axis=0)) for s in splits)
    done = 0
    for split in splits:
        labels, place_N = np.unique(split.pairs, axis=0, return_inverse=True)
        cards = []
        for i, pair in enumerate(labels[:left]):
            rows = np.flatnonzero(place_N.ravel() == i)
            for row in rows[np.linspace(0, len(rows) - 1, min(samples, len(rows))).round().astype(int)].tolist():
                try:
                    shown = picture(decode(split.image_bytes(row), options=split.decode), SAMPLE)
                except BadImage:
                    shown = ""
                cards.append(Card(shown, split.space.pair_name(pair), f"{len(rows):,} images; {split.ids[row]}"))
            done += 1
            progress(done, min(total, MAX_COMPOSITIONS))
        part = f" The first {left:,} of {len(labels):,}." if len(labels) > left else ""
        if cards:
            galleries.append(Gallery(f"Samples: {split.name}", cards, f"Up to {samples} per {data.space.noun}.{part}", SAMPLE))
        left = max(left - len(labels), 0)
    return galleries
