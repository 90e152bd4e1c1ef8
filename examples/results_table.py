"""The results table of the README: trains each row with each seed, evaluates the test split, prints Markdown.

Rows whose run is finished are not trained again, so the script can be stopped and started.

    python examples/results_table.py --data mydata --clip clip_b16_128.pt --out runs/fashion
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

# Row -> what is trained, in words, and the arguments of `czsl train`.
FROZEN = ["--recipe", "small", "epochs=3", "batch=128", "adapter_dim=0"]
SUBSET = [
    "--recipe", "small", "adapter_dim=64", "lr=5e-4", "train_per_pair=2", "val_per_pair=1", "epochs=2", "batch=32", "eval_batch=32",
    "augment=false",
]  # fmt: skip
ROWS: dict[str, tuple[str, list[str]]] = {
    "zero-shot": ("nothing", ["--method", "zero-shot"]),
    "csp": ("all images, 10 epochs", ["--method", "csp", "--recipe", "small", "epochs=10", "batch=256"]),
    "cluspro-frozen": ("all images, 3 epochs, tower frozen", ["--method", "clusPro", *FROZEN]),
    "cluspro-paper-frozen": (
        "all images, 3 epochs, tower frozen, preset paper",
        ["--method", "clusPro", "--preset", "paper", *FROZEN],
    ),
    "cluspro-adapters": ("2 images a pair, 2 epochs, adapters", ["--method", "clusPro", *SUBSET]),
}


def czsl(*args: str) -> str:
    """Run the command as a user does; its stdout."""
    command = [sys.executable, "-m", "czsl_cli.main", *args]
    print("$ czsl", *args, file=sys.stderr)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def one(row: str, seed: int, options: argparse.Namespace) -> dict:
    """Train (unless done) and evaluate one row with one seed: the report and what it cost."""
    name = f"{row}-seed{seed}"
    run = options.out / name
    ends = [e for e in _events(run) if e.get("event") == "end"]
    if not (run / "config.yaml").exists():
        shared = [
            "--data",
            str(options.data),
            "--clip",
            options.clip,
            "--seed",
            str(seed),
            "--out",
            str(options.out),
            "--name",
            name,
        ]
        shared.append(f"precision={options.precision}")
        czsl("train", *ROWS[row][1][:2], *shared, *ROWS[row][1][2:])
    elif row != "zero-shot" and not (ends and ends[-1]["status"] == "done"):
        czsl("train", "--resume", str(run))
    report = run / "report-test-closed.json"
    if not report.exists():
        czsl("evaluate", str(run))
    return {**json.loads(report.read_text()), **_cost(run)}


def _events(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _cost(run: Path) -> dict:
    """Minutes from the first step to the end (without caching features) and the peak memory of a worker."""
    events = _events(run)
    timed = [e["time"] for e in events if e.get("event") in ("start", "step", "epoch", "end")]
    end = [e for e in events if e.get("event") == "end"]
    return {
        "minutes": (timed[-1] - timed[0]) / 60 if timed else 0.0,
        "gib": end[-1]["peak_memory_bytes"] / 2**30 if end else None,
    }


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clip", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--precision", default="float32", help="bfloat16 halves the time of the image tower")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    options = parser.parse_args()
    print("| method | trained on | seen | unseen | HM | AUC | AUC-20 | attr | obj | minutes | peak GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in options.rows:
        seeds = options.seeds[:1] if row == "zero-shot" else options.seeds
        found = [one(row, seed, options) for seed in seeds]
        cells = [
            " / ".join(f"{100 * r[k]:.1f}" for r in found)
            for k in ("seen", "unseen", "hm", "auc", "auc_ref20", "attr_acc", "obj_acc")
        ]
        minutes = f"{np.mean([r['minutes'] for r in found]):.1f}" if row != "zero-shot" else "-"
        memory = f"{max(r['gib'] for r in found):.1f}" if all(r["gib"] for r in found) else "-"
        print("|", " | ".join([row, ROWS[row][0], *cells, minutes, memory]), "|", flush=True)


if __name__ == "__main__":
    main()
