"""A picture of a search: every trial's epochs, and each searched setting against what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from czsl.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from czsl.runs.search import Domain, Space

COLUMNS = 3
LETTERS_OF_A_PANEL, MOST_LETTERS = 42, 24  # that fit below a panel; of one choice
BEST, OTHER, PRUNED, FAILED = "#c0392b", "#2c6fbb", "#9aa7b5", "#e0a030"
LINE, STYLES = "#555555", ("--", ":")
NAMES = {"val_auc": "validation AUC, %", "val_hm": "validation HM, %"}


def plot_trials(
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[int, Sequence[tuple[int, float]]] | None,
    space: Space,
    metric: str,
    path: Path,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Write the picture as SVG.

    Parameters
    ----------
    rows : sequence of mappings
        One a trial, as :meth:`czsl.runs.trials.Trial.summary` makes them.
    curves : mapping, optional
        Trial number -> (epoch, metric) of each of its epochs. None: trials without epochs, and no panel of them.
    space : Space
        The searched settings, one panel each.
    metric : str
    path : Path
        File of the plot.
    marks : mapping, optional
        Name -> metric of what the trials are compared with, as a line across each panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from czsl_cli.pages import plot_svg

    first = int(curves is not None)
    panels = len(space) + first
    lines = math.ceil(panels / COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, COLUMNS, squeeze=False).flat
    good = [r for r in rows if r[metric] is not None and all(domain.holds(r["values"].get(n)) for n, domain in space.items())]
    best = max((r for r in good if r["status"] != "failed"), key=lambda r: r[metric], default=None)
    # The best trial last, so that it lies on top.
    good.sort(key=lambda r: r is best)
    colours = [_colour(r, best) for r in good]
    if curves is not None:
        _curves(axes[0], good, colours, curves, metric)
    for axis, (name, domain) in zip(axes[first:panels], space.items(), strict=True):
        values = [r["values"][name] for r in good]
        if domain.kind == "choice":
            places = list(domain.args)
            _choices(axis, [str(p) for p in places])
            axis.set_xlim(-0.5, len(places) - 0.5)
            values = [places.index(v) for v in values]
        else:
            _range(axis, domain)
        axis.scatter(values, [100 * r[metric] for r in good], c=colours, s=36, alpha=0.85, edgecolors="white", linewidths=0.6)
        axis.set_xlabel(name)
        for style, (label, value) in zip(STYLES, (marks or {}).items(), strict=False):
            axis.axhline(100 * value, color=LINE, ls=style, lw=1, label=label, zorder=0)
        if curves is None and axis is axes[0]:
            axis.set_ylabel(NAMES[metric])
            axis.legend(frameon=False, fontsize=8)
        _tidy(axis)
    for axis in axes[panels:]:
        axis.set_visible(False)
    write_atomically(path, plot_svg(figure).encode())


def _choices(axis: Axes, names: list[str]) -> None:
    """One tick per choice; names that would lie over each other are slanted."""
    shown = [(name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 3] + "...").replace("$", r"\$") for name in names]
    slanted = len(names) * max(map(len, shown)) > LETTERS_OF_A_PANEL
    axis.set_xticks(range(len(names)), shown, rotation=30 if slanted else 0, ha="right" if slanted else "center")


def _range(axis: Axes, domain: Domain) -> None:
    """The whole domain on the x axis, with a little room at its ends."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    low, high = domain.args[:2]
    if domain.kind == "loguniform":
        margin = (high / low) ** 0.04
        axis.set_xscale("log")
        axis.set_xlim(low / margin, high * margin)
        if high >= 10 * low:  # powers of ten say enough
            axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.04 * (high - low)
        axis.set_xlim(low - margin, high + margin)
        axis.xaxis.set_major_locator(MaxNLocator(5))


def _curves(axis: Axes, rows: Sequence[Mapping], colours: Sequence[str], curves: Mapping, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for row, colour in zip(rows, colours, strict=True):
        points = curves[row["trial"]]
        top = colour == BEST
        axis.plot(*zip(*[(e, 100 * v) for e, v in points], strict=True), "-", color=colour, lw=2 if top else 1, zorder=2 + top)
        marker = {"pruned": "x", "failed": "v"}.get(row["status"], "o")
        axis.plot(points[-1][0], 100 * points[-1][1], marker, color=colour, ms=5, zorder=2 + top)
    for label, colour, marker in (
        ("best", BEST, "o"),
        ("finished", OTHER, "o"),
        ("stopped early", PRUNED, "x"),
        ("failed", FAILED, "v"),
    ):
        if colour in colours:
            axis.plot([], [], marker, color=colour, label=label)
    if rows:
        axis.legend(frameon=False, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch")
    axis.set_ylabel(NAMES[metric])
    _tidy(axis)


def _colour(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    return BEST if row is best else {"pruned": PRUNED, "failed": FAILED}.get(row["status"], OTHER)


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.6)
