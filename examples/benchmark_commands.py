"""Measure the time of whole commands as processes, compared with a plain script and with another checkout.

    python examples/benchmark_commands.py
    python examples/benchmark_commands.py --before ../before/.venv/bin/czsl --only train

The yardstick of `predict` and `evaluate` is plain_clip.py next to this file: it loads the same random weights of ViT-B/16's size, encodes
the same images and compositions, and prints. Commands that are compared take turns, so that a machine whose speed drifts slows both;
figures are medians, ratios medians of pairs.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
CZSL = str(Path(sys.executable).parent / "czsl")
WORDS = {"attributes": ["wet", "dry", "old", "new", "red", "blue", "green", "small", "sliced", "broken"]}
WORDS["objects"] = ["dog", "cat", "car", "chair", "apple", "shoe", "tree", "house", "cup", "boat"]
SIZE = (500, 375)  # of the photographs, pixels


def seconds(command: Sequence[str], cwd: Path, environment: dict[str, str]) -> float:
    """Wall time of a command; what it printed only if it failed."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    spent = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return spent


def in_turn(label: str, first: Sequence[str], other: Sequence[str], rounds: int, cwd: Path, environment: dict[str, str]) -> None:
    """Time two commands in turn after a warm-up of each, and print a row."""
    for command in (first, other):
        seconds(command, cwd, environment)
    times = np.array([[seconds(c, cwd, environment) for c in (first, other)] for _ in range(rounds)])
    one, two = np.median(times, axis=0)
    ratios = times[:, 0] / times[:, 1]
    print(
        f"{label:46s} {one:7.1f} s {two:7.1f} s   {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})", flush=True
    )


def beside_a_busy_process(rounds: int, folder: Path, environment: dict[str, str]) -> None:
    """Training with the time that czsl lets idle threads spin, and with OpenMP's own, idle and next to a process that takes a core."""
    train = [CZSL, "train", "--method", "clusPro", "--recipe", "toy", "epochs=1", "val_per_pair=1"]
    own = ["env", "GOMP_SPINCOUNT=300000", *train]
    print(f"{'':46s} {'czsl':>9s} {'OpenMP':>9s}   ratio")
    in_turn("one epoch of ClusPro, quiet machine", train, own, rounds, folder, environment)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            in_turn("the same beside a busy process", train, own, rounds, folder, environment)
        finally:
            busy.kill()


# Choosing another aim from the kept numbers, without the start of the program.
CHOOSING = """import time, statistics
from pathlib import Path
from cluster.calibrate import calibrate_run
from cluster.work.calibration import Calibration
from czsl.runs.run import Run
run, times = Run(Path("runs/point")), []
for aim in ("accuracy", "seen>=0.3", "unseen-share=0.3", "hm"):
    began = time.perf_counter()
    calibrate_run(run, Calibration("best", False, aim, None, "val"))
    times.append(time.perf_counter() - began)
print(f"{statistics.median(times):.3f}")"""


def operating_point(rounds: int, folder: Path, environment: dict[str, str]) -> None:
    """Seconds for another aim from kept numbers, and prediction with the operating point in turn with prediction without."""
    seconds([CZSL, "train", "--method", "csp", "epochs=1", "--name", "point"], folder, environment)
    seconds([CZSL, "data", "export", "toy", str(folder / "drawings"), "--split", "test"], folder, environment)
    command = [sys.executable, "-c", CHOOSING]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    print(f"another aim from kept numbers, {done.stdout.strip()} s\n")
    print(f"{'':46s} {'point':>9s} {'none':>9s}   ratio")
    predict = [CZSL, "predict", "drawings", "--run", "runs/point", "--no-keep"]
    none = [*predict, "--bias", "none"]
    in_turn("predict, 800 drawings, tiny", [*predict, "--bias", "val"], none, rounds, folder, environment)


def make_photographs(folder: Path, number: int) -> None:
    """JPEG files of the size of web photographs, with noise of several scales so that decoding costs what it does on photographs."""
    folder.mkdir()
    for i in range(number):
        rng = np.random.default_rng(i)
        layers = [np.asarray(Image.fromarray(rng.integers(0, 256, (s, s, 3), np.uint8)).resize(SIZE)) for s in (4, 24, 128)]
        Image.fromarray(np.mean(layers, axis=0).astype(np.uint8)).save(folder / f"{i:04d}.jpg", quality=90)


def make_weights(path: Path) -> None:
    """Random weights of ViT-B/16's size in OpenAI's format."""
    import torch

    from czsl.clip.compat import import_open_clip

    torch.manual_seed(0)
    torch.save(import_open_clip().create_model("ViT-B-16-quickgelu", pretrained=None).state_dict(), path)


def make_dataset(folder: Path, photographs: Path, czsl: str, environment: dict[str, str]) -> None:
    """A dataset whose test split is these photographs, with labels that mean nothing."""
    files, pairs = sorted(photographs.iterdir()), [(a, o) for a in WORDS["attributes"] for o in WORDS["objects"]]
    rows = [f"{file.name},{','.join(pairs[i % len(pairs)])},{'test' if i else 'train'}" for i, file in enumerate(files)]
    table = photographs.parent / f"{photographs.name}.csv"
    lines = "\n".join(["image,attr,obj,split", *(f"{photographs.name}/{row}" for row in rows)]) + "\n"
    table.write_text(lines, encoding="utf-8")
    seconds([czsl, "data", "import", str(table), str(folder)], folder.parent, environment)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--numbers", type=int, nargs="+", default=[12, 500], help="of photographs")
    parser.add_argument("--before", help="czsl of another checkout, to compare with")
    parser.add_argument("--only", choices=["train", "predict", "evaluate", "answers", "busy", "point"], help="one table")
    options = parser.parse_args()
    wanted = lambda name: options.only in (None, name)  # noqa: E731
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "CZSL_CACHE": str(folder / "cache")}
        if alone := {"busy": beside_a_busy_process, "point": operating_point}.get(options.only):
            alone(options.rounds, folder, environment)
            return
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.rounds} rounds\n")
        if options.before:
            other = options.before
            print(f"{'':46s} {'now':>9s} {'before':>9s}   ratio")
            seconds([CZSL, "data", "export", "toy", str(folder / "few"), "--split", "test", "--limit", "6"], folder, environment)
            for czsl, run in ((CZSL, "now"), (other, "before")):  # each reads a run of its own
                seconds([czsl, "train", "--method", "csp", "epochs=1", "--name", run], folder, environment)
            for label, words in {
                "train --method csp epochs=1": ["train", "--method", "csp", "epochs=1"],
                "predict, 6 drawings, tiny": ["predict", "few", "--run", "runs/RUN"],
                "evaluate, toy, tiny": ["evaluate", "runs/RUN"],
                "methods": ["methods"],
            }.items():
                if wanted(label.split(",")[0].split()[0]) or (label == "methods" and wanted("answers")):
                    here, there = ([word.replace("RUN", run) for word in words] for run in ("now", "before"))
                    in_turn(label, [CZSL, *here], [other, *there], options.rounds, folder, environment)
            return
        print(f"{'':46s} {'czsl':>9s} {'plain':>9s}   ratio")
        make_weights(folder / "clip.pt")
        for kind, words in WORDS.items():
            (folder / f"{kind}.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        lists = ["--attributes", str(folder / "attributes.txt"), "--objects", str(folder / "objects.txt")]
        for number in options.numbers:
            photographs = folder / f"photos{number}"
            make_photographs(photographs, number)
            plain = [sys.executable, str(HERE / "plain_clip.py"), str(photographs), "--weights", str(folder / "clip.pt"), *lists]
            if wanted("predict"):
                out = str(folder / f"found{number}.jsonl")
                ours = [CZSL, "predict", str(photographs), "--zero-shot", "--clip", str(folder / "clip.pt"), *lists, "--out", out]
                in_turn(f"predict, {number} photographs, ViT-B/16", ours, plain, options.rounds, folder, environment)
            if wanted("evaluate"):
                data, run = folder / f"data{number}", f"run{number}"
                make_dataset(data, photographs, CZSL, environment)
                train = [CZSL, "train", "--method", "zero-shot", "--data", str(data), "--clip", str(folder / "clip.pt")]
                seconds([*train, "--name", run], folder, environment)
                fresh = [sys.executable, "-c", FRESH, CZSL, "evaluate", f"runs/{run}"]
                in_turn(f"evaluate, {number} photographs, ViT-B/16", fresh, plain, options.rounds, folder, environment)


# Features that the evaluation before kept would make the comparison unfair.
FRESH = """import os, shutil, subprocess, sys
shutil.rmtree(os.environ["CZSL_CACHE"], ignore_errors=True)
sys.exit(subprocess.run(sys.argv[1:]).returncode)"""

if __name__ == "__main__":
    main()
