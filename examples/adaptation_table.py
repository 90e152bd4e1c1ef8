"""Runs with and without adaptation on all test images of their dataset: closed world, several orders, paired intervals.

    python examples/adaptation_table.py runs/zero-shot runs/csp-seed0 runs/csp-seed1

Rows come from examples/adaptation.yaml. The numbers use the unlabelled test images. Seconds are those of the stream only, after image
features are kept and texts are encoded; on a machine that has other work they are not a benchmark.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

from cluster.work.adapting import reduce_stream
from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.scoring import encode_candidates, reduce_split
from cluster.work.threads import cpu_threads
from czsl.data.table import open_data
from czsl.evaluation import Candidates, Curve, Extremes, compare
from czsl.reading import read_yaml
from czsl.runs.run import Run
from methods.adaptation.plan import Plan
from methods.loading import load

RESAMPLES = 1000
COLUMNS = ("run", "adaptation", "AUC", "orders", "HM", "seen", "unseen", "AUC gained, order 0 (95 %)", "s", "MiB")


def numbers(e: Extremes) -> list[float]:
    """AUC, HM, best seen and best unseen, in percent."""
    found = Curve(e).numbers()
    return [100 * found[key] for key in ("auc", "hm", "seen", "unseen")]


def peak() -> int:
    """Largest memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(f'{c:.1f}' if isinstance(c, float) else str(c) for c in cells)} |", flush=True)


def table_of(run: Run, spec: dict) -> None:
    """Print the rows of one run."""
    method = load(run)
    data, comm, batch = open_data(run.config.data, run.config.decode), Group(), run.config.eval_batch
    loader = FeatureLoader(method, data, "test", comm, batch, precision=run.config.precision)
    candidates = Candidates.build(data.space)
    text = encode_candidates(method, candidates)
    start = time.perf_counter()
    plain = reduce_split(method, loader, candidates, np.arange(len(loader.split)), batch, comm, text=text)[0]
    auc, *others = numbers(plain)
    row(run.path.name, "none", auc, "", *others, "", round(time.perf_counter() - start), peak())
    for name, given in spec["rows"].items():
        found, start = [], time.perf_counter()
        for seed in spec["orders"]:
            plan = Plan.of(given["adapt"], given.get("settings"), seed)
            found.append(reduce_stream(method, plan, loader, candidates, batch, comm, text=text)[0])
        seconds = (time.perf_counter() - start) / len(found)
        values = np.array([numbers(e) for e in found])
        gained = compare(plain, found[0], RESAMPLES, 0)["auc"]
        low, high = (100 * x for x in gained["interval"])
        span = f"{values[:, 0].min():.1f} to {values[:, 0].max():.1f}"
        interval = f"{100 * gained['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
        row(
            run.path.name,
            name,
            float(values[:, 0].mean()),
            span,
            *values[:, 1:].mean(0).tolist(),
            interval,
            round(seconds),
            peak(),
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--table", type=Path, default=Path(__file__).parent / "adaptation.yaml")
    options = parser.parse_args()
    spec = read_yaml(options.table)
    row(*COLUMNS)
    row(*("---" for _ in COLUMNS))
    for path in options.runs:
        run = Run(path)
        with cpu_threads(run.threads), torch.inference_mode():
            table_of(run, spec)


if __name__ == "__main__":
    main()
