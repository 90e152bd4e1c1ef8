"""Measure the gain of more workers: real trainings of ClusPro on this machine's CPUs, and where their time goes.

    python examples/benchmark_workers.py --numbers 1 2 4

A round trains once with each number of workers; figures are medians over rounds, since other work on
the machine comes and goes. Workers beyond the number of cores share them and bring nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from benchmark_wire import table

from cluster.machines.launch import run_workers
from cluster.machines.nodes import NodeRequest
from cluster.machines.on_ray import RayEngine
from cluster.machines.session import OBJECT_STORE_BYTES, prepare_environment, session
from cluster.work import training as worker
from cluster.work.comm import Group
from cluster.work.gradients import GradientAverage
from czsl.data.table import open_data
from czsl.runs.run import Run
from czsl_cli.config import resolve

WARM_UP = 3  # steps that are not counted
PARTS = ("waiting", "sending")
SETTINGS = {"method": "clusPro", "epochs": 1, "threads": 1, "adapter_dim": 16, "val_per_pair": 1, "seed": 0}


@contextmanager
def timed_collectives(spent: dict[str, float]) -> Iterator[None]:
    """Add up seconds in which a step stands still: ``waiting`` until the slowest worker is there, then ``sending``.

    Gradients that are sent while the backward pass continues cost no time here.
    """

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if not dist.is_initialized():  # one worker
                return function(*args, **more)
            began = time.perf_counter()
            dist.barrier()
            together = time.perf_counter()
            out = function(*args, **more)
            spent["waiting"] += together - began
            spent["sending"] += time.perf_counter() - together
            return out

        return call

    gather, finish = dist.all_gather, GradientAverage.finish
    dist.all_gather, GradientAverage.finish = timed(gather), timed(finish)  # type: ignore[method-assign]
    try:
        yield
    finally:
        dist.all_gather, GradientAverage.finish = gather, finish  # type: ignore[method-assign]


def measured_worker(config: dict[str, Any], group: Group, device: torch.device) -> None:
    """The training loop of one worker with clocks around its steps and their collectives."""
    train_step, found = worker.train_step, []

    def step(trainer: worker.Trainer, rows_B: Any, prepared: Any) -> Any:
        spent = dict.fromkeys(PARTS, 0.0)
        began = time.perf_counter()
        with timed_collectives(spent):
            out = train_step(trainer, rows_B, prepared)
        found.append({**spent, "step": time.perf_counter() - began, "images": len(rows_B)})
        return out

    worker.train_step = step  # type: ignore[assignment]
    try:
        worker.train_worker(Run(config["run"]), group, device)
    finally:
        worker.train_step = train_step
    Path(config["run"], f"spent-{group.rank}.json").write_text(json.dumps(found), encoding="utf-8")


def train_once(number: int, settings: dict[str, Any]) -> dict[str, float]:
    """Images a second, shares of a step and the last loss of one training."""
    with tempfile.TemporaryDirectory() as folder, session() as connected:
        config = resolve(settings)
        run = Run.create(config, open_data(config.data).space, folder, "run")
        engine = RayEngine(connected, NodeRequest(workers_per_node=number), threads=1)
        run_workers(engine, measured_worker, {"run": str(run.path)}, run.path, 0)
        files = [run.path / f"spent-{rank}.json" for rank in range(number)]
        each = [json.loads(file.read_text(encoding="utf-8"))[WARM_UP:] for file in files]
        last = [record["loss"] for record in run.metrics("step")][-1]
    seconds = max(sum(s["step"] for s in spent) for spent in each)
    shares = {part: np.mean([sum(s[part] for s in spent) for spent in each]) / seconds for part in PARTS}
    return {"steps": len(each[0]), "speed": sum(s["images"] for s in each[0]) / seconds, **shares, "loss": last}


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--numbers", type=int, nargs="+", default=[1, 2, 4], help="of workers; the first is what others compare to"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images-per-pair", type=int, default=40, help="training images per pair")
    parser.add_argument("--clip", default="tiny")
    options = parser.parse_args()
    import ray

    prepare_environment(joins=False)
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    # Ray is told of more CPUs than there may be, so that several workers can share a core.
    ray.init(address="local", num_cpus=max(options.numbers), object_store_memory=OBJECT_STORE_BYTES, **quiet)
    settings = {**SETTINGS, "clip": options.clip, "train_per_pair": options.images_per_pair}
    rounds = [{n: train_once(n, settings) for n in options.numbers} for _ in range(options.rounds)]
    ray.shutdown()
    rows, first = [], options.numbers[0]
    for n in options.numbers:
        found = {key: [r[n][key] for r in rounds] for key in rounds[0][n]}
        against = [r[n]["speed"] / r[first]["speed"] for r in rounds]
        shares = [f"{np.median(found[part]):.0%}" for part in PARTS]
        speed = f"{np.median(against):.2f} ({min(against):.2f} to {max(against):.2f})"
        rows.append([n, int(found["steps"][0]), f"{np.median(found['speed']):.0f}", speed, *shares, f"{found['loss'][0]:.4f}"])
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; clusPro adapter_dim=16 on toy, CLIP {options.clip}, "
        f"batch {resolve(settings).batch}, a thread a worker, seed 0; medians of {options.rounds} rounds\n"
    )
    table(["workers", "steps", "images/s", f"speed against {first}", "waiting for others", "sending", "last loss"], rows)


if __name__ == "__main__":
    main()
