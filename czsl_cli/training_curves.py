"""Plots of a run: losses, validation numbers and the method's own figures over its epochs; confusion of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from czsl_cli.pages import COLOURS, legend_below

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from czsl.runs.run import Run

VALIDATION = {"auc": "AUC", "hm": "HM", "seen": "best seen", "unseen": "best unseen", "top1": "top-1"}
KNOWN = {"event", "epoch", "step", "time", "auc_ref20", "attr_acc", "obj_acc", "accuracy", *VALIDATION}
MAX_POINTS = 400  # of a curve of losses; more are averaged in groups
MAX_NAMES = 30  # of a confusion matrix


def losses(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the curves of the losses: for each term epochs [n] (fractions count within an epoch) and values [n], averaged in groups."""
    records = list(run.metrics("step"))
    if not records:
        return {}
    steps = np.array([r["step"] for r in records], float)
    per_epoch = _steps_per_epoch(records)
    found = {}
    for name in sorted({key for r in records for key in r if key.startswith("loss")}):
        values = np.array([r.get(name, np.nan) for r in records], float)
        parts = np.array_split(np.arange(len(values)), min(MAX_POINTS, len(values)))
        x = np.array([steps[p].mean() / per_epoch for p in parts])
        found[name.removeprefix("loss_")] = (
            x,
            np.array([np.nanmean(values[p]) if np.isfinite(values[p]).any() else np.nan for p in parts]),
        )
    terms = [y for name, (_, y) in found.items() if name != "loss"]
    if len(terms) == 1 and "loss" in found and np.array_equal(terms[0], found["loss"][1], equal_nan=True):
        return {"loss": found["loss"]}  # the only term is the loss itself
    return found


def _steps_per_epoch(records: Sequence[Mapping[str, Any]]) -> float:
    counts: dict[int, int] = {}
    for r in records:
        counts[r.get("epoch", 0)] = counts.get(r.get("epoch", 0), 0) + 1
    return float(max(counts.values()))


def own_figures(run: Run) -> dict[str, tuple[list[int], list[float]]]:
    """Return the method's own figures per epoch (of ClusPro: the health of its prototypes), by name: epochs and values."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for record in run.metrics("epoch"):
        for name, value in record.items():
            if name not in KNOWN and isinstance(value, int | float) and "epoch" in record:
                found.setdefault(name, ([], []))
                found[name][0].append(record["epoch"])
                found[name][1].append(float(value))
    return found


def loss_figure(run: Run) -> Figure | None:
    """Draw all loss terms over the epochs; None for a run without steps."""
    from matplotlib.figure import Figure

    curves = losses(run)
    if not curves:
        return None
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.add_subplot()
    for i, (name, (x, y)) in enumerate(curves.items()):
        label = "loss, all terms" if name == "loss" and len(curves) > 1 else name.replace("_", " ")
        axes.plot(x, y, color=COLOURS[i % len(COLOURS)], linewidth=2.0 if name == "loss" else 1.1, label=label)
    return _finished(figure, axes, "epoch", "loss")


def validation_figure(run: Run) -> Figure | None:
    """Draw the validation numbers over the epochs, with a line at the best one; None without any."""
    from matplotlib.figure import Figure

    from czsl.runs import checkpoint

    records = [r for r in run.metrics("epoch") if r.get("auc") is not None]
    if not records:
        return None
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.add_subplot()
    for i, (key, word) in enumerate(VALIDATION.items()):
        points = [(r["epoch"], 100 * r[key]) for r in records if r.get(key) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), "o-", color=COLOURS[i % len(COLOURS)], linewidth=1.3, markersize=3.5, label=word
            )
    best = checkpoint.best(run.checkpoints).get("epoch")
    if best is not None:
        axes.axvline(best, color="#888888", linewidth=0.9, linestyle="--", label="best epoch")
    return _finished(figure, axes, "epoch", "percent")


def own_figure(run: Run) -> Figure | None:
    """Draw the method's own figures over the epochs, one panel each; None if it has none."""
    from matplotlib.figure import Figure

    found = own_figures(run)
    if not found:
        return None
    figure = Figure(figsize=(6.4, 2.4 * len(found)), layout="constrained")
    for i, (axes, (name, (x, y))) in enumerate(zip(figure.subplots(len(found), squeeze=False).flat, found.items(), strict=True)):
        axes.plot(x, y, "o-", color=COLOURS[i % len(COLOURS)], linewidth=1.3, markersize=3.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="epoch", ylabel=name.replace("_", " "))
        axes.grid(alpha=0.25)
    return figure


def _finished(figure: Figure, axes: Any, x: str, y: str) -> Figure:
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    legend_below(axes, 4)
    return figure


def confusion_figure(matrix_CC: np.ndarray, names: Sequence[str]) -> tuple[Figure, int] | None:
    """Draw a confusion matrix, each row in percent of its images, for the labels with the most images; and the number of labels drawn.

    Parameters
    ----------
    matrix_CC : int [C, C]
        Images of each true label (rows) given each label (columns).
    names : sequence of str [C]
    """
    from matplotlib.figure import Figure

    images = matrix_CC.sum(axis=1)
    chosen = np.sort(np.argsort(-(images + matrix_CC.sum(axis=0)), kind="stable")[:MAX_NAMES])
    if not images.sum():
        return None
    share = 100 * matrix_CC[np.ix_(chosen, chosen)] / np.maximum(images[chosen], 1)[:, None]
    size = 2.2 + 0.26 * len(chosen)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=100)
    axes.invert_yaxis()
    ticks, shown = np.arange(len(chosen)) + 0.5, [names[i].replace("$", r"\$")[:24] for i in chosen]
    axes.set_xticks(ticks, shown, rotation=90, fontsize=8)
    axes.set_yticks(ticks, shown, fontsize=8)
    axes.set(xlabel="named", ylabel="true")
    figure.colorbar(drawn, ax=axes, label="percent of the true label's images", shrink=0.8)
    return figure, len(chosen)
