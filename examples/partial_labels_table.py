"""Measure the cost of candidate labels: train and test each row on candidate sets of several q and seeds, print Markdown.

    python examples/partial_labels_table.py --data mydata --clip clip_b16_128.pt --precision bfloat16 --out runs/partial

One process, no Ray. The epoch is chosen by validation AUC. What is done is not done again, so the script can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.scoring import score_split
from cluster.work.training import train_worker
from czsl.data.files.ambiguity import make_partial_labels
from czsl.data.files.partial_labels import write_partial_labels
from czsl.data.table import Dataset, open_data
from czsl.evaluation import Candidates, report
from czsl.runs import checkpoint
from czsl.runs.run import Run
from czsl_cli.config import fix_paths, resolve
from methods.loading import load

FIXED = ["label_momentum=0", "label_init=uniform"]
CSP = ["method=csp", "recipe=small", "epochs=5", "label_warmup=1"]
# name -> settings; a row that ends in ", true labels" is given these.
ROWS = {
    "frozen CLIP": ["method=zero-shot"],
    "sets as they are": ["method=clip-pzsl", "preset=ours", *FIXED],
    "sets as they are + adapter": ["method=clip-pzsl", *FIXED],
    "em": ["method=clip-pzsl", "preset=em"],
    "proden": ["method=clip-pzsl", "preset=proden"],
    "kmt": ["method=clip-pzsl", "preset=kmt"],
    "ours": ["method=clip-pzsl", "preset=ours"],
    "ours + adapter": ["method=clip-pzsl"],
    "ours restricted": ["method=clip-pzsl", "preset=ours", "restrict=true"],
    "ours, true labels": ["method=clip-pzsl", "preset=ours"],
    "ours + adapter, true labels": ["method=clip-pzsl"],
    "ours restricted, true labels": ["method=clip-pzsl", "preset=ours", "restrict=true"],
    "csp, sets as they are": [*CSP, *FIXED],
    "csp": CSP,
    "csp, true labels": CSP,
}
COLUMNS = {"disambiguation": "true label top-1", "seen": "seen", "unseen": "unseen", "hm": "HM", "auc": "AUC"}


def result(options: argparse.Namespace, data: Dataset, row: str, q: float, seed: int) -> dict[str, float]:
    """Numbers of one row (fractions): trained, and tested with the best epoch, unless that was done before."""
    clean = row == "frozen CLIP" or row.endswith(", true labels")
    name = f"{row.replace(' ', '-').replace(',', '')}-{'' if clean else f'q{q:g}-'}seed{seed}"
    done = options.out / name / "result.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    given = {"data": options.data, "clip": options.clip, "precision": options.precision, "seed": seed, "threads": options.threads}
    config = resolve(given, [*ROWS[row], *([] if clean else [f"partial_labels={sidecar(options.out, data, q, seed)}"])])
    fix_paths(config)
    run = Run(options.out / name) if (options.out / name).exists() else Run.create(config, data.space, options.out, name)
    if row != "frozen CLIP":
        train_worker(run, Group(), torch.device("cpu"))
    method, candidates = load(run), Candidates.build(data.space, split="test")
    loader = FeatureLoader(method, data, "test", Group(), config.eval_batch, precision=method.clip.precision)
    numbers = report(
        score_split(method, loader, candidates, np.arange(len(loader.split)), config.eval_batch, Group()), candidates
    )
    best = checkpoint.best(run.checkpoints).get("step")
    epoch = next((e for e in run.metrics("epoch") if e["step"] == best), {})
    found = {
        key: {**numbers, **epoch}[key] if key == "disambiguation" else numbers[key]
        for key in COLUMNS
        if key in {**epoch, **numbers}
    }
    done.write_text(json.dumps(found), encoding="utf-8")
    return found


def sidecar(out: Path, data: Dataset, q: float, seed: int) -> Path:
    """The candidate sets of a rate and a seed."""
    labels = make_partial_labels(data, "uniform", q, seed)
    path = out / labels.file_name
    if not path.exists():
        write_partial_labels(path, labels, data.split("train").ids)
    return path.resolve()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--clip", default="tiny")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path, default=Path("runs/partial"))
    parser.add_argument("--q", type=float, nargs="+", default=[0.01, 0.05, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=[row for row in ROWS if "csp" not in row and "restricted" not in row]
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = open_data(options.data)
    print("| q | row |", " | ".join(COLUMNS.values()), "|\n| --- | --- |" + " --- |" * len(COLUMNS))
    for q in options.q:
        for row in options.rows:
            clean = row == "frozen CLIP" or row.endswith(", true labels")
            if clean and q != options.q[0]:
                continue
            seeds = options.seeds[:1] if row == "frozen CLIP" else options.seeds
            found = [result(options, data, row, q, seed) for seed in seeds]
            cells = [" / ".join(f"{100 * f[key]:.1f}" if key in f else "-" for f in found) for key in COLUMNS]
            print(" | ".join(["", "" if clean else f"{q:g}", row, *cells, ""]).strip(), flush=True)


if __name__ == "__main__":
    main()
