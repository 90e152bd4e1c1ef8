"""LaZSL's rows on photographs, beside zero-shot CLIP on the same images: compositions, or plain classes.

    python examples/lazsl_photographs.py mydata --clip clip_b16_128.pt --per-pair 3 --out runs/lazsl
    python examples/lazsl_photographs.py types-data --clip clip_b16_128.pt --out runs/types     (see article_types.py)

Runs that exist are not made again, and the views of an image are encoded once for all rows. Prints Markdown, percent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROWS = {
    "zero-shot CLIP": ["--method", "zero-shot"],
    "descriptions alone": ["--method", "lazsl", "theta=0", "num_regions=0"],
    "+ crops, no transport": ["--method", "lazsl", "solver=uniform"],
    "+ transport, no selection": ["--method", "lazsl", "select=false"],
    "+ both (default)": ["--method", "lazsl"],
    "default with `global_term=prompt`": ["--method", "lazsl", "global_term=prompt"],
}
PAIRS = {"AUC": "auc", "HM": "hm", "best seen": "seen", "best unseen": "unseen", "attribute": "attr_acc", "object": "obj_acc"}
CLASSES = {"top-1": "top1", "T1": "T1", "S": "S", "U": "U", "H": "H", "H, gamma 0": "H0"}


def czsl(*args: str) -> str:
    """Run the command as a user does; its stdout."""
    print("$ czsl", *args, file=sys.stderr)
    return subprocess.run([sys.executable, "-m", "czsl_cli.main", *args], check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Make the runs, evaluate them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--clip", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/lazsl"))
    parser.add_argument("--per-pair", default="0", help="images of each pair or class; 0: all")
    parser.add_argument("--regions", type=int, default=16)
    options = parser.parse_args()
    table: list[str] = []
    for number, (row, settings) in enumerate(ROWS.items()):
        run = options.out / f"row-{number}"
        if not (run / "config.yaml").exists():
            regions = [f"num_regions={options.regions}"] if "lazsl" in settings and "num_regions=0" not in settings else []
            common = ["--data", options.data, "--clip", options.clip, "--out", str(options.out), "--name", run.name]
            czsl("train", *common, *settings, *regions, "precision=bfloat16", "eval_batch=16")
        report = json.loads(czsl("evaluate", str(run), "--per-pair", options.per_pair, "--bootstrap", "1000", "--json"))
        columns = CLASSES if "gamma" in report else PAIRS
        if not table:
            table = [f"| {report['images']} test images | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        cells = [f"{100 * report[key]:.1f}" for key in columns.values()]
        main_key = "H" if "gamma" in report else "auc"
        low, high = report["intervals"][main_key]
        cells[list(columns.values()).index(main_key)] += f" ({100 * low:.1f} to {100 * high:.1f})"
        table.append(f"| {row} | {' | '.join(cells)} |")
    print("\n".join(table))


if __name__ == "__main__":
    main()
