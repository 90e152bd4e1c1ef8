"""Commands on machines whose GPUs do not work as the user thinks: exit codes and words."""

from __future__ import annotations

import json

import pytest
import torch
from pretended import TOO_OLD, pretend

from cluster.machines import health, session
from cluster.machines.health import FAIL, OK, WARN
from czsl.errors import SetupError

CARDS = ("GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11111111)",)
COMMANDS = {
    "dry run": ("train", "--method", "csp", "--dry-run"),
    "train": ("train", "--method", "csp", "epochs=1"),
    "evaluate": ("evaluate", "--run", "runs/z"),
    "predict": ("predict", "photos", "--run", "runs/z"),
    "index": ("index", "build", "runs/z"),
    "doctor --bench": ("doctor", "--bench"),
}


@pytest.fixture(autouse=True)
def alone(czsl, tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "photos").mkdir()
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.png")
    czsl("train", "--method", "zero-shot", "--name", "z")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_driver_too_old_ends_every_command_with_4(czsl, monkeypatch, command):
    pretend(monkeypatch, 0, trouble=TOO_OLD)
    shown = czsl(*command, expect=4)
    first, why, fix = shown.stderr[shown.stderr.index("error:") :].strip().splitlines()
    assert "cannot use this machine's GPU" in first
    assert "too old (found version 11040)" in why
    assert "update the NVIDIA driver" in fix


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_wrong_value_ends_every_command_with_4(czsl, monkeypatch, command):
    pretend(monkeypatch, 0, visible="GPU-99999999", listed=CARDS)
    shown = czsl(*command, expect=4)
    assert "CUDA_VISIBLE_DEVICES=GPU-99999999 names GPUs that are not there" in shown.stderr
    assert "GPU-11111111" in shown.stderr


@pytest.mark.parametrize(
    ("machine", "level", "words"),
    [
        ({"build": None}, WARN, "is a build for CPUs"),
        ({"trouble": TOO_OLD}, FAIL, "too old"),
        ({"visible": ""}, OK, "CUDA_VISIBLE_DEVICES is empty"),
        ({"visible": "4", "listed": CARDS}, FAIL, "GPU-11111111"),
        ({"card": False}, OK, "work runs on the CPU"),
    ],
)
def test_the_doctor_says_the_same(monkeypatch, machine, level, words):
    pretend(monkeypatch, 0, **machine)
    (found,) = [f for f in health._torch() if f.subject == "GPU"]
    assert (found.level, words in found.found) == (level, True)
    assert bool(found.fix) == (level != OK)


def test_the_doctor_exits_with_4_and_survives_a_card_without_answer(czsl, monkeypatch):
    pretend(monkeypatch, 0, trouble=TOO_OLD)
    shown = json.loads(czsl("doctor", "--json", expect=4).stdout)
    assert [f["subject"] for f in shown["findings"] if f["level"] == "fail"] == ["GPU"]
    pretend(monkeypatch, 2)

    def busy(device=0):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "mem_get_info", busy)
    assert [f.level for f in health._torch() if f.subject.startswith("GPU")] == [FAIL, FAIL]


def test_bfloat16_on_a_card_without_it_is_found_by_a_dry_run(czsl, monkeypatch):
    pretend(monkeypatch, 1, name="Tesla T4", capability=(7, 5))
    shown = czsl("train", "--method", "csp", "--dry-run", "precision=bfloat16", expect=4)
    assert "Tesla T4 has no bfloat16" in shown.stderr
    assert "precision=auto or precision=float32" in shown.stderr
    czsl("train", "--method", "csp", "--dry-run", "precision=float32")


def test_more_workers_than_cards_say_that_they_run_on_the_cpu(czsl, monkeypatch):
    pretend(monkeypatch, 1)
    monkeypatch.setattr(session.os, "cpu_count", lambda: 8)
    shown = czsl("train", "--method", "csp", "--dry-run", "--workers-per-node", "2")
    assert "2 workers per node on the CPU" in " ".join(shown.stderr.split())
    assert "each worker needs its own" in " ".join(shown.stderr.split())


def test_a_local_ray_counts_the_gpus_that_torch_can_use(monkeypatch):
    started = []

    class Ray:
        @staticmethod
        def init(**options):
            started.append(options["num_gpus"])

    pretend(monkeypatch, 0, build=None)
    session._connect(Ray, None)
    pretend(monkeypatch, 3)
    session._connect(Ray, None)
    assert started == [0, 3]
    pretend(monkeypatch, 0, trouble=TOO_OLD)
    with pytest.raises(SetupError, match="cannot use this machine's GPU"), session.session():
        pass


def test_memory_that_runs_out_in_a_command_is_exit_code_4(czsl, monkeypatch):
    import cluster.work.predictor

    pretend(monkeypatch, 0, card=False)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(cluster.work.predictor.Predictor, "records", full)
    shown = czsl("predict", "photos", "--run", "runs/z", expect=4)
    assert "the GPU's memory ran out" in shown.stderr
    assert "Tried to allocate 2.00 GiB" in shown.stderr
    assert "nvidia-smi" in shown.stderr


def test_a_dry_run_says_what_would_not_fit_and_what_would(czsl, monkeypatch):
    pretend(monkeypatch, 1, free=0.1, total=80)
    shown = czsl("train", "--method", "clusPro", "--dry-run", "batch=256")
    words = " ".join(shown.stderr.split())
    assert "it would not fit: the GPU has 102 MiB free" in words
    assert "this would fit: " in words
    pretend(monkeypatch, 1, free=70, total=80)
    assert "would not fit" not in czsl("train", "--method", "clusPro", "--dry-run", "batch=256").stderr
