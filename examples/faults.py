"""Faults at random steps of a training, which then has to end where an undisturbed one ends, byte for byte.

python examples/faults.py                              # 20 faults, one worker: a process of the command's own
python examples/faults.py --faults 7 --engine ray      # each kind once, one worker of Ray Train
python examples/faults.py --faults 7 --workers 2       # each kind once, two workers

Each fault is real: processes are killed, files cut and removed, the kernel refuses to write. After a fault that ends ``czsl train`` it is
started again with ``--resume``. Printed are what was done when, and whether weights, optimizer state, progress and metrics (without the
time they took) are the same as without faults; exit 1 if they are not. A fault costs about the start of a worker (and of a Ray).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from czsl.data.table import open_data
from czsl.runs import checkpoint
from czsl.runs.run import Run
from czsl_cli.config import resolve

# What happens -> how `czsl train` ends by itself; None if it has to continue.
KINDS = {
    "SIGKILL of a worker": None,
    "SIGKILL of the driver": -signal.SIGKILL,
    "SIGTERM": 130,
    "SIGINT": 130,
    "newest checkpoint cut, worker killed": None,
    "file of the newest checkpoint removed, driver killed": -signal.SIGKILL,
    "disk full": 4,
}
CLOCKS = ("time", "images_per_s")
TAIL = 4096  # bytes of metrics that surely hold a step
EPOCHS_A_FAULT = 8
MIN_EPOCHS = 160  # fewer would be over while a killed driver's workers still run
POLL_S = 0.03
PATIENCE_S = 300


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2))
    parser.add_argument("--engine", default="auto", choices=("auto", "local", "ray"))
    parser.add_argument("--seed", type=int, default=0, help="of kinds and steps")
    parser.add_argument("--out", type=Path, help="folder for both runs (default: a temporary one)")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="czsl-faults-"))
    settings = {"method": "csp", "data": "toy", "train_per_pair": 1, "val_per_pair": 1, "batch": 16, "lr": 0.01, "threads": 1}
    config = resolve({**settings, "epochs": max(MIN_EPOCHS, EPOCHS_A_FAULT * args.faults)})
    whole, broken = (Run.create(config, open_data("toy").space, out, name) for name in ("whole", "broken"))
    where = ["--workers-per-node", str(args.workers), "--engine", args.engine]
    start(whole, where).wait()
    total = next(whole.metrics("start"))["steps"]
    rng = np.random.default_rng(args.seed)
    kinds = [k for _ in range(0, args.faults, len(KINDS)) for k in rng.permutation(list(KINDS))][: args.faults]
    at = np.sort(rng.choice(np.arange(2, total - 10), args.faults, replace=False))
    injected = disturb(broken, where, args.workers, list(zip(kinds, at.tolist(), strict=True)), rng)
    print(
        f"{injected} of {args.faults} faults in {total} steps with {args.workers} worker{'s' * (args.workers > 1)}; both runs: {out}"
    )
    same = compare(whole, broken)
    for what, equal in same.items():
        print(f"{what:32s} {'the same' if equal else 'DIFFERENT'}")
    return 0 if all(same.values()) and injected == args.faults else 1


def start(run: Run, where: list[str]) -> subprocess.Popen[bytes]:
    """``czsl train --resume RUN``; its output goes into the run folder."""
    command = [str(Path(sys.executable).parent / "czsl"), "train", "--resume", str(run.path), *where]
    with (run.path / "driver.txt").open("ab") as said:
        return subprocess.Popen(command, stdout=said, stderr=said)


def disturb(run: Run, where: list[str], workers: int, faults: list[tuple[str, int]], rng: np.random.Generator) -> int:
    """Train to the end with faults at or soon after the given steps; return their number."""
    print(f"{'':>3} {'fault':54} {'at step':>8} {'resumes at':>10} {'exit':>5} {'seconds':>8}", flush=True)
    driver, injected, since = start(run, where), 0, 0.0
    try:
        for kind, step in faults:
            reached = wait_for_step(run, driver, step, since)
            if reached is None:
                break
            since = time.time()
            pids = [json.loads((run.path / f"worker-{rank}.json").read_text())["pid"] for rank in range(workers)]
            harm(kind, run, driver, pids, rng)
            code = None
            if KINDS[kind] is not None:
                code = driver.wait(PATIENCE_S)
                if code != KINDS[kind]:
                    raise SystemExit(f"{kind}: exit {code} instead of {KINDS[kind]}; see {run.path / 'driver.txt'}")
                wait_for(lambda pids=pids: not any(map(is_running, pids)))
            injected += 1
            if finished(run):  # workers whose driver was killed came to the end before they noticed
                return injected
            driver = start(run, where) if code is not None else driver
            if wait_for_step(run, driver, 0, since) is None:
                break
            again = list(run.metrics("start"))[-1]["step"]
            code_text = "" if code is None else str(code)
            print(f"{injected:>3} {kind:54} {reached:>8} {again:>10} {code_text:>5} {time.time() - since:>8.1f}", flush=True)
        if code := driver.wait():
            raise SystemExit(f"it could not continue: exit {code}; see {run.path / 'driver.txt'}")
    finally:
        driver.kill()
    return injected


def harm(kind: str, run: Run, driver: subprocess.Popen[bytes], pids: list[int], rng: np.random.Generator) -> None:
    """Do it."""
    newest = checkpoint.steps(run.checkpoints)[-1:]
    # The newest checkpoint may be replaced at this very moment.
    with contextlib.suppress(FileNotFoundError):
        for victim in (rng.choice(sorted(p.iterdir())) for p in newest):
            if "cut" in kind:
                os.truncate(victim, victim.stat().st_size // 2)
            elif "removed" in kind:
                victim.unlink()
    if "driver" in kind:
        driver.kill()
    elif "worker" in kind:
        os.kill(int(rng.choice(pids)), signal.SIGKILL)
    elif kind == "disk full":
        resource.prlimit(pids[0], resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    else:
        driver.send_signal(signal.Signals[kind])


def wait_for_step(run: Run, driver: subprocess.Popen[bytes], step: int, since: float) -> int | None:
    """The step at which workers started after ``since`` are, once it is this or a later one; None if the training ended."""
    found: list[int] = []

    def reached() -> bool:
        if driver.poll() is not None:
            return True
        worker = run.path / "worker-0.json"
        if not worker.exists() or (started := worker.stat().st_mtime) <= since:
            return False
        last = last_step(run)
        found[:] = [last["step"]] if last and last["time"] > started and last["step"] >= step else []
        return bool(found)

    wait_for(reached)
    return found[0] if found else None


def finished(run: Run) -> bool:
    """Return whether nothing is left to do."""
    return any(record["status"] == "done" for record in run.metrics("end"))


def last_step(run: Run) -> dict[str, Any] | None:
    """The newest record of a step."""
    if not run.metrics_file.exists():
        return None
    with run.metrics_file.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        lines = file.read().split(b"\n")
    for line in reversed(lines[:-1]):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if record.get("event") == "step":
                return record
    return None


def wait_for(condition: Any) -> None:
    """Until it holds, or too long."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"nothing happened for {PATIENCE_S} s")
        time.sleep(POLL_S)


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def compare(whole: Run, broken: Run) -> dict[str, bool]:
    """Compare the results of two runs, part by part."""
    last = [checkpoint.find(r.checkpoints, "last") for r in (whole, broken)]
    alike = lambda name: last[0].name == last[1].name and (last[0] / name).read_bytes() == (last[1] / name).read_bytes()  # noqa: E731
    return {
        "final weights": alike("method.safetensors"),
        "optimizer state": alike("optimizer.safetensors"),
        "progress (state.json)": alike("state.json"),
        "metrics of steps and epochs": learned(whole) == learned(broken),
        "best checkpoint": checkpoint.best(whole.checkpoints) == checkpoint.best(broken.checkpoints),
        "weights of the best checkpoint": len({checkpoint_bytes(r) for r in (whole, broken)}) == 1,
    }


def checkpoint_bytes(run: Run) -> bytes:
    """The weights of the best checkpoint as they are on disk."""
    return (checkpoint.find(run.checkpoints, "best") / "method.safetensors").read_bytes()


def learned(run: Run) -> list[str]:
    """Metrics as text, without the time they took."""
    kept = (r for r in run.metrics() if r.get("event") in ("step", "epoch"))
    return [json.dumps({k: v for k, v in r.items() if k not in CLOCKS}) for r in kept]


if __name__ == "__main__":
    sys.exit(main())
