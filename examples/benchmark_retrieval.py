"""Measure the search for the best compositions: ``python examples/benchmark_retrieval.py [cgqa | million]``.

Synthetic embeddings with the statistics of CLIP's (printed with the results): a text embedding is a common part, a part of its
attribute, one of its object and one of its own; an image embedding shares a little of the common part, a little of its true text's
own direction, and is noise otherwise. ``cgqa``: exact top-10 of 500 images among 413 x 674 pairs, every answer compared with a
float64 brute force. ``million``: 1,000 x 1,000 pairs, exact and approximate. Each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time

import numpy as np

from czsl.retrieval.index import CompositionIndex
from czsl.retrieval.topk import top_compositions

LOGIT_SCALE = 100
SHARES = {"common": 0.68, "attribute": 0.08, "object": 0.18, "own": 0.06}  # of a text embedding's squared length
COMMON, TRUE = 0.22, 0.17  # cosine of an image to the common part, and to the rest of its true text
K = 10
clock = time.perf_counter


def directions(count: int, dim: int, rng) -> np.ndarray:
    """Unit rows whose variance falls off along the axes, as it does in learned embeddings."""
    rows = rng.standard_normal((count, dim), dtype=np.float32) * np.float32(1) / np.sqrt(np.arange(dim, dtype=np.float32) + 20)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_world(attributes: int, objects: int, dim: int, images: int, rng) -> dict:
    """Embeddings of all pairs and of images of random pairs, primitive terms, and the statistics of all these."""
    weight = {name: np.float32(share**0.5) for name, share in SHARES.items()}
    common_D = directions(1, dim, rng)[0]
    attribute_AD, object_OD = directions(attributes, dim, rng), directions(objects, dim, rng)
    text_PD = np.empty((attributes * objects, dim), np.float32)
    shared_OD = weight["common"] * common_D + weight["object"] * object_OD
    for a in range(attributes):
        block = shared_OD + weight["attribute"] * attribute_AD[a] + weight["own"] * directions(objects, dim, rng)
        text_PD[a * objects : (a + 1) * objects] = block / np.linalg.norm(block, axis=1, keepdims=True)
    true_B = rng.integers(len(text_PD), size=images)
    rest_BD = text_PD[true_B] - text_PD.mean(axis=0)
    rest_BD /= np.linalg.norm(rest_BD, axis=1, keepdims=True)
    noise_BD = rng.standard_normal((images, dim), dtype=np.float32)
    noise_BD *= np.float32((1 - COMMON**2 - TRUE**2) ** 0.5) / np.linalg.norm(noise_BD, axis=1, keepdims=True)
    image_BD = COMMON * common_D + TRUE * rest_BD + noise_BD
    image_BD /= np.linalg.norm(image_BD, axis=1, keepdims=True)

    def probabilities(part_ND):
        words = weight["common"] * common_D + np.float32((1 - SHARES["common"]) ** 0.5) * part_ND
        logits = LOGIT_SCALE * image_BD @ (words / np.linalg.norm(words, axis=1, keepdims=True)).T
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        return share / share.sum(axis=1, keepdims=True)

    terms = probabilities(attribute_AD), probabilities(object_OD)
    some = rng.choice(len(text_PD), 2000, replace=False)
    cosines = image_BD @ text_PD[some].T
    return {
        "text": text_PD,
        "queries": LOGIT_SCALE * image_BD,
        "terms": terms,
        "pairs": np.stack(np.divmod(np.arange(len(text_PD)), objects), axis=1),
        "statistics": {
            "text_text_cosine": float((text_PD[some[:1000]] @ text_PD[some[1000:]].T).mean()),
            "image_text_cosine": float(cosines.mean()),
            "image_text_cosine_deviation": float(cosines.std(axis=1).mean()),
            "image_true_text_cosine": float((image_BD * text_PD[true_B]).sum(axis=1).mean()),
            "best_attribute_probability": float(terms[0].max(axis=1).mean()),
            "best_object_probability": float(terms[1].max(axis=1).mean()),
            "logit_scale": LOGIT_SCALE,
        },
    }


def dense(text_PD, pairs_P2, queries_BD, terms=None, images: int = 50, dtype=np.float32) -> np.ndarray:
    """Places of the best pairs by computing and keeping all scores of some images at a time."""
    places = []
    for start in range(0, len(queries_BD), images):
        some = slice(start, start + images)
        scores = np.empty((len(queries_BD[some]), len(text_PD)), dtype)
        queries = queries_BD[some].astype(dtype)
        for left in range(0, len(text_PD), 16_384):  # a float64 copy of all texts would not fit
            scores[:, left : left + 16_384] = queries @ text_PD[left : left + 16_384].T.astype(dtype, copy=False)
        if terms is not None:
            scores += terms[0][some].astype(dtype)[:, pairs_P2[:, 0]] * terms[1][some].astype(dtype)[:, pairs_P2[:, 1]]
        best = np.sort(np.argpartition(scores, -K, axis=1)[:, -K:], axis=1)
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        places.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(places)


def timed(action, repeats: int = 1):
    """Result and the best time of some runs, in seconds."""
    best = np.inf
    for _ in range(repeats):
        start = clock()
        result = action()
        best = min(best, clock() - start)
    return result, best


def peak_gib() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cgqa(rng) -> dict:
    """Exact answers in the open world of C-GQA's size."""
    world = make_world(413, 674, 768, 500, rng)
    text_PD, pairs_P2, queries_BD = world["text"], world["pairs"], world["queries"]
    flat, flat_s = timed(lambda: CompositionIndex.build(text_PD, pairs_P2))
    ivf, ivf_s = timed(lambda: CompositionIndex.build(text_PD, pairs_P2, "ivf"))
    result = {"pairs": len(text_PD), "dim": 768, "images": len(queries_BD), **world["statistics"], "cells": ivf.cells}
    result |= {"build_flat_s": flat_s, "build_ivf_s": ivf_s}
    attribute_BA, object_BO = world["terms"]
    text_queries_BD = LOGIT_SCALE * text_PD[rng.integers(len(text_PD), size=len(queries_BD))]
    cases = {
        "product_alone": (queries_BD, None),
        "terms_of_weight_1": (queries_BD, world["terms"]),
        "terms_of_weight_100": (queries_BD, (10 * attribute_BA, 10 * object_BO)),
        "texts_as_queries": (text_queries_BD, None),
    }
    for name, (queries, terms) in cases.items():
        truth = dense(text_PD, pairs_P2, queries, terms, dtype=np.float64)
        row = {"dense_s": timed(lambda queries=queries, terms=terms: dense(text_PD, pairs_P2, queries, terms), 2)[1]}
        for kind, index in (("flat", flat), ("ivf", ivf)):
            found, row[f"{kind}_s"] = timed(
                lambda index=index, queries=queries, terms=terms: top_compositions(index, queries, *(terms or ()), k=K), 2
            )
            row |= {
                f"{kind}_visited": float(found.visited.mean()),
                f"{kind}_equal": int((found.places == truth).all(axis=1).sum()),
            }
            assert found.exact
            assert row[f"{kind}_equal"] == len(queries), f"{kind} differs from brute force in {name}"
            row[f"{kind}_times_faster"] = row["dense_s"] / row[f"{kind}_s"]
        result[name] = row
    few = range(20)
    one, terms = queries_BD[:1], (attribute_BA[:1], object_BO[:1])
    result["one_image_at_a_time"] = {
        "dense_s": timed(lambda: [dense(text_PD, pairs_P2, one, terms) for _ in few])[1] / len(few),
        "flat_s": timed(lambda: [top_compositions(flat, one, *terms, k=K) for _ in few])[1] / len(few),
        "ivf_s": timed(lambda: [top_compositions(ivf, one, *terms, k=K) for _ in few[:4]])[1] / 4,
    }
    return result | {"peak_gib": peak_gib()}


def million(rng) -> dict:
    """Exact and approximate answers among a million pairs."""
    world, world_s = timed(lambda: make_world(1000, 1000, 256, 500, rng))
    queries_BD, terms = world["queries"], world["terms"]
    flat, flat_s = timed(lambda: CompositionIndex.build(world["text"], world["pairs"]))
    before = peak_gib()
    ivf, ivf_s = timed(lambda: CompositionIndex.build(world["text"], world["pairs"], "ivf"))
    result = {"pairs": len(flat), "dim": 256, "images": len(queries_BD), **world["statistics"], "make_world_s": world_s}
    result["cells"] = ivf.cells
    result |= {
        "build_flat_s": flat_s,
        "build_ivf_s": ivf_s,
        "peak_before_ivf_gib": before,
        "vectors_gib": flat.vectors.nbytes / 2**30,
    }
    exact, flat_s = timed(lambda: top_compositions(flat, queries_BD, *terms, k=K), 2)
    result["flat"] = {"queries_a_second": len(queries_BD) / flat_s, "visited": 1.0}
    for probes in (1, 4, 16, 64, None):
        found, seconds = timed(lambda probes=probes: top_compositions(ivf, queries_BD, *terms, k=K, probes=probes), 2)
        shared = [len(np.intersect1d(*both)) for both in zip(found.places, exact.places, strict=True)]
        first = (found.places[:, 0] == exact.places[:, 0]).mean()
        result[f"ivf_{probes}_probes" if probes else "ivf_exact"] = {
            "recall_at_10": float(np.mean(shared)) / K,
            "first_is_right": float(first),
            "visited": float(found.visited.mean()),
            "queries_a_second": len(queries_BD) / seconds,
            "times_flat": flat_s / seconds,
            "exact": found.exact,
        }
    return result | {"peak_gib": peak_gib()}


def rounded(value):
    """Floats to four places, in nested dictionaries."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def run(which: str, processor_time: bool) -> dict:
    """One benchmark, seed 0."""
    global clock
    clock = time.process_time if processor_time else time.perf_counter
    return rounded({"cgqa": cgqa, "million": million}[which](np.random.default_rng(0)))


def main() -> None:
    """Run the named benchmarks and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="?", default="both", choices=["cgqa", "million", "both"])
    parser.add_argument(
        "--processor-time", action="store_true", help="processor seconds of all threads, for a machine that others use"
    )
    options = parser.parse_args()
    for which in ["cgqa", "million"] if options.which == "both" else [options.which]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # memory is measured for each by itself
            print(json.dumps({which: pool.apply(run, (which, options.processor_time))}, indent=1))


if __name__ == "__main__":
    main()
