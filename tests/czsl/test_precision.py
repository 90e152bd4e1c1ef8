"""What ``precision=auto`` stands for, and warnings about what a device cannot do; GPUs are told by their capability."""

from __future__ import annotations

import pytest
import torch

from czsl import precision
from czsl.errors import SetupError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def card(monkeypatch):
    """Pretend to have a card of a compute capability."""

    def pretend(*capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")

    return pretend


@pytest.fixture
def cpu_info(tmp_path, monkeypatch):
    def pretend(text):
        file = tmp_path / "cpuinfo"
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(precision, "CPU_INFO", file)
        precision.cpu_has_bfloat16.cache_clear()

    yield pretend
    precision.cpu_has_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("capability", "fits"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16"), ((6, 1), "float32")]
)
def test_auto_is_bfloat16_where_a_card_does_it_well(card, capability, fits):
    card(*capability)
    assert precision.fitting(CUDA) == fits
    assert precision.fitting(CPU) == "float32"
    if fits == "bfloat16":
        precision.check_precision("bfloat16", CUDA)
    else:
        with pytest.raises(SetupError, match="a card has no bfloat16") as error:
            precision.check_precision("bfloat16", CUDA)
        assert error.value.exit_code == 4
    for other in ("auto", "float32", "float64"):
        precision.check_precision(other, CUDA)
    precision.check_precision("bfloat16", CPU)


def test_tf32_belongs_to_auto_and_to_gpus():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        precision.allow_tf32(CPU, "auto")
        assert not torch.backends.cuda.matmul.allow_tf32
        precision.allow_tf32(CUDA, "auto")
        assert torch.backends.cuda.matmul.allow_tf32
        precision.allow_tf32(CUDA, "float32")
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("flags : fpu sse2 avx512f avx512_bf16 amx_tile\n", True),
        ("Features : fp asimd bf16 i8mm\n", True),
        ("flags : fpu sse2 avx2 avx512f\nmodel name : bf16less\n", False),
        ("", False),
    ],
)
def test_the_instructions_of_the_processor(cpu_info, text, there):
    cpu_info(text)
    assert precision.cpu_has_bfloat16() is there
    warning = precision.slow_on_cpu("bfloat16")
    assert bool(warning) is not there
    assert "precision=float32" in warning or there
    for other in ("float32", "float64", "", "auto"):
        assert not precision.slow_on_cpu(other)


def test_a_system_without_that_file_is_asked_otherwise(cpu_info, monkeypatch):
    cpu_info(None)
    monkeypatch.setattr(precision.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(precision, "_apple_has_bfloat16", lambda: True)
    assert precision.cpu_has_bfloat16()


def test_a_finished_run_in_bfloat16_may_be_used_on_a_card_that_emulates_it(card):
    card(7, 5)
    assert "a card does not have" in precision.emulated("bfloat16", CUDA)
    assert "CUDA_VISIBLE_DEVICES=" in precision.emulated("bfloat16", CUDA)
    assert not precision.emulated("float32", CUDA) and not precision.emulated("bfloat16", CPU)
    card(8, 0)
    assert not precision.emulated("bfloat16", CUDA)
