"""Checks and measurements of a device, run with the CPU against itself; what is wrong must be found."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cluster.work import device_bench, device_checks
from cluster.work.device_bench import Row, bench
from cluster.work.device_checks import (
    Check,
    check_memory,
    check_method,
    check_optimizer,
    check_replay,
    check_resume,
    checks,
    off_by,
    small_clip,
)
from czsl.clip.captured import Graphs
from tests.recorded import make_recorded_callable

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["zero-shot", "csp"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_cpu_agrees_with_itself(name, precision):
    check = check_method(name, CPU, precision)
    assert check.level == "ok", check
    assert ("loss terms" in check.found) == (name == "csp")


@pytest.mark.slow
def test_all_checks_pass_on_the_cpu():
    found = list(checks(CPU))
    assert [c for c in found if c.level == "fail"] == []
    assert len(found) == 2 * len(device_checks.METHODS) + 7


def test_wrong_scores_and_lost_digits_are_failures(monkeypatch):
    real = device_checks.scores_of
    calls = []
    monkeypatch.setattr(device_checks, "scores_of", lambda *a: calls.append(a) or real(*a) * (1.01 if len(calls) == 1 else 1))
    check = check_method("zero-shot", CPU, "float32")
    assert check.level == "fail"
    assert check.fix
    assert off_by(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_optimizer_resume_and_memory():
    for check in (check_optimizer(CPU), check_resume(CPU), check_memory(CPU)):
        assert check.level == "ok", check
    assert check_resume(CPU).found == "bit-equal"


def test_replayed_passes_are_compared_over_steps():
    assert check_replay(CPU, Graphs(CPU, make_recorded_callable)).level == "ok"
    assert check_replay(CPU).level == "skip"  # torch has no CUDA graphs on a CPU

    def stale(function, samples, allow_unused_input):
        return lambda *args: function(*samples) + 0 * function(*args)

    check = check_replay(CPU, Graphs(CPU, stale))
    assert check.level == "fail", check
    assert check.fix == "train with compile=off"


def test_a_check_that_stumbles_is_a_failure_and_hides_no_other(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(device_checks, "check_method", broken)
    monkeypatch.setattr(device_checks, "check_resume", lambda device: Check("ok", "checkpoint and resume", ""))
    found = list(checks(CPU))
    assert "no kernel image" in found[0].found
    assert found[0].level == "fail"
    assert found[-1].level == "ok"


def test_measurements_at_a_small_size(monkeypatch):
    monkeypatch.setattr(device_bench, "SPACES", {"few": (6, 5, 20, 4)})
    monkeypatch.setattr(device_bench, "METHODS", ("csp", "clusPro"))
    rows = list(bench(CPU, clip=small_clip()))
    assert [r.work for r in rows] == [
        "encoding images",
        "evaluation, open world, few",
        "training step, csp, few",
        "training step, clusPro, few",
    ]
    assert all(r.images_per_s and r.images_per_s > 0 and not r.error for r in rows)


def test_the_measured_evaluation_is_that_of_a_split(monkeypatch):
    """It goes through the scoring of `czsl evaluate`, tile by tile, over all compositions and images."""
    seen = []

    real = device_bench.reduce_split
    monkeypatch.setattr(device_bench, "reduce_split", lambda *a, **k: seen.append(real(*a, **k)[0]))
    method = device_checks.method_on("csp", CPU, "float32")
    device_bench.evaluation_on(method, CPU, 70)()
    (extremes,) = seen
    assert len(extremes) == 70


def test_what_does_not_fit_is_a_row(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(device_bench, "measure", full)
    monkeypatch.setattr(device_bench, "SPACES", {})
    assert list(bench(CPU, clip=small_clip())) == [Row("encoding images", 64, None, error="CUDA out of memory")]


def test_without_a_gpu_and_without_ray_the_command_ends_with_4():
    code = "import sys; sys.modules['ray'] = None; from czsl_cli.main import main; main(['doctor', '--bench'])"
    environment = {"PATH": "/usr/bin", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 4, done.stderr
    assert "this machine has no GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_checks_import_no_ray():
    code = "import sys; sys.modules['ray'] = None; import cluster.work.device_checks, cluster.work.device_bench"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
