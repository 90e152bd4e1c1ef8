"""The report of ``czsl evaluate`` on the terminal: tables of pairs, of plain classes and of adapted runs."""

from __future__ import annotations

from typing import Any

from czsl_cli.adapt_options import TRANSDUCTIVE
from czsl_cli.console import percent, print_table, print_text


def print_report(result: dict[str, Any], beside: Any = None) -> None:
    """Print a report; ``beside``: a table of papers' numbers that follows it."""
    named = " ".join(str(result[k]) for k in ("method", "split") if k in result)
    world = "open" if result.get("open_world", "threshold" in result) else "closed"
    what = "plain classes" if "gamma" in result else f"{world} world"
    part = result.get("subset")
    of = f" of {part['of_images']:,}" if part else ""
    title = f"{named + ', ' if named else ''}{what}, {result['images']:,}{of} images"
    if part:
        title += f" (at most {part['per_pair']} a {'class' if 'gamma' in result else 'pair'}, seed {part['seed']})"
    if "orders" in result:
        _print_orders(result, title)
    elif "gamma" in result:
        _print_classes(result, title)
    else:
        _print_pairs(result, title)
    if "adaptation" in result:
        _print_adaptation(result)
    if "operating_point" in result:
        from czsl_cli.point_report import point_lines, point_table

        title, columns, rows = point_table(result)
        print_table(columns, rows, title)
        for line in point_lines(result):
            print_text(line)
    if beside is not None:
        from czsl_cli.experiment_table import show

        show(beside)


def _shown_numbers(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Labels and keys of the numbers that tell an adapted run from the run itself."""
    labels = {
        "S": "seen classes (S)", "U": "unseen classes (U)", "H": "harmonic mean (H)", "T1": "unseen among the unseen (T1)",
        "auc": "AUC", "hm": "harmonic mean (HM)", "seen": "best seen", "unseen": "best unseen", "attr_acc": "attribute accuracy",
        "obj_acc": "object accuracy", "op_hm": "HM at the operating point",
    }  # fmt: skip
    plain = result["without_adaptation"]
    return [(label, key) for key, label in labels.items() if isinstance(result.get(key), float) and key in plain]


def _print_orders(result: dict[str, Any], title: str) -> None:
    plain, spread = result["without_adaptation"], result["spread"]
    rows = [
        [
            label,
            percent(result[key]),
            percent(spread[key]["sd"]),
            f"{percent(spread[key]['min'])} to {percent(spread[key]['max'])}",
            percent(plain[key]),
        ]
        for label, key in _shown_numbers(result)
    ]
    print_table(["percent", f"mean of {len(result['orders'])} orders", "sd", "range", "without adaptation"], rows, title)


def _print_adaptation(result: dict[str, Any]) -> None:
    about, plain = result["adaptation"], result["without_adaptation"]
    seeds = about["stream_seed"] if isinstance(about["stream_seed"], list) else [about["stream_seed"]]
    named = ", ".join("as given" if seed is None else f"seed {seed}" for seed in seeds)
    print_text(f"adapted with {about['name']}, order of the stream: {named}; {TRANSDUCTIVE}")
    print_text("settings: " + ", ".join(f"{key}={value}" for key, value in about["settings"].items()))
    if "orders" not in result:
        numbers = ", ".join(f"{label} {percent(plain[key])}" for label, key in _shown_numbers(result))
        print_text(f"without adaptation: {numbers}")


def _print_classes(result: dict[str, Any], title: str) -> None:
    gamma = f"gamma {result['gamma']:.4g}"  # where it is 0, one column says it all
    rows = [
        ("seen classes (S)", "S", "S0"),
        ("unseen classes (U)", "U", "U0"),
        ("harmonic mean (H)", "H", "H0"),
        ("unseen among the unseen (T1)", "T1", "T1"),
        ("top-1 over images", None, "top1"),
        ("AUC over images", "auc", None),
    ]
    table = []
    for label, *keys in rows:
        shown = keys if result["gamma"] else [keys[1] or keys[0]]
        table.append([label, *(percent(result[key]) if key else "" for key in shown)])
        if "intervals" in result:
            low_high = result["intervals"].get(keys[0] or keys[1])
            table[-1].append(f"{percent(low_high[0])} to {percent(low_high[1])}" if low_high else "")
    columns = ["percent, means over classes", *([gamma, "gamma 0"] if result["gamma"] else ["gamma 0"])]
    print_table([*columns, *(["95 % interval"] if "intervals" in result else [])], table, title)
    if result["gamma"]:
        print_text(f"{gamma} is taken from the scores of seen classes: the bias of the operating point")


def _print_pairs(result: dict[str, Any], title: str) -> None:
    rows: list[tuple[str, str, str | None]] = [
        ("AUC", "auc", "auc_ref20"),
        ("harmonic mean (HM)", "hm", "hm_ref20"),
        ("best seen", "seen", "seen_ref20"),
        ("best unseen", "unseen", "unseen_ref20"),
        ("attribute accuracy", "attr_acc", None),
        ("object accuracy", "obj_acc", None),
    ]
    intervals = result.get("intervals", {})
    table = []
    for label, exact, binned in rows:
        row = [label, percent(result[exact]), percent(result[binned]) if binned else ""]
        if intervals:
            low_high = intervals.get(exact)
            row.append(f"{percent(low_high[0])} to {percent(low_high[1])}" if low_high else "")
        table.append(row)
    columns = ["percent", "exact", "20 bins", *(["95 % interval"] if intervals else [])]
    print_table(columns, table, title)
    if "thresholds" in result:
        print_text(_threshold_in_words(result))


def _threshold_in_words(result: dict[str, Any]) -> str:
    """Return the feasibility threshold of the numbers and its origin, as text."""
    rows = result["thresholds"]
    if result["threshold"] is None:
        best = max(rows, key=lambda row: row["auc"] or 0.0)
        found = f"the best of {len(rows)} here, {best['threshold']:.4f}, has AUC {percent(best['auc'])}"
        return f"no feasibility threshold in use; {found} (--json lists all)"
    chosen = {"val": "the best on the validation split", "given": "as given"}[result["threshold_chosen"]]
    return f"feasibility threshold {result['threshold']:.4f}, {chosen}; rule: {result['rule']}"
