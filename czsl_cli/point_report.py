"""Operating point, probabilities and rejection in a report, for the terminal and for pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from czsl_cli.console import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from czsl.evaluation import Extremes

HOW = {"val": "chosen on labelled images", "given": "as given", "none": "none was chosen"}
COVERAGES, PRECISIONS = (90, 80, 50), (90, 95)


def point_table(result: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of the accuracies at no bias, at the operating point and at the best bias for these very images."""
    point = result["operating_point"]
    keys = ("seen", "unseen", "hm", "acc")
    intervals = result["op_intervals"]
    rows = [
        ["no bias", *(percent(result[f"none_{key}"]) for key in keys)],
        ["operating point", *(percent(result[f"op_{key}"]) for key in keys)],
        ["95 % interval", *(_interval(intervals[key]) for key in keys)],
        ["best bias for these images", "", "", percent(_best_hm(result)), percent(result["best_acc"])],
        ["loss, in points", "", "", percent(result["op_hm_loss"]), percent(result["op_acc_loss"])],
    ]
    title = f"at this run's operating point: bias {point['bias']:.4g} on labels never seen in training, {HOW[point['how']]}"
    if point["how"] == "val":
        title += f", for {point['for']}"
    return title, ["percent", "seen", "unseen", "HM", "all images"], rows


def point_lines(result: dict[str, Any]) -> list[str]:
    """Sentences on probabilities, on leaving out doubtful names, and on images without a candidate."""
    if "ece" not in result:
        return []
    kinds = {"compositions": "", "attributes": "attr_", "objects": "obj_"} if "attr_ece" in result else {"classes": ""}
    lines = []
    for kind, prefix in kinds.items():
        figures = (("ECE", "ece"), ("NLL", "nll"), ("Brier", "brier"))
        texts = []
        for name, key in figures:
            before, after = (result[f"{prefix}{key}{suffix}"] for suffix in ("_before", ""))
            texts.append(f"{name} {_figure(before, key)} before, {_figure(after, key)} after")
        lines.append(f"probabilities of {kind}: {'; '.join(texts)}")
    lines[0] += f" (temperature {result['operating_point']['temperature']:.3g}; {result['ece_bins']} bins of equal mass)"
    shares = ", ".join(f"{percent(result[f'acc_at_{c}'])} % of the most confident {c} %" for c in COVERAGES)
    covered = " and ".join(f"{percent(result[f'coverage_at_p{p}'])} % of the images at {p} % precision" for p in PRECISIONS)
    lines.append(f"right names: {percent(result['acc_at_100'])} % of all, {shares}; names for {covered}")
    if "reject_auroc" in result:
        lines.append(
            f"images without a candidate: AUROC {percent(result['reject_auroc'])}; {percent(result['reject_fpr95'])} % pass where 95 % of "
            f"the others do (by {result['rejection']['detector']}; a quarter of the objects taken out at a time)"
        )
    return lines


def _figure(value: float | None, key: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if key == "ece" else f"{value:.3f}"


def _interval(low_high: list[float] | None) -> str:
    return f"{percent(low_high[0])} to {percent(low_high[1])}" if low_high else "-"


def _best_hm(result: dict[str, Any]) -> float | None:
    hm, loss = result["op_hm"], result["op_hm_loss"]
    return None if hm is None or loss is None else hm + loss


def reliability_figure(result: dict[str, Any]) -> Figure:
    """Accuracy over mean confidence, before and after."""
    from matplotlib.figure import Figure

    from czsl_cli.pages import legend_below

    figure = Figure(figsize=(4.8, 4.4))
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color="#888888", linewidth=0.8)
    for name, colour, marker in (("before", "#d55e00", "s"), ("after", "#0072b2", "o")):
        rows = result["reliability"][name]
        ece = result["ece" if name == "after" else "ece_before"]
        x, y = ([100 * row[key] for row in rows] for key in ("confidence", "accuracy"))
        axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.2, label=f"{name} (ECE {percent(ece)} %)")
    axes.set(xlabel="mean probability of the named label (%)", ylabel="right names (%)", xlim=(0, 100), ylim=(0, 100))
    axes.grid(alpha=0.25)
    legend_below(axes, 2)
    return figure


def reliability_in_words(result: dict[str, Any]) -> str:
    """Return what :func:`reliability_figure` shows, for those who do not see it."""
    before, after = (percent(result[key]) for key in ("ece_before", "ece"))
    return f"Accuracy over mean probability. Expected calibration error {before} percent before and {after} percent after calibration."


def write_report_page(path: Path, name: str, result: dict[str, Any], extremes: Extremes | None) -> None:
    """A page of one evaluation: tables, the seen/unseen curve with the operating point, the reliability curve."""
    from czsl_cli.compare import curves_figure, curves_in_words
    from czsl_cli.pages import Plot, Table, plot_svg, write_page

    shown = {"AUC": "auc", "best HM": "hm", "best seen": "seen", "best unseen": "unseen"}
    sections: list[Any] = [Table("Over all biases", ["percent", ""], [[k, percent(result[v])] for k, v in shown.items()])]
    if "operating_point" in result:
        title, columns, rows = point_table(result)
        sections.append(Table(title[0].upper() + title[1:], columns, rows))
    if extremes is not None:
        run = {"name": name, "auc": result["auc"], "hm": result["hm"], "op_bias": result.get("op_bias")}
        svg = plot_svg(curves_figure([run], [extremes]))
        sections.append(Plot("Seen and unseen accuracy over all calibration biases", svg, alt=curves_in_words([result | run])))
    if "reliability" in result:
        text = f"Each point is one of {result['ece_bins']} groups of equally many images. On the line a probability means what it says."
        svg = plot_svg(reliability_figure(result))
        sections.append(Plot("Reliability of the probabilities", svg, text, reliability_in_words(result)))
    write_page(path, f"Evaluation of {name}", sections, [*point_lines(result), *result.get("warnings", [])])
