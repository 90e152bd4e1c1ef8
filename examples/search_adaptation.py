"""Search the settings of an adaptation on the validation images of a run: nothing is trained, features are encoded once.

    python examples/search_adaptation.py runs/csp tomcat --trials 16 --orders 3

Trial 0 has the defaults; the values of the others are drawn from the adaptation's search space (`czsl methods tomcat`) by seed and number.
The last line holds the best settings as words for `czsl evaluate RUN --adapt NAME`. The test images are never read.
"""

from __future__ import annotations

import argparse

import torch

from cluster.work.adapting import reduce_stream
from cluster.work.comm import Group
from cluster.work.feature_loader import FeatureLoader
from cluster.work.scoring import encode_candidates, score_split
from cluster.work.threads import cpu_threads
from czsl.data.table import open_data
from czsl.evaluation import Candidates, Curve
from czsl.runs.run import Run
from czsl.runs.search import parse_space, sample
from methods.adaptation.plan import Plan
from methods.adaptation.registry import adaptation_config, adaptation_search, canonical_adaptation
from methods.loading import load
from methods.registry import check_adaptable


def main() -> None:
    """Print a line per trial and the best settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("adaptation")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    name = canonical_adaptation(options.adaptation)
    space = parse_space(adaptation_search(name), name, adaptation_config(name))
    run = Run(options.run)
    with cpu_threads(run.threads), torch.inference_mode():
        method, data, batch = load(run), open_data(run.config.data, run.config.decode), run.config.eval_batch
        check_adaptable(method.name)
        loader = FeatureLoader(method, data, "val", Group(), batch, precision=run.config.precision)
        candidates = Candidates.build(data.space, split="val")
        text, rows = encode_candidates(method, candidates), loader.split.pairs
        everything = torch.arange(len(rows)).numpy()
        plain = score_split(method, loader, candidates, everything, batch, Group(), text=text)
        print(f"without adaptation: val AUC {100 * Curve(plain).numbers()['auc']:.2f}", flush=True)
        best: tuple[float, str] = (-1.0, "")
        for number in range(options.trials):
            values = {k: v if isinstance(v, int) else float(f"{v:.3g}") for k, v in sample(space, options.seed, number).items()}
            words = " ".join(f"{key}={value}" for key, value in values.items()) if number else ""
            aucs = []
            for seed in range(options.orders):
                plan = Plan.of(name, values if number else None, seed)
                found = reduce_stream(method, plan, loader, candidates, batch, Group(), text=text)[0]
                aucs.append(100 * Curve(found).numbers()["auc"])
            mean = sum(aucs) / len(aucs)
            best = max(best, (mean, words))
            print(f"{mean:6.2f} ({min(aucs):.2f} to {max(aucs):.2f})  {words or 'defaults'}", flush=True)
    print(f"best on val, AUC {best[0]:.2f}: --adapt {name} {best[1]}")


if __name__ == "__main__":
    main()
