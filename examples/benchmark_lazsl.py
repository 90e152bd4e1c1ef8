"""Measure the time of LaZSL's scores from given features: ``python examples/benchmark_lazsl.py [--classes 1000 --regions 90]``.

One image against many classes, on one core, synthetic features with the statistics of CLIP's (similar phrases of a class, regions like
the whole image). Compared with a loop over classes that solves one small problem after the other, as the released program does; the
scores of both are compared. ``--attributes A --objects O`` measures the pairs of an open world as well. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from methods.lazsl.config import LaZSLConfig
from methods.lazsl.phrases import PhraseBank, bank_of
from methods.lazsl.regions import region_features
from methods.lazsl.scoring import PhraseFeatures, mixed_scores

RELEASED_STOP = 1e-2  # mean change of the row factors
CONVERGED = 1e-6


def bank(labels: int, dim: int, generator: torch.Generator) -> PhraseBank:
    """Two to eleven phrases a label, as many as the published descriptors of ImageNet have."""
    counts = torch.randint(2, 12, (labels,), generator=generator).tolist()
    common, own = torch.randn(dim, generator=generator), torch.randn(labels, dim, generator=generator)
    owner = torch.repeat_interleave(torch.arange(labels), torch.tensor(counts))
    phrases = common + 0.45 * own[owner] + 0.35 * torch.randn(len(owner), dim, generator=generator)
    names = [str(i) for i in range(labels)]
    return bank_of(names, [names[i] for i in owner.tolist()], normalize(phrases, dim=-1), counts)


def image_features(banks: list[PhraseBank], regions: int, dim: int, generator: torch.Generator) -> Tensor:
    """One image, packed [1, (1 + regions) * dim]: part of a phrase of the first label, a common part, and noise."""
    whole = normalize(torch.randn(dim, generator=generator), dim=0) + 0.3 * sum(b.mean[0] for b in banks)
    views = whole + 0.025 * torch.randn(regions, dim, generator=generator)
    return torch.cat([whole[None], views]).reshape(1, -1)


def loop_over_classes(
    whole_D: Tensor, regions_RD: Tensor, phrases: list[Tensor], theta: float, eps: float, stop: float
) -> Tensor:
    """The released program's steps, one class after the other: the description baseline, cost, Sinkhorn until the row factors rest, a
    look for NaN, score."""
    likeness_R = regions_RD @ whole_D
    kept_R = likeness_R >= likeness_R.mean() - 1e-6
    mass_R = kept_R.float() / kept_R.sum()
    scores, baselines = [], []
    for phrases_ND in phrases:
        baselines.append((phrases_ND @ whole_D).mean())
        similarity_RN = theta * regions_RD @ phrases_ND.T + (1 - theta) * (phrases_ND @ whole_D)
        kernel_RN = torch.exp(-(1 - similarity_RN) / eps)
        weight_N = torch.full((len(phrases_ND),), 1 / len(phrases_ND))
        u_R, v_N = torch.ones_like(mass_R), torch.ones_like(weight_N)
        for _ in range(100):
            before_R = u_R
            u_R = mass_R / (kernel_RN @ v_N)
            v_N = weight_N / (kernel_RN.T @ u_R)
            if (u_R - before_R).abs().mean().item() < stop:
                break
        plan_RN = u_R[:, None] * kernel_RN * v_N
        if torch.isnan(plan_RN).any():
            raise ArithmeticError("the plan is not a number")
        scores.append((plan_RN * similarity_RN).sum())
    return torch.stack(scores)


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median processor time of some runs after one that does not count; what else the machine does plays a small part."""
    work()
    times = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return statistics.median(times)


def classes(count: int, regions: int, dim: int, repeats: int) -> dict[str, Any]:
    """One image against plain classes."""
    generator, config = torch.Generator().manual_seed(0), LaZSLConfig()
    own = bank(count, dim, generator)
    features = image_features([own], regions, dim, generator)
    text = PhraseFeatures(torch.arange(count)[:, None], own.mean, banks=(own,), shares=(1.0,))
    phrases = list(own.features.split(own.count.tolist()))
    views = normalize(features.view(-1, dim), dim=-1)

    def batched(config: LaZSLConfig) -> Tensor:
        return mixed_scores(region_features(features, dim, config), text, config)[0]

    def loop(stop: float) -> Tensor:
        return loop_over_classes(views[0], views[1:], phrases, config.theta, config.eps, stop)

    exact, expansion = batched(config), replace(config, solver="second_order")
    ours = {name: seconds(lambda c=c: batched(c), repeats) for name, c in (("sinkhorn", config), ("second_order", expansion))}
    theirs = {"released_stop": seconds(lambda: loop(RELEASED_STOP), 3), "converged": seconds(lambda: loop(CONVERGED), 3)}
    return {
        "classes": count,
        "phrases": len(own.features),
        "regions": regions,
        "regions_kept": int(region_features(features, dim, config).kept.sum()),
        "seconds": {**ours, **{f"loop_{name}": value for name, value in theirs.items()}},
        "faster_than_loop_released_stop": theirs["released_stop"] / ours["sinkhorn"],
        "faster_than_loop_converged": theirs["converged"] / ours["sinkhorn"],
        "score_spread": float(exact.std()),
        "largest_difference": float((exact - loop(CONVERGED)).abs().max()),
        "released_stop_is_off_by": float((exact - loop(RELEASED_STOP)).abs().max()),
        "second_order_is_off_by": float((exact - batched(expansion)).abs().max()),
        "second_order_same_five_best": exact.topk(5).indices.tolist() == batched(expansion).topk(5).indices.tolist(),
    }


def pairs(attributes: int, objects: int, regions: int, dim: int, repeats: int) -> dict[str, Any]:
    """One image against all pairs of attributes and objects, by the expansion; some of them exactly."""
    generator, config = torch.Generator().manual_seed(1), LaZSLConfig()
    banks = bank(attributes, dim, generator), bank(objects, dim, generator)
    features = image_features(list(banks), regions, dim, generator)
    places = torch.cartesian_prod(torch.arange(attributes), torch.arange(objects))

    def text_of(chosen: Tensor) -> PhraseFeatures:
        whole = sum(0.5 * b.mean[x] for b, x in zip(banks, chosen.T, strict=True))
        return PhraseFeatures(chosen, whole, banks=banks, shares=(0.5, 0.5))

    def scores(config: LaZSLConfig, text: PhraseFeatures) -> Tensor:
        return mixed_scores(region_features(features, dim, config), text, config)[0]

    expansion, chosen = replace(config, solver="second_order"), torch.randperm(len(places), generator=generator)[:2000]
    every, some = text_of(places), text_of(places[chosen])
    exact = scores(config, some)
    all_of_them, exact_of_some = seconds(lambda: scores(expansion, every), repeats), seconds(lambda: scores(config, some), 3)
    return {
        "attributes": attributes,
        "objects": objects,
        "pairs": len(places),
        "seconds": {"second_order": all_of_them, "sinkhorn_extrapolated": exact_of_some * len(places) / len(chosen)},
        "score_spread": float(exact.std()),
        "second_order_is_off_by": float((exact - scores(expansion, every)[chosen]).abs().max()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--regions", type=int, default=90)
    parser.add_argument("--dim", type=int, default=512, help="width of the joint space")
    parser.add_argument("--attributes", type=int, default=0, help="with --objects: the pairs of an open world")
    parser.add_argument("--objects", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        result = classes(args.classes, args.regions, args.dim, args.repeats)
        if args.attributes and args.objects:
            result["open_world"] = pairs(args.attributes, args.objects, args.regions, args.dim, args.repeats)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
