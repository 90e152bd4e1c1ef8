"""A card that is too full is found before training, with who fills it and what would fit."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pretended import pretend

from cluster.work.comm import Group
from cluster.work.estimate import check_training, memory_of
from cluster.work.memory import GpuMemoryError, agreed_room, check_room, holders, largest_that_fits, too_full
from cluster.work.training import prepare
from czsl.runs.config import RunConfig
from methods.building import build, clip_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GiB = 2**30
CONFIG = RunConfig(method="csp", batch=64, precision="float32")


def needed(config, precision):
    """Eight GiB of weights, and one per image; parts and recomputed blocks divide the images'."""
    images = config.batch * GiB / config.accumulate / (4 if config.checkpoint_blocks else 1)
    return int(8 * GiB + images / (2 if precision == "bfloat16" else 1))


def test_enough_room_and_cpus_need_no_words(monkeypatch):
    pretend(monkeypatch, free=79, total=80)
    check_room(CONFIG, "float32", CUDA, needed, True)
    check_room(CONFIG, "float32", CPU, lambda c, p: 10**18, True)


def test_the_error_names_what_is_free_needed_and_would_fit(monkeypatch):
    pretend(monkeypatch, free=50, total=80)
    with pytest.raises(GpuMemoryError) as error:
        check_room(CONFIG, "float32", CUDA, needed, True)
    assert error.value.exit_code == 4
    assert error.value.what == "the GPU has 51,200 MiB free, and the training needs about 73,728 MiB"
    assert "51,200 of 81,920 MiB are free" in error.value.why
    assert "other processes and the driver 30,720 MiB" in error.value.why
    assert "nvidia-smi" in error.value.fix
    assert "this would fit: accumulate=2" in error.value.fix


@pytest.mark.parametrize(
    ("free", "bfloat16", "fits"),
    [
        (30, True, "accumulate=4"),
        (15, True, "accumulate=16"),
        (12, False, "accumulate=32"),
        (10, True, "checkpoint_blocks=true accumulate=32"),
    ],
)
def test_what_changes_no_result_comes_first(monkeypatch, free, bfloat16, fits):
    pretend(monkeypatch, free=free, total=80)
    with pytest.raises(GpuMemoryError, match=re.escape(f"this would fit: {fits}")):
        check_room(CONFIG, "float32", CUDA, needed, bfloat16)


def test_a_card_that_is_too_small_by_itself(monkeypatch):
    pretend(monkeypatch, free=7.9, total=8)
    with pytest.raises(GpuMemoryError) as error:
        check_room(CONFIG, "float32", CUDA, needed, True)
    assert "no smaller setting fits" in error.value.fix
    assert "nvidia-smi" not in error.value.fix


def plain(config, precision, bfloat16, fits):
    """The same settings one after another, each of them tried."""
    parts = [n for n in (2, 4, 8, 16, 32) if config.accumulate < n]
    for batch in [config.batch // n for n in (1, 2, 4, 8, 16) if config.batch // n]:
        for p in [precision, "bfloat16"] if bfloat16 and precision == "float32" else [precision]:
            for recompute in [True] if config.checkpoint_blocks else [False, True]:
                for accumulate in [n for n in (config.accumulate, *parts) if n <= batch] or [batch]:
                    changed = replace(config, batch=batch, accumulate=accumulate, checkpoint_blocks=recompute)
                    if fits(changed, p):
                        words = ["checkpoint_blocks=true"] if recompute and not config.checkpoint_blocks else []
                        words += [f"accumulate={accumulate}"] if accumulate != config.accumulate else []
                        words += [f"precision={p}"] if p != precision else []
                        return " ".join(words + ([f"batch={batch}"] if batch != config.batch else []))
    return ""


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("change", [{}, {"batch": 6, "accumulate": 2}, {"batch": 1}, {"checkpoint_blocks": True}])
def test_the_first_setting_that_fits_is_found_with_few_estimates(change, bfloat16):
    config, found = replace(CONFIG, **change), set()
    for room in np.linspace(8, needed(config, "float32") / GiB - 1e-3, 150):
        tried = []

        def fits(c, p, room=room, tried=tried):
            assert 1 <= c.accumulate <= c.batch <= config.batch
            tried.append((c, p))
            return needed(c, p) <= room * GiB

        words = largest_that_fits(config, "float32", bfloat16, fits)
        assert words == plain(config, "float32", bfloat16, fits=lambda c, p, room=room: needed(c, p) <= room * GiB)
        assert len(tried) <= 13
        found.add(words)
    assert len(found) > 1 or config.batch == 1


def test_all_workers_raise_the_error_of_one():
    class Two(Group):
        def gather_objects(self, thing):
            return [thing, ("full", "why", "fix")]

    agreed_room(lambda: None, Group())
    with pytest.raises(GpuMemoryError, match="full"):
        agreed_room(lambda: None, Two())


def test_who_holds_the_memory(monkeypatch):
    pretend(monkeypatch, free=10, total=80)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 * GiB)
    assert holders(CUDA) == (
        "10,240 of 81,920 MiB are free, this process holds 20,480 MiB, other processes and the driver 51,200 MiB"
    )
    assert holders(CPU) == ""
    error = too_full(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert "51,200 MiB; CUDA out of memory" in error.why

    def gone(device):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", gone)
    assert holders(CUDA) == ""


def test_a_full_card_ends_a_training_before_anything_is_put_on_it(make_run, monkeypatch):
    pretend(monkeypatch, free=0.001, total=80)
    run = make_run(method="csp")

    def touched(*_):
        raise AssertionError("something was put on the card")

    monkeypatch.setattr("methods.method.Method._apply", touched, raising=False)
    with pytest.raises(GpuMemoryError) as error:
        prepare(run, Group(), CUDA)
    assert "the GPU has 1 MiB free" in error.value.what
    assert "other processes and the driver 81,919 MiB" in error.value.why


def test_the_check_counts_the_runs_own_method(make_run, monkeypatch):
    config = make_run(method="csp", batch=24).config
    method = build("csp", make_run(method="csp").space, clip_for("csp", config.model, config.clip, config.clip_weights), {})
    asked = memory_of(config, method, "float32")["total"]
    pretend(monkeypatch, free=1.01 * asked / GiB, total=80)
    check_training(config, "float32", CUDA, method)
    pretend(monkeypatch, free=0.8 * asked / GiB, total=80)
    with pytest.raises(GpuMemoryError, match=f"needs about {asked / 2**20:,.0f} MiB"):
        check_training(config, "float32", CUDA, method)
    check_training(config, "float32", CPU, method)
