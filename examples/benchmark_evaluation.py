"""Compare the time of an evaluation with a plain dense one: ``python examples/benchmark_evaluation.py [mit-closed | cgqa-open]``.

Synthetic data of the published sizes. ``mit-closed``: scores of 12,995 images for 1,962 pairs are at hand. ``cgqa-open``: from 768-d
image and text embeddings to the report, 5,098 images and 278,362 pairs, scores made tile by tile; the dense evaluation is timed on
a share of the images, because all of them would need 5.7 GB for each copy of the scores.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np

from czsl.compositions import CompositionSpace
from czsl.evaluation import Candidates, Extremes, ExtremesAccumulator, reduce_scores, report, threshold_rows
from czsl.evaluation.feasibility import feasibility_from_vectors

D = 768
DENSE_IMAGES = 100
LOGIT_SCALE = np.float32(100)


def make_space(attributes: int, objects: int, train: int, val: int, test: int, rng) -> CompositionSpace:
    """Random pairs in the published numbers: ``train`` seen ones, ``val`` and ``test`` unseen ones among 400 seen ones."""
    keys = rng.choice(attributes * objects, train + val + test, replace=False)
    pairs = np.stack(divmod(keys, objects), axis=1)
    seen, val_unseen, test_unseen = np.split(pairs, [train, train + val])
    names = tuple(f"a{i}" for i in range(attributes)), tuple(f"o{i}" for i in range(objects))
    val_pairs, test_pairs = np.concatenate([seen[:400], val_unseen]), np.concatenate([seen[:400], test_unseen])
    return CompositionSpace(*names, seen, val_pairs, test_pairs)


def dense_evaluation(scores_NP, candidates: Candidates, true_N) -> float:
    """The field's evaluation with the whole matrix at hand: copy, bias, mask and argmax for each of about 21 biases."""
    seen_P, is_seen = candidates.seen, candidates.seen[true_N]

    def right(bias):
        biased = scores_NP.copy()
        biased[:, ~seen_P] += np.float32(bias)
        biased[:, ~candidates.allowed] = -1e10
        return biased.argmax(axis=1) == true_N

    end, _unbiased = right(1000), right(0)
    rows = np.flatnonzero(end & ~is_seen)
    margins = np.sort(scores_NP[rows][:, seen_P].max(axis=1) - scores_NP[rows, true_N[rows]] - np.float32(1e-4))
    hits = [right(bias) for bias in margins[:: max(len(margins) // 20, 1)]] + [end]
    return float(np.trapezoid([hit[is_seen].mean() for hit in hits], [hit[~is_seen].mean() for hit in hits]))


def timed(action, repeats: int = 1):
    """Result and the best wall time of some runs, in seconds."""
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        result = action()
        best = min(best, time.perf_counter() - start)
    return result, best


def mit_closed(rng) -> dict:
    """Closed world of MIT-States' size."""
    space = make_space(115, 245, 1262, 300, 400, rng)
    candidates = Candidates.build(space)
    labels = space.test_pairs[rng.integers(len(space.test_pairs), size=12_995)]
    scores = rng.normal(20, 3, (len(labels), len(candidates.pairs))).astype(np.float32)
    true_N = space.locate(labels, candidates.pairs)
    scores[np.arange(len(labels)), true_N] += 8
    extremes, reduction = timed(lambda: reduce_scores(scores, labels, candidates), 3)
    numbers, curve = timed(lambda: report(extremes, candidates), 3)
    _, bootstrap = timed(lambda: report(extremes, candidates, bootstrap=1000))
    auc, dense = timed(lambda: dense_evaluation(scores, candidates, true_N))
    return {
        "scores": list(scores.shape),
        "reduction_s": reduction,
        "curve_s": curve,
        "with_1000_resamples_s": bootstrap,
        "dense_s": dense,
        "times_faster": dense / (reduction + curve),
        "same_auc_ref20": abs(auc - numbers["auc_ref20"]) < 1e-6,
    }


def cgqa_open(rng) -> dict:
    """Open world of C-GQA's size, from embeddings, with all 50 thresholds."""
    space = make_space(413, 674, 5592, 1252, 923, rng)
    attributes_AD, objects_OD = (rng.normal(size=(n, D)).astype(np.float32) for n in (413, 674))
    feasibility, feasibility_s = timed(lambda: feasibility_from_vectors(attributes_AD, objects_OD, space))
    text_PD = np.empty((len(space.open_pairs), D), np.float32)
    for a in range(413):
        block = objects_OD + attributes_AD[a]
        text_PD[a * 674 : (a + 1) * 674] = block / np.linalg.norm(block, axis=1, keepdims=True)
    labels = space.test_pairs[rng.integers(len(space.test_pairs), size=5_098)]
    images_ND = text_PD[space.key(labels)] + rng.normal(scale=0.35, size=(len(labels), D)).astype(np.float32)
    images_ND *= LOGIT_SCALE / np.linalg.norm(images_ND, axis=1, keepdims=True)

    def reduce(feasibility_P) -> tuple[Extremes, Candidates, float]:
        candidates = Candidates.build(space, open_world=True, feasibility=feasibility_P)
        accumulator, product = ExtremesAccumulator(candidates, labels), 0.0
        scores_Np = np.empty((len(labels), 1024), np.float32)
        for tile in candidates.tiles(1024):
            start = time.perf_counter()
            out = scores_Np[:, : len(tile)] if len(tile) <= 1024 else None
            scores = np.matmul(images_ND, text_PD[tile].T, out=out)
            product += time.perf_counter() - start
            accumulator.update(slice(None), tile, scores)
        return accumulator.result(), candidates, product

    (extremes, candidates, product), plain = timed(lambda: reduce(None))
    numbers, curve = timed(lambda: report(extremes, candidates))
    (extremes, candidates, product_50), searched = timed(lambda: reduce(feasibility))
    _, rows = timed(lambda: threshold_rows(extremes, candidates))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    few = slice(0, DENSE_IMAGES)
    scores = images_ND[few] @ text_PD.T
    _, dense = timed(lambda: dense_evaluation(scores, candidates, space.key(labels[few])))
    dense *= len(labels) / DENSE_IMAGES
    return {
        "scores": [len(labels), len(text_PD)],
        "feasibility_s": feasibility_s,
        "one_evaluation_s": plain + curve,
        "of_that_products_s": product,
        "search_of_50_s": searched + rows,
        "of_that_products_50_s": product_50,
        "of_that_rows_s": rows,
        "search_over_one": (searched + rows) / (plain + curve),
        "search_over_one_without_products": (searched + rows - product_50) / (plain + curve - product),
        "peak_gib": peak,
        "text_embeddings_gib": text_PD.nbytes / 2**30,
        "dense_without_products_s": f"{dense:.0f} (from {DENSE_IMAGES} images)",
        "times_faster_without_products": dense / (plain + curve - product),
        "auc": numbers["auc"],
    }


def main() -> None:
    """Run the named benchmarks and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="?", default="both", choices=["mit-closed", "cgqa-open", "both"])
    chosen = parser.parse_args().which
    for which in ["mit-closed", "cgqa-open"] if chosen == "both" else [chosen]:
        result = {"mit-closed": mit_closed, "cgqa-open": cgqa_open}[which](np.random.default_rng(0))
        print(json.dumps({which: {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}}, indent=1))


if __name__ == "__main__":
    main()
