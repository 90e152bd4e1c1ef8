"""Results tables: trains each row of a YAML file with each seed, evaluates the test split, prints Markdown, and tests differences.

    python examples/results_table.py examples/tables/photographs.yaml --data mydata --clip clip_b16_128.pt --out runs/photographs

Rows whose run is finished are not trained again, so the script can be stopped and started. In a table, `trained: nothing` has no seeds,
`{data}` stands for the dataset folder, `per_pair` evaluates a stratified part of the test images, `bootstrap` adds intervals, and
`columns` names other keys of the reports with their headings.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from czsl.data.table import open_data

COLUMNS = {
    "seen": "seen",
    "unseen": "unseen",
    "hm": "HM",
    "auc": "AUC",
    "auc_ref20": "AUC-20",
    "attr_acc": "attr",
    "obj_acc": "obj",
}
CLASSES = {"top1": "top-1", "T1": "T1", "S": "S", "U": "U", "H": "H", "H0": "H, gamma 0"}  # where labels are plain classes


def czsl(*args: str) -> str:
    """Run the command as a user does; its stdout."""
    print("$ czsl", *args, file=sys.stderr)
    return subprocess.run([sys.executable, "-m", "czsl_cli.main", *args], check=True, stdout=subprocess.PIPE, text=True).stdout


class Table:
    """The rows of a file and where their runs are."""

    def __init__(self, options: argparse.Namespace):
        content = yaml.safe_load(options.table.read_text(encoding="utf-8"))
        self.options, self.rows, self.differences = options, content["rows"], content.get("compare", [])
        self.common = shlex.split(content.get("common", ""))
        self.per_pair, self.bootstrap = options.per_pair or content.get("per_pair", 0), content.get("bootstrap", 0)
        usual = COLUMNS if open_data(options.data).space.noun == "pair" else CLASSES
        self.columns = content.get("columns", usual)

    def run(self, row: str, seed: int) -> Path:
        """The run folder of a row; what trains nothing is the same for all seeds."""
        return self.options.out / f"{row}-seed{seed if self.trains(row) else 0}"

    def trains(self, row: str) -> bool:
        """Whether a row has seeds."""
        return self.rows[row]["trained"] != "nothing"

    @property
    def anything_trains(self) -> bool:
        """Whether there is a cost of training to tell."""
        return any(self.trains(row) for row in self.rows)

    def report(self, row: str, seed: int) -> dict:
        """Train (unless done) and evaluate one row with one seed: the report and what it cost."""
        run, o = self.run(row, seed), self.options
        ends = [e for e in events(run) if e.get("event") == "end"]
        if not (run / "config.yaml").exists():
            shared = ["--data", str(o.data), "--clip", o.clip, "--seed", str(seed), "--out", str(o.out), "--name", run.name]
            arguments = [*self.common, *shlex.split(self.rows[row]["train"].replace("{data}", str(o.data)))]
            settings = [x for x in arguments if "=" in x and not x.startswith("-")]
            czsl("train", *(x for x in arguments if x not in settings), *shared, f"precision={o.precision}", *settings)
        elif self.trains(row) and not (ends and ends[-1]["status"] == "done"):
            czsl("train", "--resume", str(run))
        report = run / f"report-test-closed{f'-{self.per_pair}-per-pair' if self.per_pair else ''}.json"
        if not report.exists():
            czsl("evaluate", str(run), "--per-pair", str(self.per_pair), "--bootstrap", str(self.bootstrap))
        return {**json.loads(report.read_text(encoding="utf-8")), **cost(run)}

    def line(self, row: str) -> str:
        """A line of the table."""
        found = [self.report(row, seed) for seed in (self.options.seeds if self.trains(row) else self.options.seeds[:1])]
        cells = [" / ".join(cell(r, key) for r in found) for key in self.columns]
        minutes = f"{np.mean([r['minutes'] for r in found]):.1f}" if self.trains(row) else "-"
        memory = f"{max(r['gib'] for r in found):.1f}" if all(r["gib"] for r in found) else "-"
        costs = [minutes, memory] if self.anything_trains else []
        return " | ".join(["", row, self.rows[row]["trained"], *cells, *costs, ""]).strip()

    def difference(self, first: str, second: str) -> str:
        """A line on whether the second row is better than the first, by paired bootstrap, seed by seed."""
        cells = []
        for key in ("auc", "hm"):
            texts, holds = [], []
            for seed in self.options.seeds if self.trains(first) or self.trains(second) else self.options.seeds[:1]:
                compared = json.loads(
                    czsl(
                        "compare",
                        *(str(self.run(row, seed)) for row in (first, second)),
                        "--per-pair",
                        str(self.per_pair),
                        "--json",
                    )
                )
                one = compared["differences"][0][key]
                low, high = one["interval"]
                texts.append(f"{100 * one['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
                holds.append(np.sign(low) * (low * high > 0))
            cells += [" / ".join(texts), "yes" if holds[0] and len(set(holds)) == 1 else "no"]
        return " | ".join(["", f"{second} - {first}", *cells, ""]).strip()


def cell(report: dict, key: str) -> str:
    """Percent, with the interval of the number that rows are compared by where there is one."""
    low_high = report.get("intervals", {}).get(key) if key in ("auc", "H") else None
    shown = "-" if report[key] is None else f"{100 * report[key]:.1f}"
    return shown + (f" ({100 * low_high[0]:.1f} to {100 * low_high[1]:.1f})" if low_high else "")


def events(run: Path) -> list[dict]:
    """Lines of a run's metrics."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def cost(run: Path) -> dict:
    """Minutes from the first step to the end (without caching features) and the peak memory of a worker."""
    timed = [e["time"] for e in events(run) if e.get("event") in ("start", "step", "epoch", "end")]
    end = [e for e in events(run) if e.get("event") == "end"]
    return {
        "minutes": (timed[-1] - timed[0]) / 60 if timed else 0.0,
        "gib": end[-1]["peak_memory_bytes"] / 2**30 if end else None,
    }


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a file of examples/tables")
    parser.add_argument("--data", type=Path, required=True, help="a dataset folder, or toy")
    parser.add_argument("--clip", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--precision", default="float32", help="bfloat16 halves the time of the image tower")
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--per-pair", type=int, default=0, help="evaluate so many test images of a pair; 0: as the table says")
    options = parser.parse_args()
    table = Table(options)
    rows = options.rows or list(table.rows)
    head = ["method", "trained on", *table.columns.values(), *(["minutes", "peak GiB"] if table.anything_trains else [])]
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print(table.line(row), flush=True)
    if not table.differences:
        return
    print("\n| difference | AUC [95 %] | holds | HM [95 %] | holds |\n| --- | --- | --- | --- | --- |")
    for first, second in table.differences:
        if first in rows and second in rows:
            print(table.difference(first, second), flush=True)


if __name__ == "__main__":
    main()
